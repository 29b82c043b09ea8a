"""A key-value cache in the memory of an NVIDIA GPU, moved by the CUDA runtime that ONNX Runtime has loaded."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from llmrec_plugin.errors import ProviderError
from llmrec_plugin.manifests import GeneratorManifest
from llmrec_plugin.runtime.generation.graphs import FLOAT_BYTES
from llmrec_plugin.runtime.providers import import_onnxruntime

_TO_DEVICE, _TO_HOST, _ON_DEVICE = 1, 2, 3
_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")


class DeviceCache:
    """A cache on the first GPU; see `llmrec_plugin.runtime.generation.graphs.Cache`.

    Args:
        manifest: The model.
        slots: Rows.
        capacity: Tokens per row.
    """

    device = "cuda"

    def __init__(self, manifest: GeneratorManifest, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self._shape = (2 * manifest.layers, slots, manifest.kv_heads, capacity, manifest.head_dim)
        values = import_onnxruntime().OrtValue
        self._values = values.ortvalue_from_shape_and_type(self._shape, np.float32, "cuda", 0)
        self._start = int(self._values.data_ptr())
        self._cuda = _runtime()

    def pointer(self, part: int, slot: int) -> int:
        return self._at(part, slot, 0)

    def copy(self, source: int, target: int, start: int, stop: int) -> None:
        for part in range(self._shape[0]):
            self._move(self._at(part, target, start), self._at(part, source, start), stop - start, _ON_DEVICE)

    def permute(self, sources: list[int], targets: list[int], start: int, stop: int) -> None:
        if set(sources) & set(targets):  # one by one a row could be overwritten before it is copied
            saved = {source: self.read(source, stop) for source in set(sources)}
            for source, target in zip(sources, targets, strict=True):
                self.write(target, saved[source])
            return
        for source, target in zip(sources, targets, strict=True):
            self.copy(source, target, start, stop)

    def read(self, slot: int, stop: int) -> np.ndarray:
        parts, _, heads, _, size = self._shape
        values = np.empty((parts, heads, stop, size), dtype=np.float32)
        for part in range(parts):
            self._move(values[part].ctypes.data, self._at(part, slot, 0), stop, _TO_HOST, to_pitch=stop)
        return values

    def write(self, slot: int, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values)
        stop = values.shape[2]
        for part in range(self._shape[0]):
            self._move(self._at(part, slot, 0), values[part].ctypes.data, stop, _TO_DEVICE, from_pitch=stop)

    def _at(self, part: int, slot: int, token: int) -> int:
        _, slots, heads, capacity, size = self._shape
        return self._start + (((part * slots + slot) * heads) * capacity + token) * size * FLOAT_BYTES

    def _move(
        self, to: int, source: int, tokens: int, kind: int, to_pitch: int | None = None, from_pitch: int | None = None
    ) -> None:
        """Copies `tokens` of every head; pitches are the tokens between one head and the next."""
        _, _, heads, capacity, size = self._shape
        line = size * FLOAT_BYTES
        status = self._cuda.cudaMemcpy2D(
            ctypes.c_void_p(to),
            ctypes.c_size_t((to_pitch or capacity) * line),
            ctypes.c_void_p(source),
            ctypes.c_size_t((from_pitch or capacity) * line),
            ctypes.c_size_t(tokens * line),
            ctypes.c_size_t(heads),
            ctypes.c_int(kind),
        )
        if status:
            raise ProviderError(f"CUDA could not move a part of the key-value cache: cudaMemcpy2D returned {status}.")


def _runtime() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise ProviderError(
        f"None of {', '.join(_LIBRARIES)} can be loaded, which moves the key-value cache on a GPU. Install "
        "llmrec-plugin[gpu], or set LLMREC_DEVICE=cpu."
    )
