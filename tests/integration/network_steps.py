"""Exports networks. Apart from `steps.py`, because it needs torch."""

from __future__ import annotations

from pathlib import Path

from tiny_networks import declare_network

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.export import export_network


def export_networks(where: str, artifacts: str, kinds: list[str], seed: int = 0) -> dict[str, str]:
    """Puts networks with random weights into an artifact folder; returns their ids."""
    store = ArtifactStore([Path(artifacts)])
    models = [declare_network(Path(where, kind), kind, seed=seed) for kind in kinds]
    return {model.name: export_network(model, store).id for model in models}
