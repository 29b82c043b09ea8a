"""Ratings from means of users and items: what a model of ratings must beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrec_plugin.interactions import ITEM, RATING, USER
from llmrec_plugin.systems.past import MOMENT, newest_before

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Means:
    """Rating = mean of all + what the item differs from it + what the user differs from both.

    Attributes:
        overall: Mean of the training ratings.
        users: Difference of each known user.
        items: Difference of each known item.
        shrink: How many further average ratings draw each difference towards 0.
    """

    overall: float
    users: dict[str, float]
    items: dict[str, float]
    shrink: float

    @classmethod
    def fit(cls, users: Sequence[str], items: Sequence[str], ratings: np.ndarray, *, shrink: float = 5.0) -> Means:
        """Means of training rows; each difference is drawn towards 0 as if by `shrink` further average ratings."""
        overall = float(np.mean(ratings))
        of_items = _differences(items, ratings - overall, shrink)
        rest = ratings - overall - np.array([of_items[item] for item in items])
        return cls(overall, _differences(users, rest, shrink), of_items, shrink)

    def predict(self, users: Sequence[str], items: Sequence[str]) -> np.ndarray:
        """The ratings, (n,) float64; users and items that are not known differ by nothing."""
        values = [
            self.users.get(user, 0.0) + self.items.get(item, 0.0) for user, item in zip(users, items, strict=True)
        ]
        return self.overall + np.array(values, dtype=np.float64)

    def predict_at(self, users: np.ndarray, items: np.ndarray, moments: np.ndarray, events: pd.DataFrame) -> np.ndarray:
        """The ratings, (n,) float64, with each user's difference from the 50 newest events strictly before a moment.

        Args:
            users: (n,) of str.
            items: (n,) of str.
            moments: (n,) int64.
            events: Rated interactions with a column ``moment``, see `llmrec_plugin.systems.past.timeline`.
        """
        rest = events[RATING].to_numpy() - self.overall - _values(self.items, list(events[ITEM]))
        found = newest_before(users, moments, events[USER].to_numpy(), events[MOMENT].to_numpy(), 50)
        earlier = found >= 0
        differences = np.where(earlier, rest[found], 0).sum(axis=1) / (earlier.sum(axis=1) + self.shrink)
        return np.asarray(self.overall + differences + _values(self.items, list(items)))


def rating_scores(predicted: np.ndarray, ratings: np.ndarray, liked: float | None = None) -> dict[str, float]:
    """MSE, RMSE and, if both kinds are there, AUC of ratings from `liked` on against those below it."""
    error = float(np.mean((np.asarray(predicted, dtype=np.float64) - ratings) ** 2))
    scores = {"mse": error, "rmse": error**0.5}
    if liked is not None and 0 < (ratings >= liked).sum() < len(ratings):
        scores["auc"] = auc(predicted, ratings >= liked)
    return scores


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Share of pairs of a positive and another row that the scores put in that order; a tie counts half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    hits = int(positive.sum())
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (len(ranks) - hits)))


def _values(differences: dict[str, float], keys: Iterable[str]) -> np.ndarray:
    return np.array([differences.get(key, 0.0) for key in keys], dtype=np.float64)


def _differences(keys: Sequence[str], rest: np.ndarray, shrink: float) -> dict[str, float]:
    distinct, inverse = np.unique(np.asarray(keys, dtype=object).astype(str), return_inverse=True)
    sums = np.bincount(inverse, weights=rest)
    return dict(zip(distinct.tolist(), (sums / (np.bincount(inverse) + shrink)).tolist(), strict=True))
