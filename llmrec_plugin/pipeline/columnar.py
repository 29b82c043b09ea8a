"""Vectors as arrow columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def list_array(vectors: Sequence[np.ndarray | None], dims: int) -> pa.ListArray:
    """n vectors of (dims,) float32, or None, as one column of type ``list<float>``."""
    present = np.array([vector is not None for vector in vectors], dtype=bool)
    offsets = np.concatenate([[0], np.cumsum(present * dims)]).astype(np.int32)
    values = np.concatenate([vector for vector in vectors if vector is not None] or [np.empty(0, np.float32)])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.float32()), mask=pa.array(~present))
