"""Log probabilities of given answers: one pass over the prompt, then one step per token that answers share.

The answers form a trie. Its root is asked for behind the prompt; a node below it only where an answer goes on, which
takes the tokens on its path. Answers of one token need nothing but the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmrec_plugin.runtime.generation.choosing import log_normalizers
from llmrec_plugin.runtime.generation.constraints import Trie


class Question(NamedTuple):
    """A node of the trie whose next tokens are asked for.

    Attributes:
        path: Tokens from the root.
        tokens: Of its children, (children,) int64.
        below: For each child, the answers that end at it or below, as positions.
    """

    path: tuple[int, ...]
    tokens: np.ndarray
    below: tuple[np.ndarray, ...]


def questions_of(answers: Sequence[Sequence[int]]) -> list[Question]:
    """What to ask a model to know the probability of each answer, in an order in which little is read twice.

    Args:
        answers: Token ids of each, not empty.
    """
    trie = Trie((answer, position) for position, answer in enumerate(answers))
    at: dict[tuple[int, ...], list[int]] = {}
    for position, answer in enumerate(answers):
        for length in range(1, len(answer) + 1):
            at.setdefault(tuple(answer[:length]), []).append(position)
    questions: list[Question] = []

    def visit(node: int, path: tuple[int, ...]) -> None:
        children = trie.children[node]
        if not children:
            return
        below = tuple(np.array(at[(*path, token)], dtype=np.int64) for token in children)
        questions.append(Question(path, trie.tokens[node], below))
        for token, child in children.items():
            visit(child, (*path, token))

    visit(0, ())
    return questions


class ScoredRow:
    """A request whose answers are scored; occupies a slot.

    Args:
        index: Position of the request.
        prompt_length: Tokens of its prompt.
        questions: From `questions_of`.
        scores: Filled in, (answers,) float32.
    """

    __slots__ = ("_asked", "_prompt_length", "_questions", "fresh", "index", "keep", "scores")

    def __init__(self, index: int, prompt_length: int, questions: list[Question], scores: np.ndarray) -> None:
        self.index = index
        self.scores = scores
        self.fresh: list[int] = []
        self.keep: int | None = None
        self._questions = questions
        self._prompt_length = prompt_length
        self._asked = 0
        scores[:] = 0

    @property
    def over(self) -> bool:
        return self._asked == len(self._questions)

    def answer(self, logits: np.ndarray, normalizer: float) -> None:
        """Takes the logits of the question at hand, (vocab,) float32, and goes on to the next."""
        question = self._questions[self._asked]
        chances = (
            logits[question.tokens] - normalizer if np.isfinite(normalizer) else np.full(len(question.tokens), np.nan)
        )
        for chance, below in zip(chances, question.below, strict=True):
            self.scores[below] += chance
        self._asked += 1
        if self.over:
            return
        path = self._questions[self._asked].path
        shared = 0  # tokens of the slot that this path has in common with the last
        while shared < min(len(path), len(question.path)) and path[shared] == question.path[shared]:
            shared += 1
        self.keep = self._prompt_length + shared
        self.fresh = list(path[shared:])


def consume_scores(rows: Sequence[ScoredRow], logits: np.ndarray) -> None:
    """Answers a question of each of m rows from their logits, (m, vocab) float32."""
    for row, values, normalizer in zip(rows, logits, log_normalizers(logits), strict=True):
        row.answer(values, float(normalizer))
