"""The tiny models of `llmrec_plugin.testing`, and a generator without a graph."""

from __future__ import annotations

import tempfile
from pathlib import Path

from llmrec_plugin.artifacts import ArtifactStore, GeneratorArtifact
from llmrec_plugin.manifests import GeneratorManifest
from llmrec_plugin.testing.tiny import GOLDEN_TEXTS, WORDS, reference, tiny_tokenizer
from llmrec_plugin.testing.tiny import add_tiny_encoder as export_tiny

__all__ = ["GOLDEN_TEXTS", "WORDS", "add_generator", "export_tiny", "reference", "tiny_tokenizer"]


def add_generator(store: ArtifactStore, *, name: str = "writer", version: str = "1") -> GeneratorArtifact:
    """Adds a generator without a graph, for engines that need none."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artifact"
        folder.mkdir()
        manifest = GeneratorManifest(
            model=name,
            source={"declared": "test"},
            task="causal",
            max_tokens=64,
            vocab_size=2 + int(version),
            layers=1,
            kv_heads=1,
            head_dim=4,
            eos_token_ids=(1,),
            pad_token_id=0,
            files={},
        )
        (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
        added = store.add(folder)
    assert isinstance(added, GeneratorArtifact)
    return added
