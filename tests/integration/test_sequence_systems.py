"""BERT4Rec and UniSRec through Feast: trained, exported, applied, materialized, fetched, and ranked with."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import HERE, Repo
from tiny import WORDS

pytestmark = pytest.mark.feast

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
TITLES = [f"{WORDS[number % 5]} {WORDS[5 + number // 5]}" for number in range(15)]

FEATURES = """
from feast.types import Array, Float32

from llmrec_plugin.systems import bert4rec, unisrec

user = Entity(name="user", join_keys=["user"])
user_rows = FeatureView(
    name="user_rows",
    entities=[user],
    ttl=timedelta(days=36_500),
    schema=[
        Field(name="user", dtype=String),
        Field(name="recent_items", dtype=Array(String)),
        Field(name="recent_item_vectors", dtype=Array(Float32)),
        Field(name="candidate_id", dtype=String),
    ],
    source=FileSource(name="users", path="data/users.parquet", timestamp_field="event_timestamp"),
)
session_items = bert4rec.sequence_embedding(dims=17)
user_items = bert4rec.sequence_embedding(dims=17, entity="user", status=True)
item_id = bert4rec.item_embedding(dims=17, status=True)
logit = bert4rec.similarity(session_items, item_id)
pair = bert4rec.candidate_score()

text = EmbeddingFeature(name="item_unisrec_text", entity="item", text="{title}", **model)
item_universal = unisrec.item_embedding(text, dims=16, status=True)
session_universal = unisrec.sequence_embedding(dims=16)
session_vectors = unisrec.vector_sequence_embedding(dims=16, name="session_vectors_embedding")
cosine = unisrec.similarity(session_universal, item_universal)
"""


def both(name: str) -> str:
    return f"{name}:{name}"


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    pytest.importorskip("torch", reason="torch comes with the extra 'export'")
    repo = new_repo("sequences")
    repo.export()
    return repo


@pytest.fixture(scope="module")
def trained(repo: Repo) -> dict[str, Any]:
    """The features of six items in a row, by PyTorch; the repo is applied and materialized."""
    found = repo.call(
        "sequence_steps:train_sequences",
        paths=[HERE.parent],
        where=str(repo.root / "trained"),
        artifacts=str(repo.root / "home" / "artifacts"),
        titles=TITLES,
    )
    repo.declare(extra=FEATURES, fields='Field(name="item_key", dtype=String),')
    keys, titles = [*found["keys"], "new"], [*TITLES, TITLES[6]]
    items = {"item": keys, "item_key": keys, "title": titles, "note": titles}
    times = pa.array([START] * len(keys), pa.timestamp("us", "UTC"))
    table = pa.table({**items, "event_timestamp": times, "created": times})
    pq.write_table(table, repo.folder / "data" / "items.parquet")
    histories = [found["history"], ["new", *found["history"]], ["new"], None]
    table = pa.table(
        {
            "user": [f"u{number}" for number in range(len(histories))],
            "recent_items": pa.array(histories, pa.list_(pa.string())),
            "recent_item_vectors": pa.array([found["vectors"]] * 4, pa.list_(pa.float32())),
            "candidate_id": pa.array([found["keys"][6]] * 4, pa.string()),
            "event_timestamp": pa.array([START] * 4, pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, repo.folder / "data" / "users.parquet")
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    return found


def test_users_are_stored_and_new_items_left_out_of_their_histories(repo: Repo, trained: dict[str, Any]) -> None:
    names = ["user_items_embedding:user_items_embedding", "user_items_embedding:user_items_embedding_status"]
    stored = repo.online(names, [{"user": f"u{number}"} for number in range(4)])
    assert stored["user_items_embedding_status"] == ["ok", "ok", "empty", "empty"]
    vectors = stored["user_items_embedding"]
    assert vectors[0] == vectors[1] == pytest.approx(trained["bert4rec_user"], abs=1e-5)
    assert vectors[2:] == [None, None]


def test_a_new_item_has_no_id_but_a_text(repo: Repo, trained: dict[str, Any]) -> None:
    rows = [{"item": key} for key in [*trained["keys"], "new"]]
    by_id, by_text = "item_id_embedding", "item_universal_embedding"
    names = [both(by_id), f"{by_id}:{by_id}_status", both(by_text), f"{by_text}:{by_text}_status"]
    stored = repo.online(names, rows)
    assert stored["item_id_embedding_status"] == ["ok"] * 15 + ["empty"]
    assert stored["item_universal_embedding_status"] == ["ok"] * 16
    np.testing.assert_allclose(stored["item_universal_embedding"][:15], trained["items"], atol=1e-5)
    assert stored["item_universal_embedding"][15] == pytest.approx(trained["items"][6], abs=1e-5)


def test_sessions_are_computed_from_the_request(repo: Repo, trained: dict[str, Any]) -> None:
    row = {
        "item": trained["keys"][6],
        "recent_items": trained["history"],
        "recent_item_vectors": trained["vectors"],
        "candidate_id": trained["keys"][6],
    }
    names = "session_items_embedding session_universal_embedding session_vectors_embedding".split()
    scores = "candidate_sequence_score sequence_item_score universal_item_score".split()
    answer = repo.online([both(name) for name in (*names, *scores)], [row])
    assert answer["session_items_embedding"][0] == pytest.approx(trained["bert4rec_user"], abs=1e-5)
    assert answer["session_universal_embedding"][0] == pytest.approx(trained["unisrec_user"], abs=1e-5)
    assert answer["session_vectors_embedding"][0] == pytest.approx(trained["unisrec_user"], abs=1e-5)
    assert answer["candidate_sequence_score"][0] == pytest.approx(trained["score"], abs=1e-4)
    assert answer["sequence_item_score"][0] == pytest.approx(trained["score"], abs=1e-4)
    item = np.array(trained["items"][6])
    cosine = float(item @ trained["unisrec_user"] / np.linalg.norm(item))
    assert answer["universal_item_score"][0] == pytest.approx(cosine, abs=1e-5)


def test_a_ranker_reads_them_as_any_other_feature(repo: Repo, trained: dict[str, Any]) -> None:
    pytest.importorskip("lightgbm", reason="the ranker's own package")
    keys = trained["keys"]
    starts = range(4, 12)
    rows, relevant = [], []
    for start in starts:
        history = keys[start : start - 4 : -1]
        for place, key in enumerate(keys):
            rows.append({"item": key, "recent_items": history})
            relevant.append(int(place == start + 1))
    features = [both("sequence_item_score"), both("universal_item_score")]
    orders = repo.call("ranker_steps:rank", features=features, rows=rows, relevant=relevant, group=15)
    hits = [start + 1 in order[:3] for start, order in zip(starts, orders, strict=True)]
    assert sum(hits) >= 6
