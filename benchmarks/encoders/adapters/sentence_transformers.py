"""sentence-transformers, with PyTorch or with its ONNX backend."""

from __future__ import annotations

from typing import Any

import numpy as np

IMPORTS = ("sentence_transformers",)
PACKAGES = ("sentence-transformers", "torch", "transformers", "onnxruntime")


class SentenceTransformers:
    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, texts: list[str]) -> np.ndarray:
        # It sorts by length and pads batches of 32 by itself. As a tensor, since numpy has no bfloat16.
        vectors = self._model.encode(texts, batch_size=32, convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().cpu().numpy()

    def encode_one(self, text: str) -> np.ndarray:
        return self.encode([text])[0]


def load(options: dict[str, Any]) -> SentenceTransformers:
    import torch
    from sentence_transformers import SentenceTransformer

    if options["backend"] == "onnx":
        arguments = {"provider": "CPUExecutionProvider", "file_name": "onnx/model.onnx"}
        model = SentenceTransformer(options["onnx"], backend="onnx", device="cpu", model_kwargs=arguments)
    else:
        arguments = {"dtype": getattr(torch, options["dtype"])}
        model = SentenceTransformer(options["model"], device="cpu", model_kwargs=arguments)
    model.max_seq_length = options["max_tokens"]
    return SentenceTransformers(model)
