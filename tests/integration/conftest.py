"""Fixtures of the tests that cross Feast. Everything that imports it runs in processes of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from integration.host import Processes, Repo


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
