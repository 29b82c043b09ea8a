"""The fused causal graph, bound to a key-value cache that stays where it is.

One cache holds `slots` rows of `capacity` tokens for every layer. A run reads and writes a range of rows in place: the
graph's inputs and outputs of the cache are the same memory, so a step copies nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmrec_plugin.manifests import GeneratorManifest
from llmrec_plugin.runtime.providers import CPU

if TYPE_CHECKING:
    import onnxruntime

FLOAT_BYTES = 4


class Cache(Protocol):
    """Keys and values of `slots` rows."""

    device: str
    slots: int
    capacity: int

    def pointer(self, part: int, slot: int) -> int:
        """Where a row's keys (``part = 2 * layer``) or values (``2 * layer + 1``) begin."""

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        """Copies the tokens from `start` to before `stop` of one row to another."""

    def permute(self, sources: list[int], targets: list[int], start: int, stop: int) -> None:
        """Copies rows to rows as if all were copied at once."""

    def read(self, slot: int, stop: int) -> np.ndarray:
        """The first tokens of a row, (2 * layers, kv_heads, stop, head_dim) float32."""

    def write(self, slot: int, values: np.ndarray) -> None:
        """Puts what `read` gave at the beginning of a row."""


class HostCache:
    """A cache in main memory.

    Args:
        manifest: The model.
        slots: Rows.
        capacity: Tokens per row.
    """

    device = "cpu"

    def __init__(self, manifest: GeneratorManifest, slots: int, capacity: int) -> None:
        shape = (2 * manifest.layers, slots, manifest.kv_heads, capacity, manifest.head_dim)
        self._values = np.zeros(shape, dtype=np.float32)
        self.slots, self.capacity = slots, capacity

    def pointer(self, part: int, slot: int) -> int:
        return int(self._values[part, slot].ctypes.data)

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        self._values[:, target, :, start:stop] = self._values[:, source, :, start:stop]

    def permute(self, sources: list[int], targets: list[int], start: int, stop: int) -> None:
        self._values[:, targets, :, start:stop] = self._values[:, sources, :, start:stop]  # the right side is a copy

    def read(self, slot: int, stop: int) -> np.ndarray:
        return self._values[:, slot, :, :stop].copy()

    def write(self, slot: int, values: np.ndarray) -> None:
        self._values[:, slot, :, : values.shape[2]] = values


class FusedGraph:
    """A causal graph with fused attention.

    Args:
        session: The open graph.
        manifest: What it is.
    """

    def __init__(self, session: onnxruntime.InferenceSession, manifest: GeneratorManifest) -> None:
        self.session = session
        self.manifest = manifest
        self.provider: str = session.get_providers()[0]
        self.reads_positions = any(item.name == "position_ids" for item in session.get_inputs())
        self.parts = [
            (f"past_key_values.{i}.{kind}", f"present.{i}.{kind}")
            for i in range(manifest.layers)
            for kind in ("key", "value")
        ]

    @property
    def bytes_per_token(self) -> int:
        """Of the cache of one row."""
        return 2 * self.manifest.layers * self.manifest.kv_heads * self.manifest.head_dim * FLOAT_BYTES

    def new_cache(self, slots: int, capacity: int) -> Cache:
        """A cache where the graph computes."""
        if self.provider == CPU:
            return HostCache(self.manifest, slots, capacity)
        from llmrec_plugin.runtime.generation.device import DeviceCache  # needed only where there is a GPU

        return DeviceCache(self.manifest, slots, capacity)


class Binding:
    """A graph bound to a cache; for one thread.

    Args:
        graph: The graph.
        cache: The cache.
    """

    def __init__(self, graph: FusedGraph, cache: Cache) -> None:
        self._graph = graph
        self._cache = cache
        self._binding = graph.session.io_binding()
        self._rows = (-1, -1)
        self._logits = np.empty((0, graph.manifest.vocab_size), dtype=np.float32)

    def run(
        self, first: int, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, wanted: np.ndarray
    ) -> np.ndarray:
        """Reads tokens into rows of the cache.

        Args:
            first: The first of n consecutive rows.
            ids: (n, length) int64. More than one token per row only where n is 1 or `starts` is 0.
            starts: Tokens that each row holds before, (n,) int64.
            lengths: How many of a row's `ids` are tokens, (n,) int64; the others are padding.
            wanted: Flat positions in `ids` whose logits are wanted, (m,) int64.

        Returns:
            (m, vocab) float32, valid until the next run.
        """
        rows, length = ids.shape
        self._bind_cache(first, first + rows)
        binding = self._binding
        totals = starts + lengths
        # What was converted must live until the run.
        inputs: dict[str, Any] = {
            "input_ids": np.ascontiguousarray(ids, dtype=np.int64),
            "seqlens_k": (totals - 1).astype(np.int32),
            "total_sequence_length": np.array(totals.max(), dtype=np.int32),
            "logit_positions": np.ascontiguousarray(wanted, dtype=np.int64),
        }
        if self._graph.reads_positions:
            inputs["position_ids"] = starts[:, None] + np.arange(length)
        for name, values in inputs.items():
            binding.bind_cpu_input(name, values)
        if len(self._logits) < len(wanted):
            self._logits = np.empty((len(wanted), self._logits.shape[1]), dtype=np.float32)
        logits = self._logits[: len(wanted)]
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, self._logits.ctypes.data)
        self._graph.session.run_with_iobinding(binding)
        return logits

    def _bind_cache(self, first: int, last: int) -> None:
        if self._rows == (first, last):
            return
        manifest, cache = self._graph.manifest, self._cache
        shape = (last - first, manifest.kv_heads, cache.capacity, manifest.head_dim)
        for part, (past, present) in enumerate(self._graph.parts):
            pointer = cache.pointer(part, first)
            self._binding.bind_input(past, cache.device, 0, np.float32, shape, pointer)
            self._binding.bind_output(present, cache.device, 0, np.float32, shape, pointer)
        self._rows = (first, last)
