"""How good labels and texts are, and what the nearest training text would have given."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"[a-z0-9]+")
_BLOCK = 512


def f1_scores(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """F1 of label sets.

    Args:
        truth: (n, labels) bool.
        found: (n, labels) bool.

    Returns:
        ``micro_f1``, ``precision`` and ``recall`` over all pairs of row and label; ``macro_f1``: the mean over the
        labels that `truth` has at all; ``labels_per_row``: of `found`.
    """
    hits = (truth & found).sum(0).astype(float)
    true, given = truth.sum(0).astype(float), found.sum(0).astype(float)
    of_label = 2 * hits / np.maximum(true + given, 1)
    return {
        "micro_f1": float(2 * hits.sum() / max(true.sum() + given.sum(), 1)),
        "macro_f1": float(of_label[true > 0].mean()) if (true > 0).any() else 0.0,
        "precision": float(hits.sum() / max(given.sum(), 1)),
        "recall": float(hits.sum() / max(true.sum(), 1)),
        "labels_per_row": float(given.sum() / max(len(found), 1)),
    }


def best_thresholds(truth: np.ndarray, probabilities: np.ndarray, *, least_support: int = 8) -> np.ndarray:
    """The probability from which each label is given, (labels,) float32, for the best F1 on these rows.

    Labels in fewer than `least_support` rows share the threshold with the best F1 over all rows and labels: their own
    would be an accident.

    Args:
        truth: (n, labels) bool.
        probabilities: (n, labels) float32.
        least_support: Rows from which a label has a threshold of its own.
    """
    shared = _best_threshold(truth.ravel(), probabilities.ravel())
    own = truth.sum(0) >= least_support
    found = [
        _best_threshold(truth[:, label], probabilities[:, label]) if own[label] else shared
        for label in range(truth.shape[1])
    ]
    return np.array(found, dtype=np.float32)


def _best_threshold(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Between two neighboring probabilities, where F1 is highest."""
    order = np.argsort(-probabilities, kind="stable")
    sorted_probabilities = probabilities[order]
    hits = np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    last_of_equals = np.append(sorted_probabilities[:-1] != sorted_probabilities[1:], True)
    best = int(np.argmax(np.where(last_of_equals, f1, -1.0)))
    below = sorted_probabilities[best + 1] if best + 1 < len(order) else 0.0
    return float((sorted_probabilities[best] + below) / 2)


def nearest(queries: np.ndarray, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `vectors` with the largest dot products, nearest first, and those products.

    Args:
        queries: (n, dims) float32 of unit norm.
        vectors: (m, dims) float32 of unit norm.
        count: Neighbors per query, at most m.

    Returns:
        (n, count) int64 and (n, count) float32.
    """
    rows = np.empty((len(queries), count), dtype=np.int64)
    products = np.empty((len(queries), count), dtype=np.float32)
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK] @ vectors.T
        chosen = np.argpartition(-block, count - 1, axis=1)[:, :count]
        values = np.take_along_axis(block, chosen, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        rows[start : start + _BLOCK] = np.take_along_axis(chosen, order, axis=1)
        products[start : start + _BLOCK] = np.take_along_axis(values, order, axis=1)
    return rows, products


def rouge_l(reference: str, candidate: str) -> float:
    """ROUGE-L F1 in [0, 1] (Lin 2004): the longest common subsequence of the words, in lower case, without stemming."""
    true, given = _WORD.findall(reference.lower()), _WORD.findall(candidate.lower())
    common = _common_subsequence(true, given)
    return 2 * common / (len(true) + len(given)) if common else 0.0


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, 1):
            diagonal, lengths[column] = (
                lengths[column],
                diagonal + 1 if word == other else max(lengths[column], lengths[column - 1]),
            )
    return lengths[-1]
