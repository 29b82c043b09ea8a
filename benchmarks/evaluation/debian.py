"""What debian.yaml names."""

import gzip
import json
from pathlib import Path

import numpy as np

from benchmarks.evaluation import text_rating as text_rating_of
from benchmarks.evaluation import ubert
from benchmarks.evaluation.systems import DataSet, trained
from llmrec_plugin.evaluation.features import Columns
from llmrec_plugin.evaluation.windows import NEVER, Rows, Window
from llmrec_plugin.interactions import USER, read_atomic
from llmrec_plugin.systems.past import newest_before
from llmrec_plugin.systems.ubert.standins import RELATIONS

USER_TEXT = "{name}. {synopsis}"

DATA = DataSet(
    name="debian",
    item_text="{item_id}. {synopsis}",
    user_text=USER_TEXT,
    candidate="synopsis",
    rated_text="{user_id}. {synopsis}",
    training={"encoder": ["--query", "user", "--user-text", USER_TEXT]},
)

item_text, user_text = DATA.text("item"), DATA.text("user")
item_tuned, user_tuned = DATA.text("item", tuned=True), DATA.text("user", tuned=True)
user_bert4rec, item_bert4rec = DATA.sequence("bert4rec", 65), DATA.item("bert4rec", 65)
user_unisrec, item_unisrec = DATA.sequence("unisrec"), DATA.item("unisrec")
user_whitening, item_whitening = DATA.sequence("whitening"), DATA.item("whitening")
candidate_score = DATA.score()


def text_rating(window: Window, rows: Rows) -> Columns:
    """The rating that the trained text rating expects, from the vectors of both packages' texts."""
    texts = window.catalogue.data.user_texts(USER_TEXT)
    users = [texts[window.catalogue.users[user]] for user in window.user]
    return text_rating_of.column(DATA, users, window, rows, np.full(len(window), NEVER))


def review_commands(source: Path, systems: Path, work: Path) -> list[list[str]]:
    """Arguments of ``llmrec train`` for what U-BERT reads: relations of the systems' users alone."""
    users = set(read_atomic(systems).users[USER])
    known = work / "ubert-packages.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as lines, known.open("w", encoding="utf-8") as written:
        for row in map(json.loads, lines):
            hidden = () if row["name"] in users else RELATIONS
            written.write(json.dumps({name: value for name, value in row.items() if name not in hidden}) + "\n")
    return ubert.preparation(DATA.name, known, work, words=True)


def ubert_rating(window: Window, rows: Rows) -> Columns:
    """The rating that the trained U-BERT expects; a package's synopsis is its review of what it builds on.

    A list has its user's synopsis as often as it has events in its history. An item has synopses of users who have it
    in the snapshot, in a random order, as training gives it to rows without times.
    """
    network, catalogue, snapshot = ubert.network(trained(DATA.name)), window.catalogue, window.snapshot
    texts = catalogue.data.user_texts("{synopsis}")
    reviews = ubert.Reviews(  # one for each user
        text=[texts[user] for user in catalogue.users],
        author=catalogue.users,
        moment=np.full(len(catalogue.users), NEVER),
    )
    events = np.diff(window.offsets)[:, None]
    of_user = np.where(np.arange(network.user_reviews) < events, window.user[:, None], -1)
    items, order = np.arange(len(catalogue.items)), np.random.default_rng(0).permutation(len(snapshot))
    found = newest_before(items, np.full(len(items), len(snapshot)), snapshot.item, order, network.item_reviews)
    return network.column(window, rows, reviews, of_user, np.where(found >= 0, snapshot.user[found], -1))
