"""What movielens.yaml names."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.evaluation import ubert
from benchmarks.evaluation.systems import DataSet, trained
from llmrec_plugin import EmbeddingFeature, EncoderModel
from llmrec_plugin.evaluation.declared import Computer, item_columns
from llmrec_plugin.evaluation.features import Columns
from llmrec_plugin.evaluation.windows import Rows, Window
from llmrec_plugin.interactions import ITEM, RATING, TIME, USER, read_atomic
from llmrec_plugin.settings import load_settings
from llmrec_plugin.systems.past import newest_before
from llmrec_plugin.systems.text_rating import features
from llmrec_plugin.systems.text_rating.texts import history_texts
from llmrec_plugin.systems.text_rating.training import load_text_rating
from llmrec_plugin.systems.ubert.pretraining import has_text

_PAIRS = 8_192  # of the head at a time

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
    # The small size of docs/systems/text-rating.md.
    further={
        "text-rating": [
            "text-rating", "--item-text", "{title}. {genres}", "--dims", "32", "--layers", "1",
            "--learning-rate", "1e-3", "--batch-size", "128", "--most-rows", "30000",
        ]
    },
)  # fmt: skip

item_text = DATA.text("item")
item_tuned = DATA.text("item", tuned=True)
user_bert4rec, item_bert4rec = DATA.sequence("bert4rec", 65), DATA.item("bert4rec", 65)
user_unisrec, item_unisrec = DATA.sequence("unisrec"), DATA.item("unisrec")
user_whitening, item_whitening = DATA.sequence("whitening"), DATA.item("whitening")
candidate_score = DATA.score()


USER_TEXT = "user_text"


def text_encoder() -> EncoderModel:
    """The encoder that was trained with the text rating."""
    config = json.loads((trained(DATA.name) / "text-rating" / "config.json").read_text())
    return features.text_encoder(
        trained(DATA.name) / "text-rating",
        dims=config["bert"]["hidden_size"],
        max_tokens=config["settings"]["max_tokens"],
        name=f"{DATA.name}-text-rating-encoder",
    )


@functools.cache
def _text_rating() -> tuple[Computer, Any, EmbeddingFeature, EmbeddingFeature]:
    """What computes vectors of texts, the head, and the features of both sides."""
    network, _ = load_text_rating(trained(DATA.name) / "text-rating")
    user, item = (
        features.text_vector(text_encoder(), name=f"{side}_text_vec", entity=side, text=text)
        for side, text in (("user", f"{{{USER_TEXT}}}"), ("item", DATA.item_text))
    )
    return Computer(load_settings()), network.head, user, item


def text_rating(window: Window, rows: Rows) -> Columns:
    """The rating that the trained text rating expects, from the vectors of the history's titles and the item's text."""
    computer, head, user, item = _text_rating()
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
    users = torch.from_numpy(computer.vectors(user, {USER_TEXT: texts}))
    items = torch.from_numpy(computer.vectors(item, item_columns(item, catalogue)))
    found = np.empty(len(rows), dtype=np.float32)
    with torch.inference_mode():
        for first in range(0, len(rows), _PAIRS):
            part = slice(first, first + _PAIRS)
            found[part] = head(users[rows.query[part]], items[rows.item[part]]).numpy()
    return Columns(names=("text_rating",), values=found[:, None], latest=window.latest()[rows.query])


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
