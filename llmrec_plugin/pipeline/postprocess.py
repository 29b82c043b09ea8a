"""Vectors -> feature values: reduction, normalization, weighted histories, similarity.

All functions work on whole arrays and are pure. Sums run in float64 and results are float32, so a value
does not depend on how many rows are computed together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec_plugin.specs import HistoryEmbeddingFeature, Metric, TextFeature


def finish(feature: TextFeature, vectors: np.ndarray, *, already_normalized: bool) -> np.ndarray:
    """Reduces and normalizes encoder outputs as `feature` declares.

    Args:
        feature: The declaration.
        vectors: (n, model dims) float32.
        already_normalized: Whether the encoder's outputs have unit norm.

    Returns:
        (n, feature.dims) float32.
    """
    reduced = feature.reduction is not None
    if reduced:
        vectors = vectors[:, : feature.dims]
    if feature.normalize and (reduced or not already_normalized):
        vectors = normalize(vectors)
    return np.ascontiguousarray(vectors, dtype=np.float32)


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Each row of (n, d) scaled to unit L2 norm, float32; a zero row stays zero."""
    wide = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0).astype(np.float32)


def recency_weights(n: int, half_life: float | None) -> np.ndarray:
    """Weights of n events, newest first, (n,) float64 summing to 1."""
    weights = np.ones(n) if half_life is None else 0.5 ** (np.arange(n) / half_life)
    return weights / weights.sum()


def combine(feature: TextFeature, vectors: Sequence[np.ndarray]) -> np.ndarray:
    """One row's vectors, each (d,) and newest first, as one (d,) float32 vector."""
    if len(vectors) == 1 or not isinstance(feature, HistoryEmbeddingFeature):
        return vectors[0]
    mean = recency_weights(len(vectors), feature.half_life) @ np.stack(vectors).astype(np.float64)
    return normalize(mean[None])[0] if feature.normalize else mean.astype(np.float32)


def similarity(left: np.ndarray, right: np.ndarray, metric: Metric) -> np.ndarray:
    """Row-wise similarity of two (n, d) arrays, (n,) float32.

    ``cosine`` of a zero vector is NaN, since it has no direction. ``euclidean`` is a distance.
    """
    left, right = left.astype(np.float64), right.astype(np.float64)
    if metric == "euclidean":
        return np.linalg.norm(left - right, axis=1).astype(np.float32)
    products = np.einsum("nd,nd->n", left, right)
    if metric == "cosine":
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines = np.divide(products, norms, out=np.full_like(products, np.nan), where=norms > 0)
        products = np.clip(cosines, -1.0, 1.0)
    return products.astype(np.float32)
