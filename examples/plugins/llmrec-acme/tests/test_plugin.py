"""What is particular to this plugin; test_conformance.py has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from llmrec_acme import plugin


def test_the_feature_keeps_a_third_of_the_dimensions() -> None:
    [feature] = plugin.llmrec_register_features()
    assert feature.columns == ("synopsis",)
    assert (feature.dims, feature.reduction) == (128, "prefix")


def test_the_model_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACME_MODELS", str(tmp_path))
    [model] = plugin.llmrec_register_models()
    assert model.source == f"path:{tmp_path / 'acme-tiny'}"
