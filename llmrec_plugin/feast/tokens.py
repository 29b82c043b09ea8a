"""Makes dask name columns of vectors by the hash of their bytes.

Feast's file store calls ``persist`` after every step of its join, and each time dask names the result after
its content. For a column of arrays dask pickles every one of them (dask/tokenize.py, `normalize_array`), which
took most of a historical read's time. The names change nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_MARK = "_llmrec_patched"


def cheap_tokens() -> None:
    """Registers the cheaper way with dask, once per process, if this process uses dask at all."""
    from dask.base import normalize_token
    from dask.hashing import hash_buffer_hex

    original = normalize_token.dispatch(np.ndarray)
    if hasattr(original, _MARK):
        return

    def normalize(array: np.ndarray) -> Any:
        if array.dtype.hasobject and array.ndim == 2:  # the columns of one frame that hold objects
            return [normalize(column) for column in array]
        vectors = _vectors(array)
        if vectors is None:
            return original(array)
        lengths = [-1 if vector is None else len(vector) for vector in vectors]
        values = np.concatenate([vector for vector in vectors if vector is not None])
        hashes = [hash_buffer_hex(part.view("i1")) for part in (np.array(lengths), values)]
        return (*hashes, values.dtype, array.shape)

    setattr(normalize, _MARK, True)
    normalize_token.register(np.ndarray, normalize)


def _vectors(array: np.ndarray) -> list[np.ndarray | None] | None:
    """The cells of a column of float vectors and missing values; None if it holds anything else."""
    if not array.dtype.hasobject or array.ndim != 1:
        return None
    cells = [None if cell is None or cell is np.nan else cell for cell in array]
    kinds = {(type(cell), getattr(cell, "dtype", None)) for cell in cells if cell is not None}
    if len(kinds) != 1:
        return None
    [(kind, dtype)] = kinds
    are_vectors = kind is np.ndarray and dtype in (np.float32, np.float64)
    return cells if are_vectors and all(cell is None or cell.ndim == 1 for cell in cells) else None
