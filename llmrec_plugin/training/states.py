"""Token vectors of a frozen encoder on disk, so that every epoch runs the decoder alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.export.graph import TOKENS
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.pipeline.batching import graph_inputs, pad, plan_batches
from llmrec_plugin.runtime.session import open_session

TOKEN_BUDGET = 512

Run = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""From token ids and mask, (batch, length) int64 each, to token vectors, (batch, length, dims) float32."""


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
    run: Run, dims: int, texts: Sequence[np.ndarray], folder: Path, identity: str, *, progress: bool = True
) -> StateStore:
    """The token vectors of `texts`, computed unless the folder holds them.

    Args:
        run: The encoder.
        dims: Length of its vectors.
        texts: Token ids of each text, special tokens included.
        folder: Where to keep them: two bytes per token and dimension.
        identity: Hash of the encoder and the texts; another one is computed anew.
        progress: Whether to show a bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(ids) for ids in texts], dtype=np.int64)
    ends = np.cumsum(lengths)
    path, done = folder / "states.npy", folder / "states.txt"
    if done.is_file() and done.read_text() == identity:
        return StateStore(np.load(path, mmap_mode="r", allow_pickle=False), ends)
    done.unlink(missing_ok=True)
    shape = (int(ends[-1]), dims)
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    for part in tqdm(plan_batches(lengths, TOKEN_BUDGET), desc="encoding", disable=not progress):
        ids, mask = pad([texts[row].tolist() for row in part], 0, "right")
        for row, vectors in zip(part, run(ids, mask), strict=True):
            values[ends[row] - lengths[row] : ends[row]] = vectors[: lengths[row]]
    values.flush()
    done.write_text(identity)
    return StateStore(np.load(path, mmap_mode="r", allow_pickle=False), ends)


def exported_encoder(artifact: Artifact, folder: Path, threads: int) -> Run:
    """The token vectors of an exported encoder, in ONNX Runtime on the CPU.

    Args:
        artifact: The encoder; its graph ends with a pooling, so what goes into that becomes an output of a copy.
        folder: Where to put the copy.
        threads: Threads that work on a batch.
    """
    onnx = require("onnx")
    artifact.verify()
    graph = onnx.load(artifact.path(GRAPH))
    graph.graph.output.append(onnx.helper.make_tensor_value_info(TOKENS, onnx.TensorProto.FLOAT, ["n", "length", "d"]))
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, folder / GRAPH)
    session = open_session(folder / GRAPH, device="cpu", threads=threads)

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([TOKENS], graph_inputs(artifact.manifest.inputs, ids, mask))[0])

    return run


def pytorch_encoder(network: Any) -> Run:
    """The token vectors of a BART's encoder, in PyTorch."""
    torch = require("torch")
    encoder = network.model.encoder.eval()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(encoder(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy())

    return run
