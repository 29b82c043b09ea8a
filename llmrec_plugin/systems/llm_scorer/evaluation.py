"""What a scorer's outputs are worth: illegal ones counted as misses, and how far the order of the input moves them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrec_plugin.errors import InputError
from llmrec_plugin.systems.llm_scorer.listwise import Ranking

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class ListReport:
    """What became of the lists of several requests.

    Attributes:
        requests: Requests, all of which count.
        ndcg: Mean NDCG at `k`; a request without a ranking counts 0.
        hit_rate: Share of requests with a relevant candidate among the first `k`; without a ranking it is none.
        k: Candidates that count.
        ok: Requests of this status; see `Ranking`.
        repaired: Requests of this status.
        partial: Requests of this status.
        invalid: Requests of this status.
        invented: Entries that are no candidate, over all requests.
        duplicates: Entries that name a candidate again.
        unnamed: Candidates not named.
    """

    requests: int
    ndcg: float
    hit_rate: float
    k: int
    ok: int
    repaired: int
    partial: int
    invalid: int
    invented: int
    duplicates: int
    unnamed: int


def list_report(rankings: Sequence[Ranking], relevant: Sequence[AbstractSet[int]], k: int = 10) -> ListReport:
    """Measures the rankings of several requests; nothing is left out, and an illegal output is a miss.

    Args:
        rankings: From `ListwiseRanker.ranking`.
        relevant: For each, the positions of the relevant candidates; not empty.
        k: Candidates that count.

    Raises:
        InputError: There are no requests, or one has nothing relevant.
    """
    if not rankings or len(rankings) != len(relevant) or not all(relevant):
        raise InputError(
            f"list_report: expected rankings and, for each, what is relevant, got {len(rankings)} and {len(relevant)}"
            f"{'' if all(relevant) else ', one of them with nothing relevant'}."
        )
    gains, hits = [], []
    for ranking, wanted in zip(rankings, relevant, strict=True):
        found = [] if ranking.status == "invalid" else ranking.order[:k]
        best = sum(1 / math.log2(rank + 2) for rank in range(min(len(wanted), k)))
        gains.append(sum(1 / math.log2(rank + 2) for rank, place in enumerate(found) if place in wanted) / best)
        hits.append(any(place in wanted for place in found))
    counts = [ranking.status for ranking in rankings]
    return ListReport(
        requests=len(rankings),
        ndcg=math.fsum(gains) / len(gains),
        hit_rate=sum(hits) / len(hits),
        k=k,
        ok=counts.count("ok"),
        repaired=counts.count("repaired"),
        partial=counts.count("partial"),
        invalid=counts.count("invalid"),
        invented=sum(ranking.invented for ranking in rankings),
        duplicates=sum(ranking.duplicates for ranking in rankings),
        unnamed=sum(ranking.unnamed for ranking in rankings),
    )


@dataclass(frozen=True, kw_only=True)
class PositionBias:
    """How scores depend on where an item stands in the input.

    Attributes:
        by_position: (items,) float64: mean of what an item's score at this position is above the item's own mean over
            all orders; NaN for a position without any score. All zero for a scorer that the order does not move.
        slope: Change of the score from the first position to the last, by a line through all of them; negative where
            the first is favored.
        spread: Mean over the items of the standard deviation of an item's score over the orders.
        top_changes: Share of orders whose best item is not the best of the mean; NaN without a complete order.
        orders: Orders that were compared.
        missing: Scores that are NaN, which are in none of these numbers.
    """

    by_position: np.ndarray
    slope: float
    spread: float
    top_changes: float
    orders: int
    missing: int


def position_bias(scores: np.ndarray, positions: np.ndarray) -> PositionBias:
    """Measures how the order of the input moves the scores of one request's items.

    For a listwise ranker the items are the candidates, and the scores of an order ``1 - rank / (items - 1)``. For a
    pointwise scorer they are, for example, one candidate behind histories in other orders.

    Args:
        scores: (orders, items), the score of each item when the input has each order; NaN where there is none.
        positions: (orders, items) int, where the item stands in that order, from 0.

    Raises:
        InputError: The shapes differ, or there are fewer than two orders.
    """
    import numpy as np  # not needed to declare features

    scores, positions = np.asarray(scores, dtype=np.float64), np.asarray(positions)
    if scores.ndim != 2 or scores.shape != positions.shape or len(scores) < 2 or not scores.shape[1]:
        raise InputError(
            f"position_bias: expected scores and positions of the same (orders, items) with two orders or more, got "
            f"{scores.shape} and {positions.shape}."
        )
    known = ~np.isnan(scores)
    count = known.sum(axis=0)
    mean = np.where(known, scores, 0).sum(axis=0) / np.maximum(count, 1)
    above = np.where(known, scores - mean, 0)
    items = scores.shape[1]
    times = np.bincount(positions.ravel(), weights=known.ravel().astype(float), minlength=items)
    sums = np.bincount(positions.ravel(), weights=above.ravel(), minlength=items)
    by_position = np.divide(sums, times, out=np.full(items, np.nan), where=times > 0)
    at, value = positions[known].astype(np.float64), above[known]
    centered = at - at.mean() if at.size else at
    variance = float(centered @ centered)
    complete = known.all(axis=1)
    seen = count > 0
    return PositionBias(
        by_position=by_position,
        slope=float(centered @ value) / variance * (items - 1) if variance else 0.0,
        spread=float(np.sqrt((above**2).sum(axis=0)[seen] / count[seen]).mean()) if seen.any() else math.nan,
        top_changes=float((scores[complete].argmax(axis=1) != mean.argmax()).mean()) if complete.any() else math.nan,
        orders=len(scores),
        missing=int((~known).sum()),
    )
