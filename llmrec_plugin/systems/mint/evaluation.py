"""NDCG of rankings with graded relevance, with ties as trec_eval breaks them.

Scores tie often, and the order of tied documents moves the result. trec_eval ranks by score, the highest first, and of
equal scores the document number that is *later* in the alphabet first. Gains are the relevance grades themselves, and
the document at rank r counts ``1 / log2(r + 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from llmrec_plugin.errors import InputError


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document numbers by score, the highest first; of equal scores the later in the alphabet first.

    Raises:
        InputError: A score is NaN, which has no rank.
    """
    missing = [docno for docno, score in scores.items() if math.isnan(score)]
    if missing:
        raise InputError(f"ranked: {len(missing)} documents have the score NaN, e.g. {missing[0]!r}; leave them out.")
    return sorted(scores, key=lambda docno: (scores[docno], docno), reverse=True)


def ndcg(ranking: Sequence[str], relevance: Mapping[str, float], k: int) -> float:
    """Normalized discounted cumulative gain of the first k documents, in [0, 1].

    Args:
        ranking: Document numbers, best first; those beyond k are not read.
        relevance: Document number -> grade; documents without one, and grades below 0, gain nothing.
        k: How many documents count.

    Returns:
        The gain, over that of the best possible ranking; 0 where nothing is relevant.

    Raises:
        InputError: `k` is not positive, or a document is ranked twice.
    """
    if k < 1 or len(set(ranking)) < len(ranking):
        raise InputError(f"ndcg: expected k >= 1 and each document once, got k={k} and {len(ranking)} documents.")
    best = _gain(sorted(relevance.values(), reverse=True)[:k])
    return _gain(relevance.get(docno, 0.0) for docno in ranking[:k]) / best if best > 0 else 0.0


def mean_ndcg(run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, float]], k: int) -> float:
    """Mean NDCG over all topics of `qrels`; a topic that the run lacks counts 0 (``trec_eval -c``).

    Args:
        run: Topic -> document number -> score. For a distance, negate it.
        qrels: Topic -> document number -> grade.
        k: How many documents count.

    Raises:
        InputError: There are no topics; or as for `ranked` and `ndcg`.
    """
    if not qrels:
        raise InputError("mean_ndcg: expected at least one topic with judgments, got none.")
    return sum(ndcg(ranked(run.get(topic, {})), judged, k) for topic, judged in qrels.items()) / len(qrels)


def _gain(grades: Iterable[float]) -> float:
    return sum(max(grade, 0.0) / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))
