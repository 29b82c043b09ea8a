"""Exports the real default model. Apart from `steps.py`, because it needs torch and no Feast."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.export import export_generator, export_model
from llmrec_plugin.export.parity import parity_texts
from llmrec_plugin.systems.minilm import ALL_MINILM_L6_V2


def export_minilm(target_folder: str) -> str:
    """Puts all-minilm-l6-v2 into an artifact folder; returns the artifact's id.

    It is compared with PyTorch over a few texts alone: `tests/unit/export` has the comparison itself.
    """
    with mock.patch("llmrec_plugin.export.exporter.parity_texts", return_value=parity_texts()[::6]):
        return export_model(ALL_MINILM_L6_V2, ArtifactStore([Path(target_folder)])).id


def export_tiny_generator(where: str, artifacts: str, architecture: str, name: str | None = None) -> str:
    """Puts a tiny generator with random weights into an artifact folder; returns the artifact's id."""
    from tiny_generators import declare_generator, save_generator

    source = save_generator(Path(where) / architecture, architecture)
    model = declare_generator(source, architecture, name=name or architecture)
    return export_generator(model, ArtifactStore([Path(artifacts)])).id


def export_tiny_generators(where: str, artifacts: str, architectures: list[str]) -> list[str]:
    """The same for several, in one process: its imports take longer than the exports."""
    return [export_tiny_generator(where, artifacts, architecture) for architecture in architectures]
