"""Tiny generators with random weights, exported as features use them, and PyTorch beside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from llmrec_plugin.artifacts import ArtifactStore, GeneratorArtifact


class Generators:
    """Exports on first use; names are architectures, and ``llama-plain`` for a graph whose attention is not fused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.artifact = lru_cache(self._artifact)
        self.open = lru_cache(self._open)
        self.network = lru_cache(self._network)

    def _weights(self, name: str) -> Path:
        from tiny_generators import save_generator

        folder = self._folder / "weights" / name.partition("-")[0]
        return folder if folder.exists() else save_generator(folder, folder.name)

    def _artifact(self, name: str) -> GeneratorArtifact:
        from tiny_generators import declare_generator

        from llmrec_plugin.export import generators
        from llmrec_plugin.export.wiring import NotFusedError

        def refuse(*_: Any, **__: Any) -> None:
            raise NotFusedError("asked for")

        with pytest.MonkeyPatch.context() as patch:
            if name.endswith("-plain"):
                patch.setattr(generators, "write_fused", refuse)
            architecture = name.partition("-")[0]
            model = declare_generator(self._weights(name), architecture, name=name)
            return generators.export_generator(model, ArtifactStore([self._folder / "artifacts"]))

    def _open(self, name: str) -> Any:
        from llmrec_plugin.runtime.generation.session import open_generator

        return open_generator(self.artifact(name), device="cpu", threads=1)

    def _network(self, name: str) -> Any:
        import transformers

        folder = self._weights(name)
        kind = "AutoModelForSeq2SeqLM" if name in ("t5", "bart") else "AutoModelForCausalLM"
        return getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()

    def reference(self, name: str, ids: list[int], **config: Any) -> list[int]:
        """What ``transformers.generate`` writes after one prompt."""
        import torch
        import transformers

        model = self.artifact(name).manifest
        network = self.network(name)
        network.generation_config = transformers.GenerationConfig(
            eos_token_id=list(model.eos_token_ids),
            pad_token_id=model.pad_token_id,
            decoder_start_token_id=model.decoder_start_token_id,
            **{"do_sample": False, **config},
        )
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            found = network.generate(prompt, attention_mask=torch.ones_like(prompt))[0].tolist()
        written = found[1 if model.task == "seq2seq" else len(ids) :]
        ends = [at for at, token in enumerate(written) if token in model.eos_token_ids]
        return written[: ends[0]] if ends else written


@pytest.fixture(scope="session")
def generators(tmp_path_factory: pytest.TempPathFactory) -> Generators:
    pytest.importorskip("optimum", reason="the export extra is not installed")
    import torch

    torch.set_num_threads(1)
    return Generators(tmp_path_factory.mktemp("generators"))


@pytest.fixture
def encode(generators: Generators) -> Callable[..., list[int]]:
    """The token ids that a model reads of a request."""
    from llmrec_plugin.runtime.generation.prompts import encode_request

    def ids(name: str, request: Any, max_new_tokens: int) -> list[int]:
        session = generators.open(name)
        manifest = session.artifact.manifest
        return encode_request(request, manifest, session._tokenizer, max_new_tokens).ids.tolist()

    return ids
