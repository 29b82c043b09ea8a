"""Acme's plugin, tested as its authors would: installed, and through public names only."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
from llmrec_acme import plugin


def test_the_installed_package_names_the_plugin() -> None:
    [entry_point] = [item for item in metadata.entry_points(group="llmrec_plugin") if item.name == "acme"]
    assert entry_point.load() is plugin
    assert entry_point.dist is not None
    assert (entry_point.dist.name, entry_point.dist.version) == ("llmrec-acme", "2.3.0")


def test_the_feature_keeps_a_third_of_the_dimensions() -> None:
    [feature] = plugin.llmrec_register_features()
    assert feature.columns == ("synopsis",)
    assert (feature.dims, feature.reduction, feature.normalize) == (128, "prefix", True)


def test_the_model_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACME_MODELS", str(tmp_path))
    [model] = plugin.llmrec_register_models()
    assert model.source == f"path:{tmp_path / 'acme-tiny'}"
