"""The nearest of many vectors, exactly: every vector is compared with the query.

Distances are those of pgvector, so that every store answers with the same numbers; smaller is closer:

    cosine     1 - cosine, 0 to 2; undefined for a vector of zeros, which is near to nothing
    dot        minus the dot product
    euclidean  length of the difference
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from llmrec_plugin.specs import Metric

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Block:
    """Some vectors of a table.

    Attributes:
        keys: n keys.
        vectors: (n, dims) float32.
    """

    keys: list[bytes]
    vectors: np.ndarray

    @cached_property
    def norms(self) -> np.ndarray:
        """(n,) float32."""
        return np.linalg.norm(self.vectors, axis=1)


def nearest(blocks: Iterable[Block], query: np.ndarray, metric: Metric, count: int) -> list[tuple[bytes, float]]:
    """The keys of the `count` nearest vectors and their distances, nearest first; of equal ones the earlier first.

    Fewer than `count` if there are fewer. A vector whose distance is undefined is left out.

    Args:
        blocks: The vectors; read once, so that they need not be in memory together.
        query: (dims,) float32.
        metric: What the distance is, see the module.
        count: At least 1.
    """
    keys: list[bytes] = []
    best = np.empty(0, dtype=np.float32)
    for block in blocks:
        found = distances(block, query, metric)
        rows = _smallest(found, count)
        keys += [block.keys[row] for row in rows]
        best = np.concatenate([best, found[rows]])
        order = _smallest(best, count)
        keys, best = [keys[i] for i in order], best[order]
    return list(zip(keys, best.tolist(), strict=True))


def distances(block: Block, query: np.ndarray, metric: Metric) -> np.ndarray:
    """(n,) float32; NaN where undefined."""
    if metric == "euclidean":
        # Not |a|^2 - 2ab + |b|^2 in one product: it loses all digits for near vectors, the ones that are asked for.
        result = np.empty(len(block.keys), dtype=np.float32)
        for start in range(0, len(result), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            result[rows] = np.linalg.norm(block.vectors[rows] - query, axis=1)
        return result
    products = block.vectors @ query
    if metric == "dot":
        return -products
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - products / (block.norms * np.linalg.norm(query))


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` smallest numbers, in order; the earlier of equal ones first, NaN never."""
    candidates = np.flatnonzero(~np.isnan(values))
    if len(candidates) > count:
        bound = np.partition(values[candidates], count - 1)[count - 1]
        candidates = candidates[values[candidates] <= bound]
    return candidates[np.argsort(values[candidates], kind="stable")][:count]
