"""ONNX Runtime as its examples use it: a session, a tokenizer, batches of 32 in the order of the texts."""

from __future__ import annotations

from typing import Any

import numpy as np

IMPORTS = ("onnxruntime", "transformers")
PACKAGES = ("onnxruntime", "transformers", "tokenizers")


class OnnxRuntime:
    def __init__(self, session: Any, tokenizer: Any, max_tokens: int, rows: int) -> None:
        self._session, self._tokenizer, self._max_tokens, self._rows = session, tokenizer, max_tokens, rows
        self._inputs = [value.name for value in session.get_inputs()]

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), self._rows):
            batch = self._tokenizer(
                texts[start : start + self._rows],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="np",
            )
            feeds = {name: batch[name].astype(np.int64) for name in self._inputs}
            vectors.append(self._session.run(["embedding"], feeds)[0])
        return np.concatenate(vectors)

    def encode_one(self, text: str) -> np.ndarray:
        return self.encode([text])[0]


def load(options: dict[str, Any]) -> OnnxRuntime:
    import onnxruntime
    from transformers import AutoTokenizer

    session = onnxruntime.InferenceSession(options["graph"], providers=["CPUExecutionProvider"])
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    return OnnxRuntime(session, tokenizer, options["max_tokens"], options["rows"])
