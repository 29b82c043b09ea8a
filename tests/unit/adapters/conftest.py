"""An environment in which adapters find the tiny encoder, as a user's process would."""

import numpy as np
import pytest

from llmrec_plugin.runtime import runner as runner_module
from llmrec_plugin.settings import load_settings


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path, tiny_folder):
    monkeypatch.setenv("LLMREC_ARTIFACTS", str(tiny_folder))
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLMREC_DEVICE", "cpu")
    monkeypatch.setenv("LLMREC_THREADS", "1")


@pytest.fixture
def vectors_of(tiny_folder):
    """What Feast's views hold for texts, (n, 8) float32."""
    from samples import embedding

    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.binding import bind

    def compute(texts):
        bound = bind(embedding(), ArtifactStore([tiny_folder]))
        computed = runner_module.runner_for(load_settings()).compute(bound, {"title": texts}, "batch", quiet=True)
        return np.stack(computed.values)

    return compute
