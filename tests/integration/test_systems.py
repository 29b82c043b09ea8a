"""The features of GENRE and KAR through Feast: cold users, and knowledge that no earlier label sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import HERE, Repo
from tiny import WORDS

from llmrec_plugin.systems.genre import cold_history
from llmrec_plugin.systems.kar import knowledge_rows, training_rows

pytestmark = pytest.mark.feast

FEATURES = """
from feast.types import Array

from llmrec_plugin import EncoderModel
from llmrec_plugin.systems.genre import user_profile
from llmrec_plugin.systems.kar import knowledge_embedding, user_preferences

user = Entity(name="user", join_keys=["user"])
user_rows = FeatureView(
    name="user_rows",
    entities=[user],
    ttl=timedelta(days=36_500),
    schema=[
        Field(name="user", dtype=String),
        Field(name="history", dtype=Array(String)),
        Field(name="cold_history", dtype=Array(String)),
        Field(name="knowledge_history", dtype=Array(String)),
        Field(name="about", dtype=String),
    ],
    source=FileSource(name="users", path="data/users.parquet", timestamp_field="event_timestamp"),
)
encoder = EncoderModel(
    name="tiny", source="path:none", pooling="mean", normalize=True, dims=8, max_tokens=16, metric="cosine",
    rotation="pca",
)
(user_history_topics,) = user_profile(model="writer", topics=("red", "green", "blue"), max_items=2)
(user_cold_topics,) = user_profile(
    model="writer", topics=("red", "green"), columns={"history": "cold_history"}, name="user_cold", status=True
)
user_preference_text = user_preferences(model="writer", factors=("color", "speed"), max_new_tokens=24, fallback="none")
user_preference_embedding = knowledge_embedding(user_preference_text, encoder=encoder, dims=4)
"""
TEXT, VECTOR = "user_preference_text:user_preference_text", "user_preference_embedding:user_preference_embedding"


def events() -> pd.DataFrame:
    """Users u1 to u7, who interact as often as their number says, an hour apart."""
    rows = [
        (f"u{user}", f"{WORDS[user]} {WORDS[number + 10]}", number) for user in range(1, 8) for number in range(user)
    ]
    frame = pd.DataFrame(rows, columns=["user", "title", "hour"])
    return frame.assign(event_timestamp=pd.Timestamp("2026-01-01") + pd.to_timedelta(frame.pop("hour"), unit="h"))


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    pytest.importorskip("torch", reason="torch comes with the extra 'export'")
    repo = new_repo("systems")
    repo.export()
    repo.call(
        "systems_steps:export_writer",
        paths=[HERE.parent],
        where=str(repo.root / "writer"),
        artifacts=str(repo.root / "home" / "artifacts"),
    )
    repo.declare(extra=FEATURES)
    repo.write_items([{"item": "i", "title": "red", "at": pd.Timestamp("2026-01-01", tz="UTC")}])
    log = events()
    rows = knowledge_rows(log, entity="user", text="title", timestamp="event_timestamp")
    rows["history"] = [list(log.title[log.user == user])[::-1] for user in rows["user"]]
    rows["cold_history"] = rows["history"].map(cold_history)
    texts = pa.list_(pa.string())
    table = pa.table(
        {
            "user": pa.array(rows["user"], pa.string()),
            **{name: pa.array(list(rows[name]), texts) for name in ("history", "cold_history", "knowledge_history")},
            "about": pa.nulls(len(rows), pa.string()),
            "event_timestamp": pa.array(rows["event_timestamp"], pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, repo.folder / "data" / "users.parquet")
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    return repo


@pytest.fixture(scope="module")
def online(repo: Repo) -> dict[str, list[Any]]:
    names = ["user_history_topics", "user_cold_topics", "user_cold_topics_status"]
    features = [f"{name.removesuffix('_status')}:{name}" for name in names]
    return repo.online([*features, TEXT, VECTOR], [{"user": f"u{number}"} for number in range(1, 8)])


def test_only_cold_users_have_a_value_of_what_reads_cold_histories(online: dict[str, list[Any]]) -> None:
    assert online["user_cold_topics_status"] == ["ok"] * 5 + ["empty"] * 2  # the last have six and seven items
    assert [bool(topics) for topics in online["user_cold_topics"]] == [True] * 5 + [False] * 2


def test_every_user_has_topics_of_the_vocabulary_and_knowledge(online: dict[str, list[Any]]) -> None:
    assert all(tags and set(tags) <= {"red", "green", "blue"} for tags in online["user_history_topics"])
    assert all(online["user_preference_text"])
    vectors = online["user_preference_embedding"]
    assert all(len(vector) == 4 for vector in vectors)
    assert len({tuple(vector) for vector in vectors}) > 1


def test_a_label_finds_knowledge_only_if_it_is_later_than_all_that_the_knowledge_read(
    repo: Repo, online: dict[str, list[Any]]
) -> None:
    log = events()
    learned = set(training_rows(log, entity="user", timestamp="event_timestamp").index)
    rows = [
        {"user": user, "event_timestamp": f"{at}+00:00"} for user, at in zip(log.user, log.event_timestamp, strict=True)
    ]
    answers = {answer["row"]: answer for answer in repo.historical([TEXT, VECTOR], rows)}
    assert set(answers) == learned  # the file store leaves out rows for which there is nothing yet
    stored = {f"u{number}": text for number, text in enumerate(online["user_preference_text"], 1)}
    for row, answer in answers.items():
        assert answer["user_preference_text"] == stored[log.user[row]]
        assert len(answer["user_preference_embedding"]) == 4
