"""The network in docs/how-to/networks.md is a plugin that works."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from samples import settings

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundSimilarity, bind
from llmrec_plugin.export import export_network
from llmrec_plugin.runtime.runner import Runner

PAGE = Path(__file__).parents[2] / "docs/how-to/networks.md"


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="the export extra is not installed")
    [code] = re.findall(r"^```python\n(# my_sessions\.py\n.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "my_sessions.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import my_sessions

    yield my_sessions
    del sys.modules["my_sessions"]


def test_the_page_s_plugin_is_trained_exported_and_served(plugin, tmp_path):
    plugin.train(tmp_path / "trained")
    store = ArtifactStore([tmp_path / "artifacts"])
    for model in plugin.models(str(tmp_path / "trained")):
        export_network(model, store)
    item, session, match = plugin.features("item")
    bound = BoundSimilarity(match, bind(session, store), bind(item, store))
    runner = Runner(settings(tmp_path, artifact_folders=store.folders))
    items = runner.compute(bound.right, {"item_key": ["lamp", "desk", "newer"]}, "batch")
    sessions = runner.compute(bound.left, {"clicks": [["lamp", "newer", "desk"], None]}, "on_demand")
    assert items.statuses == ["ok", "ok", "empty"]
    assert sessions.statuses == ["ok", "empty"]
    assert sessions.values[0] == pytest.approx(np.mean(items.values[:2], axis=0), abs=1e-6)
    runner.drain()
