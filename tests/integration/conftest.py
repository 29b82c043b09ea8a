"""Fixtures of the tests that cross Feast. Everything that imports it runs in processes of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.host import Processes, Repo
from services.servers import MissingServiceError, PostgreSQL, Redis


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    server = Processes(tmp_path_factory.mktemp("steps"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def new_repo(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Repo]:
    """Makes an empty repo in a folder of its own."""

    def make(name: str = "root", **environ: str) -> Repo:
        return Repo(tmp_path_factory.mktemp(name), processes, environ)

    return make


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    pytest.importorskip("redis", reason="needs the extra 'redis'")
    yield from _served(Redis, tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    pytest.importorskip("psycopg", reason="needs the extra 'postgres'")
    yield from _served(PostgreSQL, tmp_path_factory.mktemp("postgres"))


def _served(kind: type[Any], folder: Path) -> Iterator[Any]:
    try:
        server = kind(folder)
    except MissingServiceError as exc:
        pytest.skip(str(exc))
    yield server
    server.stop()
