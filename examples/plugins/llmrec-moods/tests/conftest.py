"""A tiny generator stands in for the real one, so tests need no weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest_plugins = ["llmrec_plugin.testing.fixtures"]


@pytest.fixture(scope="session", autouse=True)
def _stand_in(tiny_generator: Callable[..., object]) -> None:
    tiny_generator("moods-writer")
