"""Fixtures of the tests that cross Feast. Everything that imports it runs in processes of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.host import SQLITE, Processes, Repo
from services.servers import MissingServiceError, PostgreSQL, Redis


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    server = Processes(tmp_path_factory.mktemp("steps"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def new_repo(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Repo]:
    """Makes an empty repo in a folder of its own."""

    def make(name: str = "root", online_store: dict[str, Any] = SQLITE, **environ: str) -> Repo:
        return Repo(tmp_path_factory.mktemp(name), processes, environ, online_store)

    return make


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    pytest.importorskip("redis", reason="needs the extra 'redis'")
    yield from _served(Redis, tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
    for server in _served(PostgreSQL, tmp_path_factory.mktemp("postgres")):
        server.execute("CREATE EXTENSION vector")
        yield server


def _served(kind: type[Any], folder: Path) -> Iterator[Any]:
    try:
        server = kind(folder)
    except MissingServiceError as exc:
        pytest.skip(str(exc))
    yield server
    server.stop()


STORES = {
    "sqlite": SQLITE,
    "our sqlite": {**SQLITE, "type": "llmrec_plugin.feast.sqlite.LLMRecSqliteOnlineStore"},
    "redis": {"type": "redis"},
    "redis that keeps dropped rows": {"type": "redis", "full_scan_for_deletion": False},
    "our redis": {"type": "llmrec_plugin.feast.redis.LLMRecRedisOnlineStore"},
    "postgres": {"type": "postgres", "vector_enabled": True},
    "our postgres": {"type": "llmrec_plugin.feast.postgres.LLMRecPostgreSQLOnlineStore"},
    "our postgres, indexed": {
        "type": "llmrec_plugin.feast.postgres.LLMRecPostgreSQLOnlineStore",
        "vector_index": "hnsw",
    },
}


@pytest.fixture(scope="session")
def online_store(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """Settings of an online store by its name in `STORES`, empty and used by nobody else; starts its server."""
    count = itertools.count()

    def settings(name: str) -> dict[str, Any]:
        chosen = STORES[name]
        if "redis" in name:
            server = request.getfixturevalue("redis_server")
            return {**chosen, "connection_string": f"127.0.0.1:{server.port},db={next(count)}"}
        if "postgres" in name:
            server = request.getfixturevalue("postgres_server")
            login = {"host": "127.0.0.1", "port": server.port, "user": "feast", "password": "unused"}
            schema = {"database": "feast", "db_schema": f"test{next(count)}", "sslmode": "disable"}
            return {**chosen, **login, **schema}
        return chosen

    return settings
