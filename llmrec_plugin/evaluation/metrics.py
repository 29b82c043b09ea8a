"""Metrics of a full ranking: where the relevant items stand among all candidates.

A ranking is given by scores of candidates in ascending order of their keys. Ties are broken as trec_eval breaks them:
by score, the highest first, and of equal scores the key that is later in the alphabet first. AUC alone counts a tie as
half, which is its definition.

Relevance is binary: rank r gains ``1 / log2(r + 1)``, and the best ranking has all relevant items first.
"""

from __future__ import annotations

import numpy as np

from llmrec_plugin.errors import InputError

METRICS = ("ndcg", "recall", "hr", "mrr", "auc")
"""Columns of `list_metrics`, in order: NDCG@k, recall@k, HR@k (is one found?), MRR (no cutoff) and AUC."""


def positions(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Ranks of the relevant candidates, from 1, best first; counted, since few of many are relevant.

    Args:
        scores: (n,) floats of the candidates, in ascending order of their keys.
        relevant: (r,) their indices, or an (n,) bool mask.

    Returns:
        (r,) int64.

    Raises:
        InputError: A score is NaN, which has no rank.
    """
    scores = np.asarray(scores)
    if np.isnan(scores).any():
        raise InputError(f"positions: {int(np.isnan(scores).sum())} scores are NaN; give such candidates -inf.")
    places = np.flatnonzero(relevant) if np.asarray(relevant).dtype == bool else np.asarray(relevant)
    wanted, ordered = scores[places], np.sort(scores)
    not_above = np.searchsorted(ordered, wanted, "right")
    ranks = len(scores) - not_above + 1
    for number in np.flatnonzero(not_above - np.searchsorted(ordered, wanted, "left") > 1):
        ranks[number] += np.count_nonzero(scores[places[number] + 1 :] == wanted[number])
    return np.sort(ranks)


def auc(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Probability that a relevant candidate has a higher score than another one, ties half.

    Args:
        scores: (n,) floats.
        relevant: (n,) bool.

    Returns:
        NaN where all or none are relevant.
    """
    good, other = scores[relevant], np.sort(scores[~relevant])
    if not len(good) or not len(other):
        return float("nan")
    below, not_above = (np.searchsorted(other, good, side) for side in ("left", "right"))
    return float((below + not_above).sum() / (2 * len(good) * len(other)))


def ndcg(ranks: np.ndarray, k: int) -> float:
    """NDCG@k from the ranks of all relevant candidates; NaN without any."""
    if not len(ranks):
        return float("nan")
    gain = (1 / np.log2(ranks[ranks <= k] + 1)).sum()
    return float(gain / (1 / np.log2(np.arange(2, min(len(ranks), k) + 2))).sum())


def list_metrics(scores: np.ndarray, relevant: np.ndarray, k: int = 10) -> np.ndarray:
    """The metrics of one list.

    Args:
        scores: (n,) floats of the candidates, in ascending order of their keys.
        relevant: (n,) bool.
        k: Cutoff of NDCG, recall and HR.

    Returns:
        (5,) float64 in the order of `METRICS`; all NaN where nothing is relevant.

    Raises:
        InputError: A score is NaN.
    """
    relevant = np.asarray(relevant, dtype=bool)
    if not relevant.any():
        return np.full(len(METRICS), np.nan)
    ranks = positions(scores, relevant)
    found = int((ranks <= k).sum())
    return np.array([ndcg(ranks, k), found / len(ranks), float(found > 0), 1 / ranks[0], auc(scores, relevant)])


def paired_bootstrap(
    differences: np.ndarray, *, samples: int = 2_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference and its percentile interval, users and seeds resampled independently of each other.

    Two models that differ in nothing but a meaningless column differ a little on all users. Resampling users alone
    would call that difference certain; resampling seeds, too, does not. Deviations of seeds are widened by
    ``sqrt(S / (S - 1))``, since S of them resampled vary less than S new ones would.

    Args:
        differences: (S, U): of each seed and user, or (U,) of one seed. Users with NaN are left out.
        samples: Resamples.
        seed: Of the resampling.
        level: Probability the interval covers.

    Returns:
        Mean, lower and upper end; NaN where there are no users.
    """
    values = np.atleast_2d(differences)
    values = values[:, ~np.isnan(values).any(axis=0)]
    seeds, users = values.shape
    if not users:
        return float("nan"), float("nan"), float("nan")
    if seeds > 1:
        mean = values.mean(axis=0)
        values = mean + (values - mean) * np.sqrt(seeds / (seeds - 1))
    rng = np.random.default_rng(seed)
    of_users = rng.multinomial(users, np.full(users, 1 / users), size=samples) / users
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=samples) / seeds
    means = ((of_users @ values.T) * of_seeds).sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high)
