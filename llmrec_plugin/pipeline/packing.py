"""Vectors as bytes: what a feature with a packed ``storage`` holds, little-endian, in the order of the components.

    float32     d x 4 bytes, the same bits as ``Array(Float32)``
    float16     d x 2 bytes, IEEE half precision
    int8        a float32 scale, then d x 1 bytes; a component is its byte times the scale (max |x| / 127)

Packing costs a reader one copy per vector; ``Array(Float32)`` costs a conversion per component.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from llmrec_plugin.errors import FingerprintMismatchError
from llmrec_plugin.specs import NetworkFeature, Storage, TextFeature

if TYPE_CHECKING:
    import pyarrow as pa

VectorFeature: TypeAlias = TextFeature | NetworkFeature
"""What gives vectors; a network's `dims` must not be None."""

_SCALE_BYTES = 4


def packed_bytes(storage: Storage, dims: int) -> int:
    """Length in bytes of one packed vector."""
    return {"float32": 4 * dims, "float16": 2 * dims, "int8": _SCALE_BYTES + dims}[storage]


def pack(vectors: np.ndarray, storage: Storage) -> list[bytes]:
    """Each row of (n, dims) float32 as bytes."""
    if storage == "int8":
        scales = np.abs(vectors).max(axis=1, initial=0.0).astype("<f4") / np.float32(127)
        rounded = np.rint(np.divide(vectors, scales[:, None], out=np.zeros_like(vectors), where=scales[:, None] > 0))
        return [scale.tobytes() + row.tobytes() for scale, row in zip(scales, rounded.astype("i1"), strict=True)]
    dtype = {"float32": "<f4", "float16": "<f2"}[storage]
    return [row.tobytes() for row in np.ascontiguousarray(vectors, dtype=dtype)]


def unpack(values: Sequence[bytes], storage: Storage, dims: int, *, owner: str = "vector") -> np.ndarray:
    """The vectors that `pack` packed, (n, dims) float32.

    Raises:
        FingerprintMismatchError: A value has not the length of such a vector.
    """
    expected = packed_bytes(storage, dims)
    for value in values:
        if len(value) != expected:
            raise FingerprintMismatchError(
                f"A stored vector of feature {owner!r} has {len(value)} bytes, expected {expected} ({dims} dims as "
                f"{storage}): it was written under another declaration. Run `feast materialize` for this view again."
            )
    data = np.frombuffer(b"".join(values), dtype=np.uint8).reshape(len(values), expected)
    if storage == "int8":
        scales = np.ascontiguousarray(data[:, :_SCALE_BYTES]).view("<f4")
        return data[:, _SCALE_BYTES:].view("i1").astype(np.float32) * scales
    return data.view({"float32": "<f4", "float16": "<f2"}[storage]).astype(np.float32)


def stored_values(feature: VectorFeature, vectors: Sequence[np.ndarray | None]) -> list[np.ndarray | bytes | None]:
    """The vectors as `feature` stores them: unchanged, or packed."""
    if feature.storage == "list":
        return list(vectors)
    present = [vector for vector in vectors if vector is not None]
    packed = iter(pack(np.stack(present), feature.storage) if present else [])
    return [None if vector is None else next(packed) for vector in vectors]


def value_type(feature: VectorFeature) -> pa.DataType:
    """Arrow type of the feature's column."""
    import pyarrow as pa  # a ranker that fetches over HTTP does without

    return pa.list_(pa.float32()) if feature.storage == "list" else pa.binary()


def value_array(feature: VectorFeature, vectors: Sequence[np.ndarray | None]) -> pa.Array:
    """n vectors of (dims,) float32, or None, as the arrow column that `feature` stores."""
    import pyarrow as pa

    if feature.storage != "list":
        return pa.array(stored_values(feature, vectors), pa.binary())
    assert feature.dims is not None
    present = np.array([vector is not None for vector in vectors], dtype=bool)
    offsets = np.concatenate([[0], np.cumsum(present * feature.dims)]).astype(np.int32)
    values = np.concatenate([vector for vector in vectors if vector is not None] or [np.empty(0, np.float32)])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32()), mask=pa.array(~present))
