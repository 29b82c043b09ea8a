"""Opinion words: what is hidden and guessed in pre-training.

From a list that the user names, or, without one, the words whose presence in a training review goes with its rating.
A word must be one token of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmrec_plugin.errors import InputError

LEAST_SCORE = 2.0
"""A word's mean rating differs from all reviews' by at least so many standard errors."""


def read_words(path: Path) -> list[str]:
    """The words of a file, one a line; empty lines and lines that begin with ``;`` or ``#`` are left out."""
    lines = (line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys(line for line in lines if line and not line.startswith((";", "#"))))


def ids_of_words(words: Sequence[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Token ids of those words that are one token, ascending, int64.

    Raises:
        InputError: None is.
    """
    ids = sorted({vocabulary[word] for word in words if word in vocabulary})
    if not ids:
        raise InputError(f"None of {len(words)} opinion words is a token of the base's tokenizer; name other words.")
    return np.array(ids, dtype=np.int64)


def ids_by_rating(
    reviews: Sequence[np.ndarray], ratings: np.ndarray, words: np.ndarray, *, most: int, least_count: int
) -> np.ndarray:
    """Token ids of the words that go with ratings, ascending, int64.

    A word's score is the difference between the mean rating of the reviews that have it and of all reviews, in standard
    errors of a mean of so many: (mean of word - mean) * sqrt(count) / standard deviation.

    Args:
        reviews: Token ids of the training reviews.
        ratings: Their ratings, (n,).
        words: Token ids that may be chosen, (w,) int64.
        most: How many are chosen at most, those with the highest absolute scores.
        least_count: Reviews that a word must be in.

    Raises:
        InputError: No word reaches a score of 2.
    """
    counts = np.zeros(int(words.max()) + 1)
    sums = np.zeros_like(counts)
    for review, rating in zip(reviews, ratings - ratings.mean(), strict=True):
        found = np.unique(review)
        found = found[found < len(counts)]
        counts[found] += 1
        sums[found] += rating
    allowed = words[counts[words] >= least_count]
    scores = np.abs(sums[allowed]) / np.sqrt(counts[allowed]) / max(float(ratings.std()), 1e-9)
    chosen = np.argsort(-scores, kind="stable")[:most]
    chosen = allowed[chosen[scores[chosen] >= LEAST_SCORE]]
    if not len(chosen):
        raise InputError(
            f"No word goes with the ratings of {len(reviews)} training reviews (a score of {LEAST_SCORE:g} or more and "
            f"{least_count} reviews or more); name opinion words with --opinions FILE."
        )
    return np.sort(chosen)


def whole_words(vocabulary: dict[str, int]) -> np.ndarray:
    """Token ids of tokens of letters alone, which begin a word, ascending, int64."""
    return np.array(sorted(row for token, row in vocabulary.items() if token.isalpha()), dtype=np.int64)


def opinion_places(review: np.ndarray, is_opinion: np.ndarray, continues: np.ndarray) -> np.ndarray:
    """Positions of opinion words in a review, (k,) int64.

    Args:
        review: Token ids, (length,).
        is_opinion: Of each token id of the vocabulary, whether it is an opinion word, bool.
        continues: Of each token id, whether it goes on with the word before it, bool; a token before one is no word.
    """
    following = np.append(continues[review[1:]], False)
    return np.flatnonzero(is_opinion[review] & ~following)
