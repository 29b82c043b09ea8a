"""Token vectors of a frozen encoder on disk, so that every epoch runs the decoder alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llmrec_plugin.export.toolchain import require
from llmrec_plugin.pipeline.batching import pad, plan_batches

TOKEN_BUDGET = 4_096


@dataclass(frozen=True)
class StateStore:
    """Token vectors of n texts.

    Attributes:
        values: All of them, one text after the other, (tokens, dims) float16, read from disk when used.
        ends: Where each text ends, (n,) int64.
    """

    values: np.ndarray
    ends: np.ndarray

    def batch(self, rows: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of some texts, (rows, longest, dims) float32, zero behind a text, and the mask, int64."""
        starts = np.concatenate([[0], self.ends])
        lengths = [int(self.ends[row] - starts[row]) for row in rows]
        states = np.zeros((len(rows), max(lengths), self.values.shape[1]), dtype=np.float32)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            states[index, :length] = self.values[starts[row] : starts[row] + length]
        mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
        return states, mask.astype(np.int64)

    def pooled(self) -> np.ndarray:
        """The mean of each text's vectors, scaled to unit norm, (n, dims) float32."""
        means = np.empty((len(self.ends), self.values.shape[1]), dtype=np.float32)
        start = 0
        for row, end in enumerate(self.ends):
            means[row] = self.values[start:end].astype(np.float32).mean(0)
            start = end
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def encode_states(
    network: Any,
    texts: Sequence[np.ndarray],
    folder: Path,
    identity: str,
    *,
    bfloat16: bool = False,
    progress: bool = True,
) -> StateStore:
    """The token vectors that the encoder of `network` gives, computed unless the folder holds them.

    Args:
        network: A BART.
        texts: Token ids of each text, special tokens included.
        folder: Where to keep them: two bytes per token and dimension.
        identity: Hash of the encoder and the texts; another one is computed anew.
        bfloat16: Whether products are computed in bfloat16.
        progress: Whether to show a bar.
    """
    torch = require("torch")
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(ids) for ids in texts], dtype=np.int64)
    ends = np.cumsum(lengths)
    path, done = folder / "states.npy", folder / "states.txt"
    if done.is_file() and done.read_text() == identity:
        return StateStore(np.load(path, mmap_mode="r"), ends)
    done.unlink(missing_ok=True)
    shape = (int(ends[-1]), network.config.d_model)
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    encoder = network.model.encoder.eval()
    for part in tqdm(plan_batches(lengths, TOKEN_BUDGET), desc="encoding", disable=not progress):
        ids, mask = pad([list(texts[row]) for row in part], network.config.pad_token_id, "right")
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            found = encoder(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.float().numpy()
        for row, vectors in zip(part, found, strict=True):
            values[ends[row] - lengths[row] : ends[row]] = vectors[: lengths[row]]
    values.flush()
    done.write_text(identity)
    return StateStore(np.load(path, mmap_mode="r"), ends)
