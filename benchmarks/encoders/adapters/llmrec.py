"""Ours: profile ``batch`` for many texts, ``online`` for one."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

IMPORTS = ("llmrec_plugin.runtime.encoder",)
PACKAGES = ("llmrec-plugin", "onnxruntime", "tokenizers")


class Llmrec:
    def __init__(self, artifact: Any, settings: Any, max_tokens: int) -> None:
        from llmrec_plugin.runtime.encoder import Encoder

        self._artifact, self._settings, self._max_tokens = artifact, settings, max_tokens
        self._batch = Encoder(artifact, settings, "batch")

    @cached_property
    def _online(self) -> Any:
        from llmrec_plugin.runtime.encoder import Encoder

        return Encoder(self._artifact, self._settings, "online")

    def encode(self, texts: list[str]) -> np.ndarray:
        return self._batch.encode(texts, max_tokens=self._max_tokens)[0]

    def encode_one(self, text: str) -> np.ndarray:
        return self._online.encode([text], max_tokens=self._max_tokens)[0][0]


def load(options: dict[str, Any]) -> Llmrec:
    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.settings import load_settings

    settings = load_settings()
    return Llmrec(
        ArtifactStore(settings.artifact_folders).current(options["artifact"]), settings, options["max_tokens"]
    )
