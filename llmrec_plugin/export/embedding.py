"""Many texts through one function from token ids to vectors: the graph, its reduced form, or PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.export.parity import Run, collate, ragged_batches
from llmrec_plugin.export.tokenization import encode
from llmrec_plugin.pipeline.batching import plan_batches
from llmrec_plugin.specs import EncoderModel

TOKEN_BUDGET = 512


@dataclass(frozen=True, kw_only=True)
class Embedder:
    """How texts of one model become inputs of its graph.

    Attributes:
        model: Gives maximum length and padding side.
        path: The exported ``tokenizer.json``.
        tokenizer: The transformers tokenizer it was made from.
        inputs: Names of the graph's inputs.
    """

    model: EncoderModel
    path: Path
    tokenizer: Any
    inputs: tuple[str, ...]

    def inputs_alone(self, texts: Sequence[str]) -> list[dict[str, np.ndarray]]:
        """The inputs of each text by itself, (1, length) int64 each; texts without any token are left out."""
        return [self._collate([encoding]) for encoding in self._encode(texts) if encoding.ids]

    def vectors(self, run: Run, texts: Sequence[str]) -> np.ndarray:
        """The vectors of `texts` in their order, (n, dims) float32; zeros for a text without any token."""
        encodings = self._encode(texts)
        found = np.zeros((len(texts), self.model.dims), np.float32)
        present = np.flatnonzero([len(encoding.ids) for encoding in encodings])
        for batch in plan_batches([len(encodings[row].ids) for row in present], TOKEN_BUDGET):
            rows = present[batch]
            found[rows] = run(self._collate([encodings[row] for row in rows]))
        return found

    def batching_difference(self, run: Run, texts: Sequence[str]) -> tuple[float, str]:
        """How much a text's vector depends on its batch, and the text for which that is most.

        Compared are each text alone and in batches of mixed lengths; the difference of the two vectors is taken per
        component, as a share of the vector's length.
        """
        encodings, texts = self._encode(texts), list(texts)
        present = [row for row, encoding in enumerate(encodings) if encoding.ids]
        differences = np.zeros(len(texts))
        for batch in ragged_batches(len(present)):
            rows = [present[index] for index in batch]
            together = run(self._collate([encodings[row] for row in rows]))
            for row, vector in zip(rows, together, strict=True):
                alone = run(self._collate([encodings[row]]))[0]
                length = max(float(np.linalg.norm(alone)), 1e-12)
                differences[row] = np.nan_to_num(np.abs(vector - alone).max() / length, nan=np.inf)
        worst = int(differences.argmax())
        return float(differences[worst]), texts[worst]

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        return encode(self.path, self.tokenizer, texts, self.model.max_tokens)

    def _collate(self, encodings: Sequence[Any]) -> dict[str, np.ndarray]:
        return collate(encodings, self.model, self.tokenizer.pad_token_id, self.inputs)
