"""The registry in a database that goes away, as does a worker of the server meanwhile."""

from __future__ import annotations

import datetime
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from integration.host import Repo
from integration.spy import Spy, until
from services.servers import PostgreSQL

pytestmark = pytest.mark.feast

AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
STORED = "item_text_embedding:item_text_embedding"
QUERY = "query_embedding:query_embedding"
REGISTRY = "registry: {path: data/registry.db, serve_features_while_materializing: true}"


def test_a_worker_that_cannot_read_the_registry_starts_when_it_is_back_and_ends_no_server(
    postgres_server: PostgreSQL, online_store: Callable[[str], dict[str, Any]], new_repo: Callable[..., Repo]
) -> None:
    settings = online_store("our postgres")
    repo = new_repo("registry_outage", online_store=settings)
    configuration = repo.folder / "feature_store.yaml"
    address = "{user}:{password}@{host}:{port}/{database}".format(**settings)
    registry = {
        "registry_type": "sql", "path": f"postgresql+psycopg://{address}", "cache_ttl_seconds": 1,
        "serve_features_while_materializing": True,
    }  # fmt: skip
    text = configuration.read_text()
    assert REGISTRY in text
    configuration.write_text(text.replace(REGISTRY, f"registry: {json.dumps(registry)}"))
    repo.export()
    repo.declare()
    Spy.plant(repo)
    with (repo.folder / "static_artifacts.py").open("a") as file:
        file.write("\nfrom llmrec_plugin.feast import warmup\nwarmup.SECONDS_AT_START = 3.0\n")  # or this takes longer
    repo.write_items([{"item": "a", "title": "red web", "at": AT}])
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2026-03-01", "--views", "item_text_embedding")
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
        until(lambda: server.log().count("Application startup complete") == 3)
        for _ in range(8):
            assert server.columns([QUERY], query=["red web"]) == answer
            assert server.columns([STORED], item=["a"]) == right
        assert len(spy.lines("warm")) >= 3
    assert server.log().count("The registry cannot be read, and without it no model is loaded: OperationalError") > 1
