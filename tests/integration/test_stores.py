"""SQLite, Redis and PostgreSQL as online stores: the same numbers from all, and no vector of an old model."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from integration.host import Repo, StepError
from integration.test_engines import ITEMS as ITEMS_OF_A_THOUSAND_ROWS
from integration.test_engines import thousand_rows

pytestmark = pytest.mark.feast

AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
WHOLE = ("2025-01-01", "2026-03-01")
TITLES = ["red web server", "green font", None, "fast python library", " ", "small mail client", "green font"]
ITEMS = [f"i{number}" for number in range(len(TITLES))]
COLUMNS = {
    "item": [*ITEMS, "unknown"],
    "title": [*TITLES, None],
    "note": ["old tool", None, None, "x", "", "y", None, None],
    "query": ["red web", "font", "red", None, "web", "", "font", "red"],
}
OTHERS = [
    "our sqlite",
    "redis",
    "redis that keeps dropped rows",
    "our postgres",
]  # the others are these with another search


def _items() -> list[dict[str, Any]]:
    rows = zip(ITEMS, TITLES, COLUMNS["note"], strict=False)
    return [{"item": item, "title": title, "note": note, "at": AT} for item, title, note in rows]


def _live(repo: Repo) -> dict[str, Any]:
    """What is read at each stage of a repo's life: materialized, over HTTP, model changed, materialized again."""
    seen = {}
    repo.export()
    repo.declare()
    repo.write_items(_items())
    repo.feast("apply")
    repo.feast("materialize", *WHOLE)
    seen["materialized"] = repo.call("store_steps:read_all", columns=COLUMNS)
    seen["over HTTP"] = repo.call("store_steps:read_all", columns=COLUMNS, over_http=True)
    repo.export(seed=1)
    repo.feast("apply")
    seen["model changed"] = repo.call("store_steps:read_all", columns=COLUMNS)
    repo.feast("materialize", *WHOLE)
    seen["materialized again"] = repo.call("store_steps:read_all", columns=COLUMNS)
    return seen


@pytest.fixture(scope="module")
def reference(new_repo: Callable[..., Repo]) -> dict[str, Any]:
    return _live(new_repo("sqlite"))


@pytest.fixture(scope="module", params=OTHERS)
def seen(request: pytest.FixtureRequest, new_repo: Callable[..., Repo], online_store: Any) -> dict[str, Any]:
    return _live(new_repo("store", online_store=online_store(request.param)))


def _as_stored(answers: dict[str, dict[str, list[Any]]]) -> Any:
    """Numbers as float32, so that equal means equal bits; vectors as tuples."""

    def value(found: Any) -> Any:
        if isinstance(found, float | list):
            return np.asarray(found, np.float32).tobytes()
        return found

    return {
        name: {key: [value(v) for v in values] for key, values in answer.items()} for name, answer in answers.items()
    }


def test_stored_on_demand_and_compared_values_are_bit_equal_to_those_of_sqlite(
    seen: dict[str, Any], reference: dict[str, Any]
) -> None:
    for stage in ("materialized", "materialized again"):
        assert _as_stored(seen[stage]) == _as_stored(reference[stage])
    vectors = reference["materialized"]["stored"]["item_text_embedding"]
    assert [item for item, vector in zip(COLUMNS["item"], vectors, strict=True) if vector is None] == [
        "i2",
        "i4",
        "unknown",
    ]
    assert vectors != reference["materialized again"]["stored"]["item_text_embedding"]


def test_values_over_http_are_bit_equal(seen: dict[str, Any]) -> None:
    assert _as_stored(seen["over HTTP"]) == _as_stored(seen["materialized"])


def test_a_thousand_rows_are_the_same_in_every_store_and_in_training(
    new_repo: Callable[..., Repo], online_store: Any
) -> None:
    items = [f"i{number}" for number in range(ITEMS_OF_A_THOUSAND_ROWS)]
    columns = {"item": items, "title": items, "note": items, "query": items}
    labels = [{"item": item, "event_timestamp": "2026-02-01T00:00:00+00:00"} for item in items]
    stored: dict[str, list[Any]] = {}
    for name in ("sqlite", "our sqlite", "our redis", "our postgres"):
        repo = new_repo("thousand", online_store=online_store(name))
        with (repo.folder / "feature_store.yaml").open("a") as file:
            file.write("batch_engine: {type: llmrec_plugin.feast.engine.LLMComputeEngine}\n")
        repo.export(dims=32, max_tokens=64)
        repo.declare(dims=32, max_tokens=64)
        repo.write_items(thousand_rows())
        repo.feast("apply")
        repo.feast("materialize", *WHOLE, "--views", "item_text_embedding")
        over_http = repo.call("store_steps:read_all", columns=columns, over_http=True)
        historical = repo.historical(["item_text_embedding:item_text_embedding"], labels)
        stored[name] = _bits(repo.vectors(items))
        assert stored[name] == _bits(over_http["stored"]["item_text_embedding"])
        assert stored[name] == _bits([row["item_text_embedding"] for row in historical])
    assert len({tuple(vectors) for vectors in stored.values()}) == 1
    assert len(set(stored["sqlite"])) > 800


def _bits(vectors: list[Any]) -> list[bytes | None]:
    return [None if vector is None else np.asarray(vector, np.float32).tobytes() for vector in vectors]


def test_after_a_change_of_the_model_no_old_vector_is_read(seen: dict[str, Any]) -> None:
    nothing = [None] * len(COLUMNS["item"])
    changed = seen["model changed"]
    assert changed["stored"]["item_text_embedding"] == nothing
    assert changed["similarity"]["query_item_similarity"] == nothing
    assert changed["together"]["title"] == seen["materialized"]["together"]["title"]
    # Computed from the request, by the new model.
    assert changed["on demand"] == seen["materialized again"]["on demand"] != seen["materialized"]["on demand"]


# ---- what stores do with times and lengths


@pytest.mark.parametrize(
    ("store", "kept"),
    [
        ("our sqlite", {"older later": "second", "same time": "second", "newer later": "second"}),
        ("our postgres", {"older later": "second", "same time": "second", "newer later": "second"}),
        ("our redis", {"older later": "first", "same time": "first", "newer later": "second"}),
    ],
)
def test_of_values_written_out_of_order_redis_keeps_the_newest_and_others_the_last(
    new_repo: Callable[..., Repo], online_store: Any, store: str, kept: dict[str, str]
) -> None:
    assert new_repo("times", online_store=online_store(store)).call("store_steps:write_out_of_order") == kept


@pytest.mark.parametrize("conn_type", ["singleton", "pool"])
def test_connections_that_postgres_closed_are_replaced_and_none_is_lost(
    new_repo: Callable[..., Repo], online_store: Any, conn_type: str
) -> None:
    repo = new_repo("hung_up", online_store={**online_store("our postgres"), "conn_type": conn_type, "max_conn": 2})
    found = repo.call("store_steps:read_after_the_server_hung_up", times=4)
    assert found == ["title of ('here',)"] * 8


def test_feasts_own_postgres_store_uses_a_closed_connection_for_ever(
    new_repo: Callable[..., Repo], online_store: Any
) -> None:
    repo = new_repo("hung_up", online_store=online_store("postgres"))
    with pytest.raises(StepError, match=r"terminating connection|connection is closed"):
        repo.call("store_steps:read_after_the_server_hung_up", times=2)


def test_a_store_needs_its_own_client_alone(new_repo: Callable[..., Repo]) -> None:
    clients = {
        "llmrec_plugin.feast": [],
        "llmrec_plugin.feast.sqlite": [],
        "llmrec_plugin.feast.redis": ["redis"],
        "llmrec_plugin.feast.postgres": ["psycopg"],
    }
    for client in ("redis", "psycopg"):
        pytest.importorskip(client, reason=f"needs the client {client!r}")
    loaded = new_repo("clients").call("store_steps:clients_loaded_with", fresh=True, modules=list(clients))
    assert loaded == clients


# ---- on-demand views and Feast's server

SLOW = """
from feast import RequestSource
from feast.on_demand_feature_view import on_demand_feature_view

asked = RequestSource(
    name="asked", schema=[Field(name="tell", dtype=String), Field(name="wait_for", dtype=String)]
)

@on_demand_feature_view(sources=[asked], schema=[Field(name="slow", dtype=Float64)], mode="python")
def slow(inputs: dict) -> dict:
    import time
    from pathlib import Path

    if Path(inputs["tell"][0]).parent.is_dir() and inputs["tell"][0] != "hello world":
        Path(inputs["tell"][0]).touch()
        while not Path(inputs["wait_for"][0]).exists():
            time.sleep(0.01)
    return {"slow": [1.0] * len(inputs["tell"])}
"""


@pytest.mark.parametrize(("store", "answers", "timeout"), [("our redis", True, 60), ("redis", False, 2)])
def test_our_redis_store_answers_while_an_on_demand_view_computes_and_feasts_does_not(
    new_repo: Callable[..., Repo], online_store: Any, store: str, answers: bool, timeout: float
) -> None:
    repo = new_repo("slow", online_store=online_store(store))
    repo.export()
    repo.declare(extra=SLOW)
    repo.feast("apply")
    assert repo.call("store_steps:block_the_server", timeout=timeout) is answers, (
        "upstream computes on-demand views off its event loop: drop `async_supported` of LLMRecRedisOnlineStore"
    )
