"""Ranking metrics of one list, and paired bootstrap intervals over lists."""

import numpy as np

METRICS = ("ndcg@10", "recall@10", "auc")
K = 10


def list_metrics(scores: np.ndarray, relevant: np.ndarray) -> tuple[float, float, float]:
    """NDCG@10, recall@10 and AUC of one list with at least one relevant and one other entry.

    Among equal scores NDCG and recall put irrelevant entries first; AUC counts a tie as half.
    """
    order = np.lexsort((relevant, -scores))
    hits = relevant[order]
    top = hits[:K]
    discounts = 1 / np.log2(np.arange(2, len(top) + 2))
    n_relevant = int(relevant.sum())
    ndcg = (top * discounts).sum() / discounts[: min(K, n_relevant)].sum()
    margins = scores[relevant][:, None] - scores[~relevant]
    auc = (np.sign(margins).mean() + 1) / 2
    return float(ndcg), float(top.sum() / n_relevant), float(auc)


def bootstrap_mean(values: np.ndarray, *, samples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of `values` (one per list) and its 95 % percentile interval, lists drawn with replacement.

    Called on differences per list, it is the paired bootstrap.
    """
    draws = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)
