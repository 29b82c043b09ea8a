"""What movielens.yaml names."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.evaluation import text_rating as text_rating_of
from benchmarks.evaluation import ubert
from benchmarks.evaluation.systems import DataSet, trained
from llmrec_plugin.evaluation.features import Columns
from llmrec_plugin.evaluation.windows import Rows, Window
from llmrec_plugin.interactions import ITEM, RATING, TIME, USER, read_atomic
from llmrec_plugin.systems.past import newest_before
from llmrec_plugin.systems.text_rating.texts import history_texts
from llmrec_plugin.systems.ubert.pretraining import has_text

DATA = DataSet(
    name="movielens",
    item_text="{title}. {genres}",
    candidate="title",
    liked=4.0,
    training={
        # 560 people with long histories: an epoch is a few steps.
        "bert4rec": ["--batch", "16", "--patience", "20"],
        "encoder": ["--liked-from", "4"],
    },
)

item_text = DATA.text("item")
item_tuned = DATA.text("item", tuned=True)
user_bert4rec, item_bert4rec = DATA.sequence("bert4rec", 65), DATA.item("bert4rec", 65)
user_unisrec, item_unisrec = DATA.sequence("unisrec"), DATA.item("unisrec")
user_whitening, item_whitening = DATA.sequence("whitening"), DATA.item("whitening")
candidate_score = DATA.score()


def text_rating(window: Window, rows: Rows) -> Columns:
    """The rating that the trained text rating expects, from the vectors of the history's titles and the item's text."""
    catalogue = window.catalogue
    lists = np.repeat(np.arange(len(window)), np.diff(window.offsets))
    # Histories are newest first; their order alone matters here.
    events = pd.DataFrame(
        {
            USER: lists,
            ITEM: catalogue.items[window.history.item],
            RATING: window.history.rating,
            "moment": -np.arange(len(lists)),
        }
    )
    texts = history_texts(
        np.arange(len(window)), np.ones(len(window), dtype=np.int64), events, catalogue.data.item_texts("{title}"),
        last_n=8, liked=4.0, moment="moment",
    )  # fmt: skip
    return text_rating_of.column(DATA, texts, window, rows, window.latest())


WRITTEN = "reviews"
"""Folder of all reviews, for lists to read what is earlier."""


def review_commands(source: Path, systems: Path, work: Path) -> list[list[str]]:
    """Arguments of ``llmrec train`` for what U-BERT reads: ratings and tags up to the systems' newest event.

    The last is for lists and has all reviews.
    """
    newest = read_atomic(systems).interactions[TIME].max().timestamp()
    known = work / "ubert-films"
    known.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "movies.csv", known)
    for name in ("ratings.csv", "tags.csv"):
        table = pd.read_csv(source / name, dtype=str, keep_default_na=False)
        table[table["timestamp"].astype("int64") <= newest].to_csv(known / name, index=False)
    everything = ["ubert-reviews", DATA.name, str(source), "--output", str(work / WRITTEN)]
    return [*ubert.preparation(DATA.name, known, work), everything]


@functools.cache
def _written(folder: Path) -> pd.DataFrame:
    """The interactions that have a review."""
    interactions = read_atomic(folder).interactions
    return interactions[has_text(interactions["review"])]


def ubert_rating(window: Window, rows: Rows) -> Columns:
    """The rating that the trained U-BERT expects, from tags: a user's own on a film are the user's review of it.

    A list reads what its user wrote up to the newest event of its history, and of an item what anybody wrote before
    the window's snapshot was made.
    """
    network, catalogue = ubert.network(trained(DATA.name)), window.catalogue
    written = _written(trained(DATA.name) / WRITTEN)
    log = catalogue.log(written)
    reviews = ubert.Reviews(text=written["review"].tolist(), author=written[USER].tolist(), moment=log.time)
    items = np.arange(len(catalogue.items))
    of_user = newest_before(window.user, window.latest() + 1, log.user, log.time, network.user_reviews)
    of_item = newest_before(items, np.full(len(items), window.start), log.item, log.time, network.item_reviews)
    return network.column(window, rows, reviews, of_user, of_item)
