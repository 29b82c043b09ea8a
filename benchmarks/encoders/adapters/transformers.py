"""transformers with PyTorch: `AutoModel`, masked mean, unit length, batches of similar length.

With batches of one text it is the reference: no padding, nothing of any library above it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

IMPORTS = ("torch", "transformers")
PACKAGES = ("transformers", "torch", "tokenizers")


class Transformers:
    def __init__(self, tokenizer: Any, model: Any, max_tokens: int, rows: int) -> None:
        self._tokenizer, self._model, self._max_tokens, self._rows = tokenizer, model, max_tokens, rows

    def encode(self, texts: list[str]) -> np.ndarray:
        import torch

        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        vectors = np.empty((len(texts), self._model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), self._rows):
            chosen = order[start : start + self._rows]
            batch = self._tokenizer(
                [texts[index] for index in chosen],
                padding=True,
                truncation=True,
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            with torch.inference_mode():
                tokens = self._model(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).to(tokens.dtype)
                means = (tokens * mask).sum(1) / mask.sum(1)
                vectors[chosen] = torch.nn.functional.normalize(means, dim=1).float().numpy()
        return vectors

    def encode_one(self, text: str) -> np.ndarray:
        return self.encode([text])[0]


def load(options: dict[str, Any]) -> Transformers:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    model = AutoModel.from_pretrained(options["model"], dtype=torch.float32).eval()
    return Transformers(tokenizer, model, options["max_tokens"], options["rows"])
