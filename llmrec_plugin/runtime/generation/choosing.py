"""Logits -> tokens: greedy or drawn, within a constraint, without repeated n-grams. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec_plugin.specs import Decoding

_LIKELY = 256


def log_normalizers(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the sum of the exponentials of each row of (n, vocab) float32: (n,) float32; NaN where a row
    holds a NaN or is infinite."""
    highest = logits.max(axis=1)
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which is what is to be found
        weights = np.subtract(logits, highest[:, None])
        np.exp(weights, out=weights)
        return np.asarray(highest + np.log(weights.sum(axis=1)))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Log-softmax of the rows, (n, vocab) float32."""
    return logits - log_normalizers(logits)[:, None]


def draws_of(decoding: Decoding, seed: int) -> np.ndarray:
    """The random numbers of a row in [0, 1), (max_new_tokens,) float64, one per token.

    They depend on the decoding's seed and the row's alone, so a row draws the same in whatever company.
    """
    key = np.array([decoding.seed % 2**64, seed % 2**64], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(decoding.max_new_tokens)


def repeated(tokens: Sequence[int], size: int) -> list[int]:
    """Tokens that would write a sequence of `size` tokens a second time."""
    if not size or len(tokens) < size:
        return []
    last = tuple(tokens[len(tokens) - size + 1 :])
    starts = range(len(tokens) - size + 1)
    return [tokens[start + size - 1] for start in starts if tuple(tokens[start : start + size - 1]) == last]


def draw(logits: np.ndarray, decoding: Decoding, number: float) -> int:
    """The index of a token drawn from (n,) logits after temperature, `top_k` and `top_p`, in this order.

    Args:
        logits: Of the tokens that may be drawn; minus infinity for others.
        decoding: How to draw.
        number: Uniform in [0, 1).
    """
    kept = np.arange(len(logits))
    if decoding.top_k is not None and decoding.top_k < len(logits):
        least = np.partition(logits, -decoding.top_k)[-decoding.top_k]
        kept = np.flatnonzero(logits >= least)
    weights = _softmax(logits[kept] / decoding.temperature)
    if decoding.top_p < 1:
        chosen = _nucleus(weights, decoding.top_p)
        kept, weights = kept[chosen], weights[chosen]
    bounds = np.cumsum(weights)
    return int(kept[min(int(np.searchsorted(bounds, number * bounds[-1], side="right")), len(kept) - 1)])


def _nucleus(weights: np.ndarray, least: float) -> np.ndarray:
    """The fewest indices whose weights sum to `least` or more, increasing."""
    candidates = np.arange(len(weights))
    if len(weights) > _LIKELY:  # mostly a few have nearly all of the weight, and only they need to be sorted
        highest = np.flatnonzero(weights >= np.partition(weights, -_LIKELY)[-_LIKELY])
        if weights[highest].sum() > least:
            candidates = highest
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    return np.sort(order[before < least])


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp((logits - logits.max()).astype(np.float64))
    return np.asarray(weights / weights.sum())
