"""The registry in a database: what workers of a server share of it, and what they do when it goes away."""

from __future__ import annotations

import datetime
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from integration.host import Repo
from integration.spy import STARTED, Spy, until
from integration.versions import FEAST
from services.servers import PostgreSQL

pytestmark = pytest.mark.feast

AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
STORED = "item_text_embedding:item_text_embedding"
QUERY = "query_embedding:query_embedding"
REGISTRY = "registry: {path: data/registry.db, serve_features_while_materializing: true}"


_NOTE_CONNECTIONS = """
from feast import FeatureStore
from llmrec_plugin.feast import warmup
refresh, open_own = FeatureStore.refresh_registry, warmup.open_own_connections

def spying_refresh(store):
    refresh(store)
    with store.registry.read_engine.connect() as connection:
        note("connections", connection.exec_driver_sql("SELECT pg_backend_pid()").scalar())

def spying_open_own(store):
    registry = getattr(store, "_registry", None)
    note("inherited", 0 if registry is None else registry.read_engine.pool.checkedin())
    open_own(store)

FeatureStore.refresh_registry, warmup.open_own_connections = spying_refresh, spying_open_own
"""
# A worker that cannot read the registry tries for this long to do so.
_START_SOON = """
from llmrec_plugin.feast import warmup
warmup.SECONDS_AT_START = 3.0
"""


@pytest.fixture
def repo(
    postgres_server: PostgreSQL, online_store: Callable[[str], dict[str, Any]], new_repo: Callable[..., Repo]
) -> Repo:
    """A repo whose registry is in the PostgreSQL of its online store, with one item materialized."""
    settings = online_store("our postgres")
    made = new_repo("sql_registry", online_store=settings)
    configuration = made.folder / "feature_store.yaml"
    address = "{user}:{password}@{host}:{port}/{database}".format(**settings)
    registry = {
        "registry_type": "sql", "path": f"postgresql+psycopg://{address}", "cache_ttl_seconds": 1,
        "serve_features_while_materializing": True,
    }  # fmt: skip
    text = configuration.read_text()
    assert REGISTRY in text
    configuration.write_text(text.replace(REGISTRY, f"registry: {json.dumps(registry)}"))
    made.export()
    made.declare()
    Spy.plant(made)
    made.write_items([{"item": "a", "title": "red web", "at": AT}])
    made.feast("apply")
    made.feast("materialize", "2025-01-01", "2026-03-01", "--views", "item_text_embedding")
    return made


def add_to_workers(repo: Repo, lines: str) -> None:
    """Lets every worker of the repo's servers run these lines before its models are loaded."""
    with (repo.folder / "static_artifacts.py").open("a") as file:
        file.write(lines)


def test_o_workers_read_the_registry_over_connections_of_their_own(repo: Repo) -> None:
    add_to_workers(repo, _NOTE_CONNECTIONS)
    spy = Spy(repo)
    with spy.server(workers=2):
        until(lambda: all(len(lines) > 1 for lines in spy.lines("connections").values()))
    one, other = (set(lines) for lines in spy.lines("connections").values())
    assert not one & other
    if FEAST >= (0, 67):  # before, a server reads the registry in its workers alone
        assert list(spy.lines("inherited").values()) == [["1"], ["1"]], "upstream mended O: drop open_own_connections"


def test_a_worker_that_cannot_read_the_registry_starts_when_it_is_back_and_ends_no_server(
    repo: Repo, postgres_server: PostgreSQL
) -> None:
    add_to_workers(repo, _START_SOON)
    spy = Spy(repo)
    with spy.server(workers=2) as server:
        right, answer = server.columns([STORED], item=["a"]), server.columns([QUERY], query=["red web"])
        assert right["item_text_embedding"] != [None]
        postgres_server.crash()
        try:
            [worker, _] = spy.lines("warm")
            os.kill(int(worker[1:]), signal.SIGKILL)
            until(lambda: server.log().count("Application startup failed") == 1)
            for _ in range(4):  # the other worker has read the registry
                assert server.columns([QUERY], query=["red web"]) == answer
            assert server.ask([STORED], item=["a"])[0] == 500
        finally:
            postgres_server.restart()
        until(lambda: server.log().count(STARTED) == 3)
        for _ in range(8):
            assert server.columns([QUERY], query=["red web"]) == answer
            assert server.columns([STORED], item=["a"]) == right
        assert len(spy.lines("warm")) >= 3
    assert server.log().count("The registry cannot be read, and without it no model is loaded: OperationalError") > 1
