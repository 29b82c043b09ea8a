"""Fixtures for tests of plugins. In ``conftest.py``: ``pytest_plugins = ["llmrec_plugin.testing.fixtures"]``.

Not loaded by itself: who installs llmrec-plugin to serve features has other tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmrec_plugin.artifacts import Artifact, ArtifactStore, GeneratorArtifact
from llmrec_plugin.registry import Catalogue
from llmrec_plugin.testing.declarations import collect
from llmrec_plugin.testing.network import refuse_network
from llmrec_plugin.testing.repos import FeastRepo


@pytest.fixture
def isolated_catalogue() -> Callable[[object], Catalogue]:
    """Gives the declarations of one plugin object, as if it alone were installed; see `Catalogue.failures`."""
    return lambda plugin: collect(plugin, "plugin_under_test")


@pytest.fixture(scope="session")
def llmrec_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home of exported models and cache that this process, and those it starts, use until the tests end."""
    folder = tmp_path_factory.mktemp("llmrec")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMREC_HOME", str(folder))
        patch.setenv("LLMREC_PROGRESS", "0")
        patch.setenv("LLMREC_DEVICE", "cpu")
        for name in ("LLMREC_ARTIFACTS", "LLMREC_CACHE", "LLMREC_TRAINING", "LLMREC_RUNTIME", "LLMREC_GENERATOR"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="session")
def tiny_encoder(llmrec_home: Path) -> Callable[..., Artifact]:
    """Makes a tiny encoder the current model of a name; see `llmrec_plugin.testing.tiny.add_tiny_encoder`."""
    from llmrec_plugin.testing.tiny import add_tiny_encoder  # loads onnx

    return lambda name="tiny", **options: add_tiny_encoder(_store(llmrec_home), name=name, **options)


@pytest.fixture(scope="session")
def tiny_generator(llmrec_home: Path) -> Callable[..., GeneratorArtifact]:
    """Makes a tiny generator the current model of a name; see `llmrec_plugin.testing.tiny.add_tiny_generator`."""
    from llmrec_plugin.testing.tiny import add_tiny_generator  # loads onnx

    return lambda name="tiny-writer", **options: add_tiny_generator(_store(llmrec_home), name=name, **options)


@pytest.fixture
def feast_repo(llmrec_home: Path, tmp_path: Path) -> Callable[[Iterable[Any], list[dict[str, Any]]], FeastRepo]:
    """Makes a Feast project of features and rows, applied, materialized and read; see `FeastRepo`."""
    return lambda features, rows: FeastRepo(tmp_path / "feast", tuple(features), rows)


@pytest.fixture
def no_network() -> Iterator[None]:
    """Lets the test fail where this process connects to another machine."""
    with refuse_network():
        yield


def _store(home: Path) -> ArtifactStore:
    return ArtifactStore([home / "artifacts"])
