"""Batches of few shapes, for devices that are slow with a shape they have not seen.

A GPU compiles, captures and allocates by shape. So rows and lengths are padded to multiples of a step, and batches are
planned to fill those shapes: a batch that is cut in the wrong place costs more padding than all rounding. Which cuts
are best is a shortest path over the few lengths that remain (32 of them with 256 tokens and a step of 8).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

BATCH_COST = 2_048
"""What a batch costs however small it is, in tokens: launching its kernels and copying in and out. An assumption: on a
GPU of 200 TFLOP/s a small encoder needs about 0.5 ms for so many tokens, which is what some 100 launches take."""


def bucket(rows: int, length: int, step: int, longest: int) -> tuple[int, int]:
    """The shape that a batch is padded to.

    Args:
        rows: Rows of the batch, at least 1.
        length: Its length in tokens.
        step: Rows and lengths become multiples of it; fewer rows than it a power of two, since a request has few.
        longest: What the model can read at most; lengths end there.

    Returns:
        (rows, length), neither below the batch's.
    """
    return _rounded_rows(rows, step), max(min(_rounded(length, step), longest), length)


def plan_buckets(lengths: np.ndarray, token_budget: int, step: int) -> list[np.ndarray]:
    """Splits n sequences into batches with the least padding once each is padded to its `bucket`, longest first.

    Args:
        lengths: Length of each sequence in tokens, (n,) int64.
        token_budget: Largest rows x length of a batch, padding included. A batch holds one sequence at least.
        step: See `bucket`.

    Returns:
        Index arrays, int64; together they hold 0..n-1 once each.
    """
    order = np.argsort(-lengths, kind="stable")
    shapes, counts = np.unique(-(np.maximum(-(-lengths // step), 1) * step), return_counts=True)
    ends = [0, *np.cumsum(counts).tolist()]
    batches: list[np.ndarray] = []
    for first, last in pairwise(_cuts((-shapes).tolist(), ends, token_budget, step)):
        rows = _full_rows(-int(shapes[first]), token_budget, step)
        batches += [order[start : min(start + rows, ends[last])] for start in range(ends[first], ends[last], rows)]
    return batches


def _cuts(shapes: list[int], ends: list[int], token_budget: int, step: int) -> list[int]:
    """Where to cut the lengths so that the groups, each padded to its longest, cost the fewest tokens.

    Args:
        shapes: The k distinct padded lengths, longest first.
        ends: ``ends[i]`` sequences are longer than ``shapes[i]``; k + 1 of them.

    Returns:
        Indices into `shapes`, from 0 to k.
    """
    costs, previous = [0], [0]
    for last in range(1, len(shapes) + 1):
        options = [
            costs[first] + _cost(ends[last] - ends[first], shapes[first], token_budget, step) for first in range(last)
        ]
        costs.append(min(options))
        previous.append(options.index(costs[-1]))
    cuts = [len(shapes)]
    while cuts[-1]:
        cuts.append(previous[cuts[-1]])
    return cuts[::-1]


def _cost(count: int, length: int, token_budget: int, step: int) -> int:
    """Tokens of `count` sequences padded to `length`, with what their batches cost besides."""
    rows = _full_rows(length, token_budget, step)
    full, rest = divmod(count, rows)
    tokens = (full * rows + (_rounded_rows(rest, step) if rest else 0)) * length
    return tokens + BATCH_COST * (full + (rest > 0))


def _full_rows(length: int, token_budget: int, step: int) -> int:
    """Rows of a batch that the budget allows, such that none is padded."""
    rows = max(token_budget // length, 1)
    return rows // step * step if rows >= step else 1 << (rows.bit_length() - 1)


def _rounded_rows(rows: int, step: int) -> int:
    return 1 << (rows - 1).bit_length() if rows < step else _rounded(rows, step)


def _rounded(value: int, step: int) -> int:
    return -(-value // step) * step
