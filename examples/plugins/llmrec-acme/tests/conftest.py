"""A tiny encoder stands in for the real one, so tests need no weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest_plugins = ["llmrec_plugin.testing.fixtures"]


@pytest.fixture(scope="session", autouse=True)
def _stand_in(tiny_encoder: Callable[..., object]) -> None:
    tiny_encoder("all-minilm-l6-v2", dims=384, max_tokens=256)
