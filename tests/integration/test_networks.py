"""Networks over columns, through Feast: a sequence of ids, an adaptor over an encoder, a number of several inputs."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import Repo
from integration.versions import FEAST
from tiny import WORDS

pytestmark = pytest.mark.feast

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LABEL = "2026-06-01"
KINDS = ["history", "adaptor", "score"]

FEATURES = """
from feast.types import Array, Float32, Int64

from llmrec_plugin import NetworkFeature

user = Entity(name="user", join_keys=["user"])
user_rows = FeatureView(
    name="user_rows",
    entities=[user],
    ttl=timedelta(days=36_500),
    schema=[
        Field(name="user", dtype=String),
        Field(name="events", dtype=Array(String)),
        Field(name="key", dtype=String),
        Field(name="reviews", dtype=Array(Float32)),
        Field(name="price", dtype=Float64),
    ],
    source=FileSource(name="users", path="data/users.parquet", timestamp_field="event_timestamp"),
)
item_title = EmbeddingFeature(name="item_title", entity="item", text="{title}", **model)
item_vector = NetworkFeature(
    name="item_vector", entity="item", model="adaptor", inputs={"vector": item_title}, dims=8, metric="cosine",
    status=True, description="what it is about",
)
sequence = dict(model="history", inputs={"history": "events"}, dims=8, metric="cosine", status=True)
user_vector = NetworkFeature(name="user_vector", entity="user", storage="float16", **sequence)
session_vector = NetworkFeature(name="session_vector", entity=None, **sequence)
user_score = NetworkFeature(
    name="user_score", entity="user", model="score", inputs={"user": "key", "reviews": "reviews", "price": "price"},
    dims=None, metric=None, on_empty="zeros", status=True,
)
pair = NetworkFeature(
    name="pair", entity=None, model="score", inputs={"user": "key", "reviews": "reviews", "price": "price"},
    dims=None, metric=None,
)
stored_pair = NetworkFeature(
    name="stored_pair", entity=None, model="score",
    inputs={"user": "key", "reviews": "reviews", "price": "user_score"}, dims=None, metric=None, status=True,
)
session_item_similarity = SimilarityFeature(
    name="session_item_similarity", left="session_vector", right="item_vector", metric="cosine", status=True
)
"""

USERS: list[dict[str, Any]] = [
    {"events": ["i1"], "key": "u1", "reviews": [0.5, 1.0, -1.0, 0.0], "price": 1.5},
    {"events": ["i2", "i9", "i3"], "key": "u2", "reviews": [0.25] * 8, "price": 0.0},
    {"events": [f"i{1 + number % 20}" for number in range(30)], "key": "u3", "reviews": [1.0] * 40, "price": -2.0},
    {"events": ["new", "i4", None, "i5"], "key": "u1", "reviews": [0.1] * 4, "price": 7.25},
    {"events": ["new"], "key": "stranger", "reviews": [0.1] * 4, "price": 1.0},
    {"events": None, "key": None, "reviews": None, "price": None},
    {"events": [], "key": "u2", "reviews": [], "price": 1.0},
    {"events": ["i7", "i8"], "key": "u2", "reviews": [0.1] * 5, "price": 1.0},  # five numbers are no vectors of four
    {"events": ["i7", "i8"], "key": "u2", "reviews": [0.1, float("nan"), 0.1, 0.1], "price": 1.0},
    {"events": ["i7"], "key": "u2", "reviews": [0.1] * 4, "price": float("inf")},
]
VECTOR_STATUSES = ["ok"] * 4 + ["empty"] * 3 + ["ok"] * 3
SCORE_STATUSES = ["ok"] * 4 + ["empty"] * 3 + ["invalid"] * 3
TITLES = [f"{a} {b}" for a in WORDS[:3] for b in WORDS[4:7]] + [None]
USER = ["user_vector:user_vector", "user_vector:user_vector_status", "user_score:user_score"]
SCORE_STATUS = "user_score:user_score_status"
ITEM = ["item_vector:item_vector", "item_vector:item_vector_status"]
SHARE = {"type": "llmrec_plugin.feast.engine.LLMComputeEngine", "max_invalid_share": 0.5}


def columns_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as a request has them: Feast takes no empty list, and none that begins with or holds a null."""

    def sendable(value: Any) -> Any:
        return [item for item in value if item is not None] or None if isinstance(value, list) else value

    return [{name: sendable(value) for name, value in row.items()} for row in rows]


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    pytest.importorskip("torch")
    repo = new_repo("networks")
    path = repo.folder / "feature_store.yaml"
    provider = "provider: llmrec_plugin.feast.provider.LLMRecProvider"
    path.write_text(path.read_text().replace("provider: local", provider) + f"batch_engine: {json.dumps(SHARE)}\n")
    repo.export()
    artifacts = str(repo.root / "home" / "artifacts")
    repo.call("network_steps:export_networks", where=str(repo.root / "trained"), artifacts=artifacts, kinds=KINDS)
    shutil.rmtree(repo.root / "trained")
    repo.declare(extra=FEATURES, publish=', sources={"stored_pair": [user_rows]}')
    at = [START + datetime.timedelta(hours=number) for number in range(len(TITLES) + len(USERS))]
    repo.write_items({"item": f"i{n}", "title": title, "at": at[n]} for n, title in enumerate(TITLES))
    table = pa.table(
        {
            "user": [f"u{number}" for number in range(len(USERS))],
            "events": pa.array([row["events"] for row in USERS], pa.list_(pa.string())),
            "key": pa.array([row["key"] for row in USERS], pa.string()),
            "reviews": pa.array([row["reviews"] for row in USERS], pa.list_(pa.float32())),
            "price": pa.array([row["price"] for row in USERS], pa.float64()),
            "event_timestamp": pa.array(at[: len(USERS)], pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, repo.folder / "data" / "users.parquet")
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    return repo


@pytest.fixture(scope="module")
def batch(repo: Repo) -> dict[str, list[Any]]:
    users = repo.online([*USER, SCORE_STATUS], [{"user": f"u{number}"} for number in range(len(USERS))])
    items = repo.online(ITEM, [{"item": f"i{number}"} for number in range(len(TITLES))])
    return users | items


def test_rows_have_values_statuses_and_types(batch: dict[str, list[Any]]) -> None:
    assert batch["user_vector_status"] == VECTOR_STATUSES
    assert batch["user_score_status"] == SCORE_STATUSES
    assert batch["item_vector_status"] == ["ok"] * (len(TITLES) - 1) + ["empty"]
    assert [value is None for value in batch["user_vector"]] == [status != "ok" for status in VECTOR_STATUSES]
    assert {len(bytes.fromhex(value)) for value in batch["user_vector"] if value} == {16}  # float16
    assert batch["user_score"][4:7] == [0.0, 0.0, 0.0]  # on_empty="zeros"
    assert batch["user_score"][7:] == [None] * 3
    assert len(set(batch["user_score"][:4])) == 4
    assert batch["item_vector"][-1] is None
    assert np.linalg.norm(batch["item_vector"][:-1], axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [1, 4, len(USERS)])
def test_on_demand_equals_batch_to_the_bit(repo: Repo, batch: dict[str, list[Any]], size: int) -> None:
    names = [name.replace(":", "_on_demand:").replace(":user_vector", ":user_vector_on_demand") for name in USER[:2]]
    answer = repo.online(
        [*names, "user_score_on_demand:user_score_on_demand"],
        columns_of(USERS),
        environ={"LLMREC_CACHE": str(repo.root / f"on-demand-{size}")},
        rows_per_request=size,
    )
    assert answer["user_vector_on_demand"] == batch["user_vector"]
    assert answer["user_vector_on_demand_status"] == VECTOR_STATUSES
    assert answer["user_score_on_demand"] == batch["user_score"]


def test_historical_equals_batch(repo: Repo, batch: dict[str, list[Any]]) -> None:
    environ = {"LLMREC_CACHE": str(repo.root / "historical")}
    rows = [{"user": f"u{number}", "event_timestamp": LABEL} for number in range(len(USERS))]
    found = repo.historical([*USER, SCORE_STATUS], rows, environ=environ)
    for name in ("user_vector", "user_vector_status", "user_score", "user_score_status"):
        assert [row[name] for row in found] == batch[name]
    rows = [{"item": f"i{number}", "event_timestamp": LABEL} for number in range(len(TITLES))]
    items = repo.historical(ITEM, rows, environ=environ)
    for row, vector in zip(items, batch["item_vector"], strict=True):
        # The encoder's own values may differ by rounding between batches.
        assert row["item_vector"] == (vector if vector is None else pytest.approx(vector, abs=1e-6))


def test_a_second_run_computes_nothing(repo: Repo) -> None:
    before = len(repo.runs())
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    again = {run.feature: run for run in repo.runs()[before:]}
    assert {"user_vector", "user_score", "item_vector"} <= again.keys()
    assert {run.computed for run in again.values()} == {0}
    assert again["user_vector"].texts == again["user_vector"].cached == 6  # two of the seven with a value are equal
    assert (again["user_score"].empty, again["user_score"].invalid) == (3, 3)


def test_a_session_is_compared_with_stored_items(repo: Repo, batch: dict[str, list[Any]]) -> None:
    items = [{"item": f"i{number}", "events": ["i4", "i5"]} for number in range(len(TITLES))]
    answer = repo.online(
        ["session_item_similarity:session_item_similarity", "session_item_similarity:session_item_similarity_status"],
        items,
    )
    [session] = repo.online(["session_vector:session_vector"], [{"events": ["i4", "i5"]}])["session_vector"]
    expected = [None if vector is None else float(np.dot(vector, session)) for vector in batch["item_vector"]]
    assert answer["session_item_similarity"] == [e if e is None else pytest.approx(e, abs=1e-6) for e in expected]
    assert answer["session_item_similarity_status"] == ["ok"] * (len(TITLES) - 1) + ["empty"]


def test_a_process_that_never_saw_the_repo_computes_the_same(
    repo: Repo, batch: dict[str, list[Any]], tmp_path: Path
) -> None:
    shutil.copy(repo.folder / "data" / "registry.db", tmp_path)
    configuration = {
        "project": "test",
        "provider": "local",
        "registry": str(tmp_path / "registry.db"),
        "online_store": {"type": "sqlite", "path": str(tmp_path / "none.db")},
        "entity_key_serialization_version": 3,
    }
    answer = repo.processes.call(
        "steps:read_online",
        folder=tmp_path,
        environ=repo.environ | {"LLMREC_CACHE": str(tmp_path / "cache")},
        features=["user_vector_on_demand:user_vector_on_demand", "item_vector_on_demand:item_vector_on_demand"],
        rows=[{"events": ["i2", "i9", "i3"], "title": title} for title in TITLES],
        configuration=configuration,
    )
    assert answer["user_vector_on_demand"] == [batch["user_vector"][1]] * len(TITLES)
    for got, expected in zip(answer["item_vector_on_demand"], batch["item_vector"], strict=True):
        assert got == (None if expected is None else pytest.approx(expected, abs=1e-6))


def test_a_pair_is_scored_from_what_is_stored(repo: Repo, batch: dict[str, list[Any]]) -> None:
    """Its key and reviews come from a raw view, its price is the stored score of another feature."""
    sent = [{**row, "price": score} for row, score in zip(USERS[:4], batch["user_score"], strict=False)]
    expected = repo.online(["pair:pair"], columns_of(sent))["pair"]
    rows = [{"user": f"u{number}"} for number in (0, 1, 2, 3, 99)]
    answer = repo.online(["stored_pair:stored_pair", "stored_pair:stored_pair_status"], rows)
    assert answer["stored_pair"] == [*expected, None]
    assert answer["stored_pair_status"] == ["ok"] * 4 + ["empty"]
    assert len({*expected, *batch["user_score"][:4]}) == 8
    labels = [{"user": f"u{number}", "event_timestamp": LABEL} for number in range(4)]
    assert [row["stored_pair"] for row in repo.historical(["stored_pair:stored_pair", USER[2]], labels)] == expected


def test_what_is_written_has_its_values_at_once(repo: Repo, batch: dict[str, list[Any]]) -> None:
    rows = [{"user": f"w{number}", "event_timestamp": LABEL, **USERS[number]} for number in (1, 5, 7)]
    repo.call("network_steps:write_users", rows=rows)
    answer = repo.online([*USER, SCORE_STATUS], [{"user": row["user"]} for row in rows])
    for name in ("user_vector", "user_vector_status", "user_score", "user_score_status"):
        assert answer[name] == [batch[name][number] for number in (1, 5, 7)]


def test_the_command_line_knows_networks(repo: Repo) -> None:
    rows = json.loads(repo.call("steps:command_line", arguments=["models", "--json"]))
    assert {"history", "adaptor", "score"} <= {row["model"] for row in rows if "none" not in row["current artifact"]}
    plans = {row["view"]: row for row in json.loads(repo.call("steps:command_line", arguments=["plan", "--json"]))}
    assert plans["user_vector"]["texts"] == plans["user_vector"]["cached"]
    arguments = ["plan", "user_vector", "user_score", "item_vector", "--start", "2025-01-01", "--json"]
    plans = json.loads(
        repo.call("steps:command_line", arguments=arguments, environ={"LLMREC_CACHE": str(repo.root / "plan")})
    )
    assert {row["view"]: row["compute"] for row in plans} == {"user_vector": 6, "user_score": 4, "item_vector": 9}
    assert all(row["tokens"] > 0 and row["seconds"] > 0 for row in plans)
    findings = json.loads(repo.call("steps:doctor"))
    errors = {finding["check"] for finding in findings if finding["level"] == "error"}
    assert errors <= (set() if FEAST >= (0, 67) else {"reads_while_materializing"})
