"""Redaction and noise through Feast: one value wherever it is read, each time in another process."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import Repo

from llmrec_plugin.keys import NoiseKey

pytestmark = pytest.mark.feast

SECRET = bytes(range(3, 35))
KEY_ID = NoiseKey(SECRET).id
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LABEL = "2026-06-01"

FEATURES = f"""
from feast.types import Array, Int64

from llmrec_plugin import GaussianNoise, HistoryEmbeddingFeature, Redaction

redaction = Redaction(email=True, phone=True, patterns=(("customer", "C-[0-9]{{6}}"),))
noise = GaussianNoise(clip_norm=1.0, epsilon=5.0, delta=1e-6, user="user_key", key_id="{KEY_ID}")
user = Entity(name="user", join_keys=["user"])
user_rows = FeatureView(
    name="user_rows",
    entities=[user],
    ttl=timedelta(days=36_500),
    schema=[
        Field(name="user", dtype=String),
        Field(name="user_key", dtype=Int64),
        Field(name="history_texts", dtype=Array(String)),
    ],
    source=FileSource(name="users", path="data/users.parquet", timestamp_field="event_timestamp"),
)
history = dict(entity="user", events="history_texts", order="newest_first", last_n=3, redact=redaction)
user_plain = HistoryEmbeddingFeature(name="user_plain", on_empty="zeros", **history, **model)
user_private = HistoryEmbeddingFeature(name="user_private", on_empty="zeros", noise=noise, **history, **model)
match = SimilarityFeature(
    name="match", left="user_private", right="item_text_embedding", metric="dot", status=True
)
"""

USERS: list[dict[str, Any]] = [
    {"history_texts": ["red web server", "blue fox"], "user_key": 1},
    {"history_texts": ["red web server", "blue fox"], "user_key": 2},  # the texts of the first
    {"history_texts": ["red ann@example.org", "web"], "user_key": 3},
    {"history_texts": ["red bob@example.org", "web"], "user_key": 3},  # the same user and, redacted, the same texts
    {"history_texts": None, "user_key": 4},
    {"history_texts": ["green game"], "user_key": None},
]
PLAIN, PRIVATE = "user_plain:user_plain", "user_private:user_private"


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    repo = new_repo("privacy")
    with (repo.folder / "feature_store.yaml").open("a") as stream:
        engine = {"type": "llmrec_plugin.feast.engine.LLMComputeEngine", "max_invalid_share": 0.5}
        stream.write(f"batch_engine: {json.dumps(engine)}\n")
    repo.export()
    repo.declare(extra=FEATURES)
    repo.write_items({"item": f"i{n}", "title": f"red web {n}", "at": START} for n in range(len(USERS)))
    table = pa.table(
        {
            "user": [f"u{number}" for number in range(len(USERS))],
            "user_key": pa.array([row["user_key"] for row in USERS], pa.int64()),
            "history_texts": pa.array([row["history_texts"] for row in USERS], pa.list_(pa.string())),
            "event_timestamp": pa.array([START] * len(USERS), pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, repo.folder / "data" / "users.parquet")
    repo.feast("apply")  # without the key
    key = repo.root / "noise.key"
    key.write_text(SECRET.hex() + "\n")
    repo.environ["LLMREC_NOISE_KEY"] = str(key)
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    return repo


@pytest.fixture(scope="module")
def online(repo: Repo) -> dict[str, list[Any]]:
    return repo.online([PLAIN, PRIVATE], [{"user": f"u{number}"} for number in range(len(USERS))])


def test_stored_vectors_are_redacted_and_private(online: dict[str, list[Any]]) -> None:
    plain, private = online["user_plain"], online["user_private"]
    assert plain[0] == plain[1]
    assert plain[2] == plain[3]
    assert private[0] != private[1]  # two users
    assert private[2] == private[3]
    assert not any(plain[4])
    assert np.linalg.norm(private[4]) > 0.5  # who has no history is not told
    assert private[5] is None  # nobody knows whose it is
    away = np.array(private[:5]) - np.array(plain[:5])
    assert 0.5 < away.std() / 1.96 < 1.6


def test_on_demand_and_historical_reads_give_the_stored_vectors(repo: Repo, online: dict[str, list[Any]]) -> None:
    rows = [row for row in USERS if row["user_key"]]
    answer = repo.online(
        ["user_private_on_demand:user_private_on_demand"], rows, environ={"LLMREC_CACHE": str(repo.root / "other")}
    )
    labels = [{"user": f"u{number}", "event_timestamp": LABEL} for number in range(len(USERS))]
    found = repo.historical([PRIVATE], labels, environ={"LLMREC_CACHE": str(repo.root / "third")})
    for expected, one, other in zip(online["user_private"], answer["user_private_on_demand"], found, strict=False):
        assert one == pytest.approx(expected, abs=1e-5)
        assert other["user_private"] == pytest.approx(expected, abs=1e-5)


def test_a_similarity_reads_the_private_vectors(repo: Repo, online: dict[str, list[Any]]) -> None:
    rows = [{"user": f"u{number}", "item": f"i{number}"} for number in range(len(USERS))]
    answer = repo.online(["match:match", "match:match_status", "item_text_embedding:item_text_embedding"], rows)
    assert answer["match_status"] == ["ok"] * 5 + ["empty"]
    for user, item, score in zip(
        online["user_private"][:5], answer["item_text_embedding"], answer["match"], strict=False
    ):
        assert score == pytest.approx(float(np.dot(user, item)), abs=1e-4)


def test_the_key_is_in_nothing_that_was_written(repo: Repo) -> None:
    for path in repo.root.rglob("*"):
        if path.is_file() and path.name != "noise.key":
            data = path.read_bytes()
            assert SECRET not in data, path
            assert SECRET.hex().encode() not in data, path
    assert KEY_ID.encode() in (repo.folder / "data" / "registry.db").read_bytes()


def test_without_the_key_nothing_is_computed(repo: Repo) -> None:
    with pytest.raises(Exception, match="LLMREC_NOISE_KEY is not set"):
        repo.online(["user_private_on_demand:user_private_on_demand"], USERS[:1], environ={"LLMREC_NOISE_KEY": ""})
