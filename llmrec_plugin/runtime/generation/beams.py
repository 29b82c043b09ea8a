"""Beam search of one row: which sequences go on, and which are complete. Numbers only; the cache is the engine's.

The rules are those of `transformers` (``early_stopping=False``): of the ``(ends + 1) * beams`` best continuations,
those that end and are among the first `beams` compete for the result by ``log probability / length **
length_penalty``, the end counted in; the best that do not end go on; and the search is over when no sequence that goes
on can be better, at its present length, than the worst result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Hypothesis(NamedTuple):
    """A sequence.

    Attributes:
        tokens: Written so far, the end included.
        score: Log probability, after the penalty where it is a result.
        logprob: Log probability.
        state: Of the constraint.
        ended: Whether a token ended it, or the constraint; else it was cut.
    """

    tokens: tuple[int, ...] = ()
    score: np.float32 = np.float32(0)
    logprob: float = 0.0
    state: object = None
    ended: bool = False


class Continuation(NamedTuple):
    """One of the best next steps.

    Attributes:
        parent: Position among the running sequences.
        hypothesis: The longer sequence.
        final: Whether it goes no further.
    """

    parent: int
    hypothesis: Hypothesis
    final: bool


@dataclass
class Beams:
    """The search of one row.

    Args:
        beams: Sequences that go on.
        length_penalty: See `Decoding`.
        running: The sequences that go on, best first; at the beginning one, which is empty.
    """

    beams: int
    length_penalty: float
    running: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    results: list[Hypothesis] = field(default_factory=list)
    _improvable: bool = True

    def advance(self, candidates: list[Continuation]) -> list[int]:
        """Takes the next step.

        Args:
            candidates: The best continuations of all running sequences, best first.

        Returns:
            For each sequence that goes on, the position of its parent among those before; empty when the search is
            over.
        """
        length = len(self.running[0].tokens) + 1
        for rank, (_, hypothesis, final) in enumerate(candidates):
            if final and rank < self.beams and self._improvable:
                score = np.float32(hypothesis.score / np.float32(length**self.length_penalty))
                self.results.append(hypothesis._replace(score=score))
        self.results = sorted(self.results, key=lambda result: -result.score)[
            : self.beams
        ]  # stable: earlier ones first
        going = [candidate for candidate in candidates if not candidate.final][: self.beams]
        if not going:
            self.running = []
            return []
        self.running = [candidate.hypothesis for candidate in going]
        if len(self.results) == self.beams:
            hopeful = np.float32(self.running[0].score / np.float32(length**self.length_penalty))
            self._improvable = self._improvable and bool(hopeful > self.results[-1].score)
        if not self._improvable:
            self.running = []
            return []
        return [candidate.parent for candidate in going]

    @property
    def best(self) -> Hypothesis:
        """The result."""
        return self.results[0]


def best_candidates(scores: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The positions (row, column) of the `count` highest of (rows, columns) scores, best first; none that is -inf."""
    flat = scores.ravel()
    count = min(count, flat.size)
    top = np.argpartition(-flat, count - 1)[:count]
    top = top[np.lexsort((top, -flat[top]))]
    top = top[np.isfinite(flat[top])]
    return [(int(at) // scores.shape[1], int(at) % scores.shape[1]) for at in top]
