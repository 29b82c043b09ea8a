"""Exports a writer for the prompts of the shipped systems. Apart from `steps.py`, because it needs torch."""

from __future__ import annotations

from pathlib import Path

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.export import export_generator


def export_writer(where: str, artifacts: str) -> str:
    """Puts a tiny generator with random weights and room for whole prompts into an artifact folder; returns its id."""
    from tiny_generators import declare_generator, save_generator

    source = save_generator(Path(where), "llama", max_position_embeddings=2048)
    model = declare_generator(source, "llama", name="writer", max_tokens=2048)
    return export_generator(model, ArtifactStore([Path(artifacts)])).id
