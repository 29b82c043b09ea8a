"""Figures about vectors: norms, neighbors, a map, and what changed between two fingerprints. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmrec_plugin.specs import Metric

BINS = 30
NEIGHBORS = 5
_ROWS_AT_ONCE = 512


class Histogram(NamedTuple):
    """Counts of equal bins; n counts and n + 1 edges."""

    counts: list[int]
    edges: list[float]


def histogram(values: np.ndarray, *, low: float | None = None, high: float | None = None) -> Histogram:
    """Of (n,) numbers, from `low` to `high` or from the smallest to the largest."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    return Histogram(counts.tolist(), edges.tolist())


class Neighbors(NamedTuple):
    """The nearest others of each of n vectors, nearest first.

    Attributes:
        rows: (n, k) int64, numbers of vectors.
        similarities: (n, k) float64: cosine, dot product, or minus the distance.
    """

    rows: np.ndarray
    similarities: np.ndarray


def neighbors(vectors: np.ndarray, metric: Metric, count: int = NEIGHBORS) -> Neighbors:
    """The `count` nearest others of each of (n, dims) vectors, or all if there are fewer.

    Of equal ones the earlier comes first. By cosine a vector of zeros is as near to all as to none, similarity 0.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    if metric == "cosine":
        vectors = unit(vectors)
    total = len(vectors)
    count = min(count, total - 1)
    rows = np.empty((total, count), dtype=np.int64)
    best = np.empty((total, count))
    squares = np.einsum("ij,ij->i", vectors, vectors)
    for start in range(0, total, _ROWS_AT_ONCE):
        some = vectors[start : start + _ROWS_AT_ONCE]
        here = np.arange(len(some))
        similar = some @ vectors.T
        if metric == "euclidean":
            far = squares[start : start + len(some), None] + squares - 2 * similar
            similar = -np.sqrt(np.maximum(far, 0))
        similar[here, start + here] = -np.inf  # itself
        order = np.argsort(-similar, axis=1, kind="stable")[:, :count]
        rows[start : start + len(some)] = order
        best[start : start + len(some)] = np.take_along_axis(similar, order, axis=1)
    return Neighbors(rows, best)


def unit(vectors: np.ndarray) -> np.ndarray:
    """(n, dims) vectors scaled to length 1; zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


class Projection(NamedTuple):
    """Vectors on their first two principal components.

    Attributes:
        points: (n, 2) float64.
        shares: Share of the variance that each of the two has.
    """

    points: np.ndarray
    shares: tuple[float, float]


def project(vectors: np.ndarray, metric: Metric) -> Projection:
    """Principal component analysis of (n, dims) vectors, n of at least 1, dims of at least 1; by cosine, of their
    directions.

    Signs are chosen so that each component's largest weight is positive, and the same vectors give the same map.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    centered = unit(vectors) if metric == "cosine" else vectors
    centered = centered - centered.mean(axis=0)
    # The smaller of the two symmetric products has the same eigenvalues; eigh sorts them from small to large.
    if centered.shape[0] < centered.shape[1]:
        values, left = np.linalg.eigh(centered @ centered.T)
        axes = centered.T @ left[:, ::-1][:, :2]
    else:
        values, right = np.linalg.eigh(centered.T @ centered)
        axes = right[:, ::-1][:, :2]
    lengths = np.linalg.norm(axes, axis=0)
    axes = np.divide(axes, lengths, out=np.zeros_like(axes), where=lengths > 1e-12)
    signs = np.sign(axes[np.argmax(np.abs(axes), axis=0), np.arange(axes.shape[1])])
    points = centered @ (axes * np.where(signs == 0, 1, signs))
    points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    total = max(float(values.sum()), 1e-300)
    first = [max(float(value), 0.0) / total for value in values[::-1][:2]]
    return Projection(points, (first[0], first[1] if len(first) > 1 else 0.0))


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) cosine of each pair of rows of two (n, dims); NaN where one is all zeros."""
    left, right = (np.asarray(side, dtype=np.float64) for side in (left, right))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("ij,ij->i", left, right)
    return np.divide(products, lengths, out=np.full(len(left), np.nan), where=lengths > 0)


def overlap(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) share of the neighbors in each row of (n, k) that the same row of another (n, k) has, too."""
    if left.shape[1] == 0:
        return np.ones(len(left))
    shared: Sequence[int] = [
        len(set(one) & set(other)) for one, other in zip(left.tolist(), right.tolist(), strict=True)
    ]
    return np.array(shared) / left.shape[1]
