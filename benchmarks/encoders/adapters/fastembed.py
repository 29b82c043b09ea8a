"""fastembed with a local folder, through its custom models."""

from __future__ import annotations

from typing import Any

import numpy as np

IMPORTS = ("fastembed",)
PACKAGES = ("fastembed", "onnxruntime", "tokenizers")
NAME = "local/encoder"


class FastEmbed:
    def __init__(self, model: Any, rows: int) -> None:
        self._model, self._rows = model, rows

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.stack(list(self._model.embed(texts, batch_size=self._rows)))

    def encode_one(self, text: str) -> np.ndarray:
        return self.encode([text])[0]


def load(options: dict[str, Any]) -> FastEmbed:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model=NAME,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf=NAME),
        dim=options["dims"],
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding(NAME, specific_model_path=options["onnx"], cuda=False)
    return FastEmbed(model, options["rows"])
