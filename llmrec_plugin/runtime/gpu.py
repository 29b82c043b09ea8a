"""ONNX Runtime on a GPU: few shapes, buffers on the device, CUDA graphs.

A GPU is idle between kernels when every batch has a shape of its own. So batches are padded to a few shapes: lengths
to a multiple of `LENGTH_STEP`, rows to a power of two. Each shape has its inputs and its output on the device
(IO binding), and where the provider can capture CUDA graphs, the second batch of a shape replays the kernels that the
first one launched.

Written for a GPU and tested on the CPU, where binding and padding are the same; see docs/benchmarks/encoders.md for
what has been measured.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.inference import Batch, Placement
from llmrec_plugin.pipeline.batching import graph_inputs

if TYPE_CHECKING:
    import onnxruntime

TOKEN_BUDGET = 32_768
LENGTH_STEP = 16
SHAPES_KEPT = 64
"""Shapes whose buffers stay on the device; with 256 tokens and the steps above, 16 lengths x 12 row counts exist, of
which batches of one token budget use about 16."""


class GpuSession:
    """A graph on a GPU.

    One run at a time: the device is the bottleneck, and the buffers of a shape are shared.

    Args:
        session: The open graph.
        artifact: What it is.
        device: Where buffers lie; ``cpu`` in tests.
    """

    adjustable = False  # threads do not matter, and the token budget is not measured yet

    def __init__(self, session: onnxruntime.InferenceSession, artifact: Artifact, device: str = "cuda") -> None:
        self._session = session
        self._manifest = artifact.manifest
        self._device = device
        self._shapes: dict[tuple[int, int], _Bound] = {}
        self._lock = threading.Lock()
        self.provider = session.get_providers()[0]
        self.placement = Placement(threads=1, callers=1, spinning=False, token_budget=TOKEN_BUDGET)

    def run(self, batch: Batch) -> np.ndarray:
        rows, length = batch.ids.shape
        shape = bucket(rows, length, self._manifest.max_tokens)
        ids, mask = self._pad(batch, shape)
        with self._lock:
            bound = self._shapes.pop(shape, None) or _Bound(self._session, self._manifest, shape, self._device)
            self._shapes[shape] = bound  # the last used is last
            if len(self._shapes) > SHAPES_KEPT:
                del self._shapes[next(iter(self._shapes))]
            return bound.run(graph_inputs(self._manifest.inputs, ids, mask))[:rows]

    def _pad(self, batch: Batch, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask in the shape of the bucket; rows that are added hold one token, so that no mean divides by 0."""
        rows, length = batch.ids.shape
        columns = slice(0, length) if self._manifest.padding_side == "right" else slice(shape[1] - length, shape[1])
        ids = np.full(shape, self._manifest.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        ids[:rows, columns] = batch.ids
        mask[:rows, columns] = batch.mask
        mask[rows:, columns.start] = 1
        return ids, mask


class _Bound:
    """Inputs and output of one shape, bound to buffers on the device."""

    def __init__(self, session: Any, manifest: Any, shape: tuple[int, int], device: str) -> None:
        from onnxruntime import OrtValue

        self._session = session
        self._inputs = {
            name: OrtValue.ortvalue_from_shape_and_type(shape, np.int64, device, 0) for name in manifest.inputs
        }
        self._output = OrtValue.ortvalue_from_shape_and_type((shape[0], manifest.dims), np.float32, device, 0)
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(manifest.output, self._output)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        for name, value in inputs.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(value))
        self._session.run_with_iobinding(self._binding)
        return np.array(self._output.numpy())  # a copy: the buffer is used again


def bucket(rows: int, length: int, longest: int) -> tuple[int, int]:
    """The shape of a batch once padded: rows a power of two; length a multiple of `LENGTH_STEP` or the `longest`."""
    return 1 << max(rows - 1, 0).bit_length(), min(-(-length // LENGTH_STEP) * LENGTH_STEP, max(longest, length))
