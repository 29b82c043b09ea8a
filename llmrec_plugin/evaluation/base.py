"""Columns of a ranker without language models: counts, ratings, recency and what is used together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmrec_plugin.evaluation.extras import need
from llmrec_plugin.evaluation.features import Columns
from llmrec_plugin.evaluation.windows import NEVER, Catalogue, Log, Rows, Window

_DAY = 86_400_000_000  # microseconds
_LISTS = 128  # whose scores of all items are held at a time
_SHRINK = 5.0  # events by which a mean rating is drawn to the mean of all
_RARE = 10.0  # events added to a candidate's
_LAST = 5


@dataclass
class BaseColumns:
    """Popularity, activity, co-occurrence, recency and mean ratings, from the window's snapshot and the histories.

    Co-occurrence is the sum over the history of how often a candidate was used by the users of that item, each user
    divided by the root of its activity, each count by the roots of both items' popularity (the candidate's with ten
    events more, so that rare items do not win by chance); ``last`` counts the newest five items only, ``liked`` liked
    events only.
    """

    name: str = "base"
    _known: tuple[Log, _Statistics] | None = field(default=None, repr=False)
    _shortlist: tuple[Window, int, Rows] | None = field(default=None, repr=False)

    def columns(self, window: Window, rows: Rows) -> Columns:
        known = self._statistics(window)
        query, item = rows.query, rows.item
        timed, rated = window.catalogue.timed, window.catalogue.rated
        lengths = np.diff(window.offsets)
        found = {
            "item_events": np.log1p(known.events[item]),
            "item_recent_events": np.log1p(known.recent[item]) if timed else None,
            "user_events": np.log1p(lengths)[query],
            "item_mean": known.mean[item] if rated else None,
            "user_mean": _history_means(window)[query] if rated else None,
        }
        if timed:
            last = window.latest()
            with np.errstate(invalid="ignore"):
                found["user_idle"] = np.where(last == NEVER, np.nan, _days(window.moment - last))[query]
                found["item_idle"] = np.where(known.last == NEVER, np.nan, _days(window.start - known.last))[item]
                found["item_age"] = np.where(known.first == NEVER, np.nan, _days(window.start - known.first))[item]
        found |= self._together(window, rows, known)
        kept = {name: values for name, values in found.items() if values is not None}
        newest = np.full(len(window), known.newest) if timed else np.full(len(window), NEVER)
        return Columns(
            names=tuple(kept),
            values=np.stack(list(kept.values()), axis=1).astype(np.float32),
            latest=np.maximum(newest, window.latest())[query],
        )

    def shortlist(self, window: Window, most: int) -> Rows:
        """A recall stage: `most` items of each list that are not in its history, ascending.

        Half are the best by co-occurrence with the history, the rest the most popular ones. That of the window that was
        asked last is kept: a set and its controls ask alike.
        """
        if self._shortlist is None or self._shortlist[0] is not window or self._shortlist[1] != most:
            self._shortlist = (window, most, self._recalled(window, most))
        return self._shortlist[2]

    def _recalled(self, window: Window, most: int) -> Rows:
        columns = self.columns(window, Rows.everything(window))
        size = len(window.catalogue.items)
        place = {name: number for number, name in enumerate(columns.names)}
        lists = []
        for query in range(len(window)):
            part = columns.values[query * size : (query + 1) * size]
            open_items = np.ones(size, dtype=bool)
            open_items[window.past_items(query)] = False
            chosen: dict[int, None] = {}
            for name, count in (("together", most // 2), ("item_events", most)):
                order = np.argsort(-part[:, place[name]], kind="stable")
                for item in order[open_items[order]]:
                    if len(chosen) >= count:
                        break
                    chosen[int(item)] = None
            lists.append(np.array(sorted(chosen), dtype=np.int64))
        return Rows.of(lists)

    def _statistics(self, window: Window) -> _Statistics:
        if self._known is None or self._known[0] is not window.snapshot:
            self._known = (window.snapshot, _Statistics.of(window.snapshot, window.catalogue))
        return self._known[1]

    def _together(self, window: Window, rows: Rows, known: _Statistics) -> dict[str, np.ndarray]:
        sparse = need("scipy.sparse")

        size = len(window.catalogue.items)
        found = {"together": np.zeros(len(rows)), "together_last": np.zeros(len(rows))}
        if window.catalogue.rated:
            found["together_liked"] = np.zeros(len(rows))
        for first in range(0, len(window), _LISTS):
            queries = np.arange(first, min(first + _LISTS, len(window)))
            begin, end = window.offsets[queries[0]], window.offsets[queries[-1] + 1]
            lists = np.repeat(np.arange(len(queries)), np.diff(window.offsets[first : queries[-1] + 2]))
            items, liked = window.history.item[begin:end], window.history.liked[begin:end]
            place = np.arange(begin, end) - window.offsets[queries][lists]
            chosen = {
                "together": np.ones(len(items), dtype=bool),
                "together_last": place < _LAST,
                "together_liked": liked,
            }
            part = slice(rows.offsets[first], rows.offsets[queries[-1] + 1])
            where = np.repeat(np.arange(len(queries)), np.diff(rows.offsets[first : queries[-1] + 2]))
            for name in found:
                keep = chosen[name]
                weights = np.ones(int(keep.sum()), dtype=np.float32)
                history = sparse.csr_matrix((weights, (lists[keep], items[keep])), shape=(len(queries), size))
                left, right = known.liked if name == "together_liked" else known.used
                scores = ((history @ left.T) @ right).toarray()
                found[name][part] = scores[where, rows.item[part]]
        return {name: np.log1p(values) for name, values in found.items()}


@dataclass(frozen=True, kw_only=True)
class _Statistics:
    """Of a snapshot: (M,) arrays per item, and pairs of (U, M) matrices whose product over users is co-occurrence."""

    events: np.ndarray
    recent: np.ndarray
    mean: np.ndarray
    first: np.ndarray
    last: np.ndarray
    newest: int
    used: Any
    liked: Any

    @classmethod
    def of(cls, log: Log, catalogue: Catalogue) -> _Statistics:
        size = len(catalogue.items)
        events = np.bincount(log.item, minlength=size).astype(np.float64)
        overall = float(np.nanmean(log.rating)) if catalogue.rated and len(log) else 0.0
        sums = np.bincount(log.item, weights=np.nan_to_num(log.rating, nan=overall), minlength=size)
        first, last = np.full(size, NEVER), np.full(size, NEVER)
        if catalogue.timed and len(log):
            last[log.item] = log.time  # in order of time: the last one stays
            first[log.item[::-1]] = log.time[::-1]
        quarter = log.item[len(log) * 3 // 4 :]
        return cls(
            events=events,
            recent=np.bincount(quarter, minlength=size).astype(np.float64),
            mean=(sums + _SHRINK * overall) / (events + _SHRINK),
            first=first,
            last=last,
            newest=int(log.time.max()) if len(log) else NEVER,
            used=_matrix(log, catalogue),
            liked=_matrix(log.take(log.liked), catalogue) if catalogue.rated else None,
        )


def _matrix(log: Log, catalogue: Catalogue) -> Any:
    sparse = need("scipy.sparse")

    shape = (len(catalogue.users), len(catalogue.items))
    matrix = sparse.csr_matrix((np.ones(len(log), dtype=np.float32), (log.user, log.item)), shape=shape)
    matrix.data[:] = 1.0  # used twice is used
    counts = np.bincount(matrix.indices, minlength=shape[1])
    activity = np.maximum(np.diff(matrix.indptr), 1)
    left = matrix @ sparse.diags(1 / np.sqrt(np.maximum(counts, 1)))
    right = sparse.diags(1 / np.sqrt(activity)) @ matrix @ sparse.diags(1 / np.sqrt(counts + _RARE))
    return left.astype(np.float32).tocsr(), right.astype(np.float32).tocsr()


def _history_means(window: Window) -> np.ndarray:
    lists = np.repeat(np.arange(len(window)), np.diff(window.offsets))
    sums = np.bincount(lists, weights=np.nan_to_num(window.history.rating), minlength=len(window))
    counts = np.bincount(lists, minlength=len(window))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _days(microseconds: np.ndarray) -> np.ndarray:
    """Logarithm of days, and of a part of one; overflow of `NEVER` is masked by the callers."""
    return np.log1p(np.maximum(microseconds.astype(np.float64), 0) / _DAY)


def baselines(columns: Columns) -> dict[str, np.ndarray]:
    """Scores of rankings without a ranker, by name, from the base columns."""
    place = {name: number for number, name in enumerate(columns.names)}
    wanted = {
        "popularity": "item_events",
        "recent popularity": "item_recent_events",
        "item mean": "item_mean",
        "most recently used": "item_idle",
        "co-occurrence": "together",
    }
    found = {}
    for name, column in wanted.items():
        if column in place:
            scores = columns.values[:, place[column]].astype(np.float64)
            found[name] = np.nan_to_num(-scores, nan=-np.inf) if column == "item_idle" else scores
    return found
