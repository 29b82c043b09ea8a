"""Built-in feature sets: similarities of vectors, overlap of tags, and a feature of pairs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from llmrec_plugin.evaluation.base import BaseColumns
from llmrec_plugin.evaluation.declared import (
    Computer,
    Inputs,
    item_columns,
    list_columns,
    reads_history,
)
from llmrec_plugin.evaluation.extras import need
from llmrec_plugin.evaluation.features import Change, Columns, Cost, Vectors
from llmrec_plugin.evaluation.windows import NEVER, Rows, Window

_BYTES = {"list": 4, "float32": 4, "float16": 2, "int8": 1}


@dataclass(kw_only=True)
class SimilaritySet:
    """Similarity of an item's vector to the user's vector and to the items of the history.

    Columns, each with the set's name before it: ``user`` to the vector of the feature `user`; ``history`` to the mean
    vector of the newest liked events; ``nearest`` to the nearest of them; ``disliked`` to the mean of those that were
    not liked, where there are ratings.

    Attributes:
        name: Of the set.
        computer: What computes declared features.
        item: Feature of items that gives a vector.
        user: Feature of users or of their histories that gives a vector of the same space, or None.
        inputs: Where the columns of `user` come from.
        history: Whether there are columns of the history.
        with_vectors: Whether rankers that read vectors get them.
    """

    name: str
    computer: Computer
    item: Any
    user: Any = None
    inputs: Inputs = field(default_factory=Inputs)
    history: bool = True
    with_vectors: bool = False
    noise: int | None = None
    _items: np.ndarray | None = field(default=None, repr=False)
    _compared: np.ndarray | None = field(default=None, repr=False)
    _users: tuple[Window, np.ndarray] | None = field(default=None, repr=False)
    _catalogue: Any = field(default=None, repr=False)
    _asked: Any = field(default=None, repr=False)

    def columns(self, window: Window, rows: Rows) -> Columns:
        items = self._item_vectors(window)
        found: dict[str, np.ndarray] = {}
        if self.user is not None:
            found["user"] = self._pairs(self._user_vectors(window), rows)
        if self.history:
            liked, other = self._means(window, items)
            found["history"] = self._pairs(liked, rows)
            found["nearest"] = self._nearest(window, items, rows)
            if window.catalogue.rated:
                found["disliked"] = self._pairs(other, rows)
        uses_events = self.history or reads_history(self.user, self.inputs)
        latest = window.latest() if uses_events else np.full(len(window), NEVER)
        return Columns(
            names=tuple(f"{self.name}_{name}" for name in found),
            values=np.stack(list(found.values()), axis=1).astype(np.float32),
            latest=latest[rows.query],
        )

    def vectors(self, window: Window) -> Vectors | None:
        if not self.with_vectors:
            return None
        items = self._item_vectors(window)
        query = self._user_vectors(window) if self.user is not None else self._means(window, items)[0]
        return Vectors(item=items, query=query)

    def cost(self) -> Cost:
        """Of the vectors of all items, and of all users where there is a feature of them."""
        if self._catalogue is None:
            return Cost(seconds=0.0, item_bytes=0.0)
        seconds = self.computer.seconds(self.item, item_columns(self.item, self._catalogue))
        if self._asked:
            rows = len(next(iter(self._asked.values())))
            users = len(self._catalogue.users)
            seconds += self.computer.seconds(self.user, self._asked) / max(rows, 1) * users
        width = 0 if self._items is None else self._items.shape[1]
        return Cost(seconds=seconds, item_bytes=width * _BYTES[getattr(self.item, "storage", "list")])

    def randomized(self, seed: int) -> SimilaritySet:
        """The same set with random vectors of the lengths that the real ones have."""
        return replace(self, noise=seed, _items=None, _compared=None, _users=None)

    def _item_vectors(self, window: Window) -> np.ndarray:
        if self._items is None:
            self._catalogue = window.catalogue
            if self.user is not None:
                self.computer.check_space(self.item, self.user)
            found = self.computer.vectors(self.item, item_columns(self.item, window.catalogue))
            self._items = found if self.noise is None else _random_like(found, self.noise)
        return self._items

    def _user_vectors(self, window: Window) -> np.ndarray:
        """(Q, d) of the feature `user`; kept for the window that was asked last."""
        if self._users is None or self._users[0] is not window:
            if self.noise is not None:
                items = self._item_vectors(window)
                if reads_history(self.user, self.inputs):
                    found = self._means(window, items)[0]
                else:
                    found = _random_like(np.ones((len(window.catalogue.users), items.shape[1])), self.noise + 1)[
                        window.user
                    ]
            else:
                self._asked = list_columns(self.user, window, self.inputs)
                found = self.computer.vectors(self.user, self._asked)
            self._users = (window, found)
        return self._users[1]

    def _metric(self, left: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(a, b) similarities of vectors to items, larger is nearer."""
        if self._compared is None:
            assert self._items is not None
            self._compared = _unit(self._items) if self.item.metric == "cosine" else self._items
        # Copying most of the vectors takes longer than comparing all of them.
        most = 2 * len(rows) > len(self._compared)
        right = self._compared if most else self._compared[rows]
        if self.item.metric == "cosine":
            found = _unit(left) @ right.T
        elif self.item.metric == "dot":
            found = left @ right.T
        else:
            squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None, :] - 2 * left @ right.T
            found = -np.sqrt(np.maximum(squares, 0))
        return found[:, rows] if most else found

    def _pairs(self, query: np.ndarray, rows: Rows) -> np.ndarray:
        found = np.empty(len(rows), dtype=np.float32)
        for number, (first, last) in enumerate(pairwise(rows.offsets)):
            found[first:last] = self._metric(query[number : number + 1], rows.item[first:last])[0]
        return found

    def _recent(self, window: Window, query: int, *, liked: bool) -> np.ndarray:
        rows = np.arange(window.offsets[query], window.offsets[query + 1])
        rows = rows[window.history.liked[rows] == liked][: self.inputs.last_n]
        return window.history.item[rows]

    def _means(self, window: Window, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Q, d) mean vectors of the newest liked and not liked events; NaN without any."""
        found = np.full((2, len(window), items.shape[1]), np.nan, dtype=np.float32)
        for query in range(len(window)):
            for side, liked in enumerate((True, False)):
                past = items[self._recent(window, query, liked=liked)]
                past = past[~np.isnan(past).any(axis=1)]
                if len(past):
                    found[side, query] = past.mean(axis=0)
        return found[0], found[1]

    def _nearest(self, window: Window, items: np.ndarray, rows: Rows) -> np.ndarray:
        found = np.full(len(rows), np.nan, dtype=np.float32)
        for query, (first, last) in enumerate(pairwise(rows.offsets)):
            past = items[self._recent(window, query, liked=True)]
            past = past[~np.isnan(past).any(axis=1)]
            if len(past):
                found[first:last] = self._metric(past, rows.item[first:last]).max(axis=0)
        return found


@dataclass(kw_only=True)
class TagSet:
    """Overlap of an item's tags with those of the history.

    Columns, each with the set's name before it: ``history``, the cosine of the tags with the sum over the newest liked
    events, tags weighted by inverse document frequency; ``last``, the share of the item's tags that the newest liked
    event has; ``count`` of the item's tags.

    Attributes:
        name: Of the set.
        tags: A column of words, a column of lists, or a `TokenFeature` of items whose output is tags.
        computer: What computes a declared feature.
        inputs: How many events count.
    """

    name: str
    tags: Any
    computer: Computer | None = None
    inputs: Inputs = field(default_factory=Inputs)
    _matrix: Any = field(default=None, repr=False)
    _catalogue: Any = field(default=None, repr=False)
    _bytes: float = field(default=0.0, repr=False)

    def columns(self, window: Window, rows: Rows) -> Columns:
        if self._matrix is None:
            self._catalogue = window.catalogue
            self._matrix = self._tag_matrix()
        counts = np.diff(self._matrix.indptr)
        weights = (
            np.log((len(counts) + 1) / (np.bincount(self._matrix.indices, minlength=self._matrix.shape[1]) + 1)) + 1
        )
        lengths = np.sqrt(self._matrix @ weights**2)
        values = np.full((len(rows), 3), np.nan, dtype=np.float32)
        values[:, 2] = counts[rows.item]
        for query, (first, last) in enumerate(pairwise(rows.offsets)):
            past = window.past(query)
            liked = past.item[past.liked][: self.inputs.last_n]
            if not len(liked):
                continue
            profile = np.asarray(self._matrix[liked].sum(axis=0)).ravel() * weights
            newest = np.asarray(self._matrix[liked[0]].todense()).ravel()
            shown = self._matrix[rows.item[first:last]]
            norm = lengths[rows.item[first:last]] * max(float(np.linalg.norm(profile)), 1e-12)
            with np.errstate(invalid="ignore", divide="ignore"):
                values[first:last, 0] = np.where(norm > 0, (shown @ (profile * weights)) / norm, np.nan)
                own = counts[rows.item[first:last]]
                values[first:last, 1] = np.where(own > 0, (shown @ newest) / own, np.nan)
        return Columns(
            names=tuple(f"{self.name}_{name}" for name in ("history", "last", "count")),
            values=values,
            latest=window.latest()[rows.query],
        )

    def cost(self) -> Cost:
        """Of tags that a model writes; those of a column cost nothing but their bytes."""
        seconds = 0.0
        if not isinstance(self.tags, str) and self.computer is not None and self._catalogue is not None:
            seconds = self.computer.seconds(self.tags, item_columns(self.tags, self._catalogue))
        return Cost(seconds=seconds, item_bytes=self._bytes)

    def randomized(self, seed: int) -> TagSet:
        """The same set with random tags, as many for each item, as frequent over all."""
        return _RandomTags(name=self.name, tags=self.tags, computer=self.computer, inputs=self.inputs, seed=seed)

    def _tag_matrix(self) -> Any:
        sparse = need("scipy.sparse")

        lists = self._tag_lists()
        self._bytes = sum(len(tag.encode()) + 1 for tags in lists for tag in tags) / max(len(lists), 1)
        known = {tag: number for number, tag in enumerate(sorted({tag for tags in lists for tag in tags}))}
        item = np.repeat(np.arange(len(lists)), [len(tags) for tags in lists])
        tag = np.array([known[tag] for tags in lists for tag in tags], dtype=np.int64)
        return sparse.csr_matrix((np.ones(len(tag)), (item, tag)), shape=(len(lists), max(len(known), 1)))

    def _tag_lists(self) -> list[list[str]]:
        if isinstance(self.tags, str):
            values: list[Any] = self._catalogue.item_column(self.tags)
        else:
            assert self.computer is not None
            written = self.computer.values(self.tags, item_columns(self.tags, self._catalogue))
            values = [None if value is None else value.value for value in written]
        split = [value.split() if isinstance(value, str) else list(value or ()) for value in values]
        return [list(dict.fromkeys(map(str, tags))) for tags in split]


@dataclass(kw_only=True)
class _RandomTags(TagSet):
    seed: int = 0

    def _tag_lists(self) -> list[list[str]]:
        lists = super()._tag_lists()
        drawn = iter(np.random.default_rng(self.seed).permutation([tag for tags in lists for tag in tags]).tolist())
        return [list(dict.fromkeys(next(drawn) for _ in tags)) for tags in lists]


@dataclass(kw_only=True)
class PairSet:
    """A feature that gives one number, or a few, for a list and an item.

    Attributes:
        name: Of the set.
        computer: What computes it.
        pair: The feature; it reads columns of items, of users, and of histories.
        inputs: Where the columns of histories come from.
        shortlist: Items of each list that have a value, those of `BaseColumns.shortlist`; None is all. A value of a
            pair costs an inference, so it is asked for what another stage has found.
        change: What is read in place of the lists and candidates; None is themselves.
    """

    name: str
    computer: Computer
    pair: Any
    inputs: Inputs = field(default_factory=Inputs)
    shortlist: int | None = None
    change: Change | None = field(default=None, repr=False)
    _base: BaseColumns = field(default_factory=BaseColumns, repr=False)
    _sample: Any = field(default=None, repr=False)
    _items: int = field(default=0, repr=False)

    def columns(self, window: Window, rows: Rows) -> Columns:
        if self.shortlist is None:
            return self._columns(window, rows)
        asked = self._asked(window, rows, self.shortlist)
        per_list = np.bincount(rows.query[asked], minlength=len(window))
        found = self._columns(window, Rows(item=rows.item[asked], offsets=np.append(0, np.cumsum(per_list))))
        values = np.full((len(rows), len(found.names)), np.nan, dtype=np.float32)
        values[asked] = found.values
        latest = np.full(len(rows), NEVER)
        latest[asked] = found.latest
        return Columns(names=found.names, values=values, latest=latest)

    def _asked(self, window: Window, rows: Rows, most: int) -> np.ndarray:
        """(len(rows),) bool: whether a row's item is on the shortlist of its list."""
        chosen = self._base.shortlist(window, most)
        size = len(window.catalogue.items)
        return np.isin(rows.query * size + rows.item, chosen.query * size + chosen.item)

    def reading(self, change: Change) -> PairSet:
        """The same set with values of something else where the real one has values."""
        return replace(self, change=change)

    def _columns(self, window: Window, rows: Rows) -> Columns:
        if self.change is not None:
            window, rows = self.change(window, rows)
        catalogue, query = window.catalogue, rows.query
        of_item = [name for name in self.pair.columns if name in catalogue.data.items.columns]
        columns: dict[str, list[Any]] = {}
        for name in of_item:
            column = list(catalogue.items) if name == "item_id" else catalogue.item_column(name)
            columns[name] = [column[item] for item in rows.item]
        rest = _Reads([name for name in self.pair.columns if name not in of_item])
        for name, values in list_columns(rest, window, self.inputs).items():
            columns[name] = [values[number] for number in query]
        self._sample, self._items = columns, min(self.shortlist or len(catalogue.items), len(catalogue.items))
        found = self.computer.vectors(self.pair, columns)
        names = (self.name,) if found.shape[1] == 1 else tuple(f"{self.name}_{n}" for n in range(found.shape[1]))
        latest = window.latest() if reads_history(rest, self.inputs) else np.full(len(window), NEVER)
        return Columns(names=names, values=found, latest=latest[query])

    def cost(self) -> Cost:
        """Of one list, the whole catalogue or a shortlist of it; a value of a pair is not stored."""
        rows = len(next(iter(self._sample.values()))) if self._sample else 0
        if not rows:
            return Cost(seconds=0.0, item_bytes=0.0)
        return Cost(seconds=self.computer.seconds(self.pair, self._sample) / rows * self._items, item_bytes=0.0)


@dataclass(frozen=True)
class _Reads:
    columns: list[str]


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def _random_like(vectors: np.ndarray, seed: int) -> np.ndarray:
    """(n, d) float32: random directions with the lengths of `vectors`, NaN where they are."""
    drawn = np.random.default_rng(seed).standard_normal(vectors.shape)
    return (_unit(drawn) * np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
