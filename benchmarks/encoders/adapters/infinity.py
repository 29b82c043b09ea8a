"""infinity in process, with its PyTorch or its ONNX engine; it sorts and batches by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

IMPORTS = ("infinity_emb",)
PACKAGES = ("infinity-emb", "torch", "transformers", "optimum", "onnxruntime")


class Infinity:
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(engine.astart())

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors, _tokens = self._loop.run_until_complete(self._engine.embed(sentences=texts))
        return np.stack(vectors)

    def encode_one(self, text: str) -> np.ndarray:
        return self.encode([text])[0]


def load(options: dict[str, Any]) -> Infinity:
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    common = {"device": "cpu", "dtype": "float32", "batch_size": 32, "model_warmup": False}
    if options["engine"] == "torch":
        arguments = EngineArgs(model_name_or_path=options["model"], engine="torch", **common)
    else:
        _name_the_graph_without_its_folder()
        arguments = EngineArgs(
            model_name_or_path=options["onnx"],
            engine="optimum",
            pooling_method="mean",
            onnx_disable_optimize=True,
            **common,
        )
    return Infinity(AsyncEmbeddingEngine.from_args(arguments))


def _name_the_graph_without_its_folder() -> None:
    """infinity passes the graph of a local folder with its full path, which optimum 2.1 does not find."""
    from infinity_emb.transformer.embedder import optimum

    optimum.get_onnx_files = lambda **_: Path("model.onnx")
