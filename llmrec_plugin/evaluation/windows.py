"""What is ranked, and what was known at that moment.

    Dataset + Split -> `Log` (integer keys) -> `Window`s: snapshot of earlier events + lists with their histories

A **list** is one user at one moment: the items that the user then liked are relevant, everything the user has not had
before is a candidate. A **window** holds lists that share one **snapshot**: the events that statistics and models may
be made from. Nothing in a snapshot or a history is as late as its list's moment; `check_no_future` says so or raises.

* With times, the last part of train is cut into windows, each with the events before it as its snapshot, as if a batch
  job had run at its beginning. Validation and test are windows, too. A user's events in a window are cut into lists of
  `list_events`, each dated by its first event, and a list's history is exact up to that moment.
* Without times, users are dealt into folds; a fold's snapshot has the events of the other folds' users, so that no row
  helped to make its own statistics. A part of each user's train events is the list, the rest is its history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions.dataset import ITEM, RATING, TIME, USER, Dataset
from llmrec_plugin.interactions.dividing import RANKER_SHARE
from llmrec_plugin.interactions.splits import Split

if TYPE_CHECKING:
    import pandas as pd

NEVER = np.iinfo(np.int64).min
"""Moment of what is made from no event."""
END = np.iinfo(np.int64).max
"""Moment of lists without times: after all that is known."""


class LeakError(InputError):
    """A value comes from an event that is not earlier than its label."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """Events as arrays, in order of time.

    Attributes:
        user: (n,) int64 index into `Catalogue.users`.
        item: (n,) int64 index into `Catalogue.items`.
        time: (n,) int64 microseconds since 1970; `NEVER` without times.
        liked: (n,) bool: whether it counts as relevant.
        rating: (n,) float32, NaN without ratings.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    liked: np.ndarray
    rating: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Log:
        """The events of an index or a mask."""
        return Log(**{name: values[rows] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The users and items of a data set, both in ascending order of their keys.

    Attributes:
        data: The data set.
        users: (U,) keys.
        items: (M,) keys.
        timed: Whether events have times.
        rated: Whether events have ratings.
        liked: The smallest rating that counts as liked; every event does without ratings.
    """

    data: Dataset
    users: np.ndarray
    items: np.ndarray
    timed: bool
    rated: bool
    liked: float

    @classmethod
    def of(cls, data: Dataset, *, liked: float = 4.0) -> Catalogue:
        """The catalogue of a data set."""
        return cls(
            data=data,
            users=np.array(sorted(data.users[USER]), dtype=object),
            items=np.array(sorted(data.items[ITEM]), dtype=object),
            timed=data.timed,
            rated=RATING in data.interactions.columns,
            liked=liked,
        )

    def log(self, rows: pd.DataFrame) -> Log:
        """Interactions as arrays."""
        count = len(rows)
        rating = rows[RATING].to_numpy(dtype=np.float32) if self.rated else np.full(count, np.nan, dtype=np.float32)
        return Log(
            user=_index(self.users, rows[USER].to_numpy(dtype=object), USER),
            item=_index(self.items, rows[ITEM].to_numpy(dtype=object), ITEM),
            time=rows[TIME].astype("datetime64[us, UTC]").astype("int64").to_numpy()
            if self.timed
            else np.full(count, NEVER),
            liked=rating >= self.liked if self.rated else np.ones(count, dtype=bool),
            rating=rating,
        )

    def item_column(self, name: str) -> list[object]:
        """A column of the items' table in the order of `items`; missing values are None."""
        return _column(self.data.items, ITEM, name, self.items)

    def user_column(self, name: str) -> list[object]:
        """A column of the users' table in the order of `users`."""
        return _column(self.data.users, USER, name, self.users)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Q lists and what may be known for them.

    Attributes:
        name: For messages.
        catalogue: Of the data set.
        snapshot: Events that statistics are made from; all earlier than every list of the window.
        start: int64 moment of the snapshot; `END` without times.
        user: (Q,) int64.
        moment: (Q,) int64 microseconds; `END` without times.
        history: Events of the lists' users before their moments, newest first, one list after the other.
        offsets: (Q + 1,) int64: list q has ``history[offsets[q]:offsets[q + 1]]``.
        relevant: Q arrays of item indices, ascending.
        passed: Q arrays of items that the list's own events hold without being relevant: no negatives in training.
    """

    name: str
    catalogue: Catalogue
    snapshot: Log
    start: int
    user: np.ndarray
    moment: np.ndarray
    history: Log
    offsets: np.ndarray
    relevant: list[np.ndarray]
    passed: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.user)

    def past(self, query: int) -> Log:
        """The history of one list, newest first."""
        return self.history.take(np.arange(self.offsets[query], self.offsets[query + 1]))

    def past_items(self, query: int) -> np.ndarray:
        """The items of the history of one list, newest first."""
        return self.history.item[self.offsets[query] : self.offsets[query + 1]]

    def latest(self) -> np.ndarray:
        """(Q,) int64 moment of the newest event of each history; `NEVER` for an empty one."""
        latest = np.full(len(self), NEVER)
        filled = np.flatnonzero(np.diff(self.offsets))
        latest[filled] = self.history.time[self.offsets[filled]]
        return latest

    def names(self) -> list[str]:
        """A name for each list: the user, and with times the moment in microseconds: ``user@moment``."""
        users = [str(self.catalogue.users[user]) for user in self.user]
        if not self.catalogue.timed:
            return users
        return [f"{user}@{moment}" for user, moment in zip(users, self.moment.tolist(), strict=True)]

    def part(self, queries: np.ndarray) -> Window:
        """Some of the lists."""
        rows = [np.arange(self.offsets[query], self.offsets[query + 1]) for query in queries]
        return replace(
            self,
            user=self.user[queries],
            moment=self.moment[queries],
            history=self.history.take(np.concatenate([np.zeros(0, dtype=np.int64), *rows])),
            offsets=_offsets([len(part) for part in rows]),
            relevant=[self.relevant[query] for query in queries],
            passed=[self.passed[query] for query in queries],
        )

    def with_history(self, keep: np.ndarray) -> Window:
        """The same lists with the events of the history where `keep` (len(history),) is true."""
        lists = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        counts = np.bincount(lists[keep], minlength=len(self))
        return replace(self, history=self.history.take(keep), offsets=_offsets(counts))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Candidates of each list: list q has ``item[offsets[q]:offsets[q + 1]]``.

    Attributes:
        item: (R,) int64 index of an item; ascending within a list where all items are ranked.
        offsets: (Q + 1,) int64.
    """

    item: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.item)

    @property
    def query(self) -> np.ndarray:
        """(R,) int64: the list of each row."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @classmethod
    def everything(cls, window: Window) -> Rows:
        """Every item for each list of a window."""
        size = len(window.catalogue.items)
        return cls(item=np.tile(np.arange(size), len(window)), offsets=np.arange(len(window) + 1) * size)

    @classmethod
    def of(cls, lists: list[np.ndarray]) -> Rows:
        """Rows from one array of items for each list."""
        return cls(
            item=np.concatenate([np.zeros(0, dtype=np.int64), *lists]), offsets=_offsets([len(part) for part in lists])
        )


def check_no_future(moments: np.ndarray, latest: np.ndarray, what: str) -> None:
    """Raises if a value comes from an event that is later than its label's moment.

    Args:
        moments: (n,) int64 moments of the labels.
        latest: (n,) int64 moment of the newest event that each value is made from.
        what: Name of the feature, for the message.

    Raises:
        LeakError: At least one is later; says how many, and by how much the worst.
    """
    late = latest > moments
    if late.any():
        worst = np.flatnonzero(late)[np.argmax((latest - moments)[late])]
        ahead = (latest[worst] - moments[worst]) / 1e6
        raise LeakError(
            f"{what}: {int(late.sum())} of {len(late)} values come from events later than their labels, the worst by "
            f"{ahead:.6g} s (row {worst}). Date the rows of the feature by the newest event that they hold."
        )


def check_window(window: Window) -> None:
    """Raises if a list's history or snapshot holds something of its own time or its own events.

    Raises:
        LeakError: A history or a snapshot reaches into its list's time, or holds one of the list's relevant events.
    """
    per_list = np.repeat(np.arange(len(window)), np.diff(window.offsets))
    owners = window.history.user != window.user[per_list]
    if owners.any():
        raise LeakError(f"{window.name}: {int(owners.sum())} events of histories belong to other users.")
    if window.catalogue.timed:
        check_no_future(window.moment[per_list] - 1, window.history.time, f"{window.name}: histories")
        if len(window.snapshot) and len(window):
            newest = np.full(len(window), window.snapshot.time.max())
            check_no_future(np.minimum(window.moment, window.start) - 1, newest, f"{window.name}: snapshot")
        return
    size = len(window.catalogue.items)
    known = np.concatenate(
        [window.snapshot.user * size + window.snapshot.item, window.history.user * size + window.history.item]
    )
    own = np.concatenate([user * size + items for user, items in zip(window.user, window.relevant, strict=True)])
    inside = np.isin(own, known)
    if inside.any():
        user, item = divmod(int(own[inside][0]), size)
        raise LeakError(
            f"{window.name}: {int(inside.sum())} relevant events are also known ones, e.g. "
            f"{window.catalogue.users[user]!r} with {window.catalogue.items[item]!r}. Drop repeated interactions."
        )


def windows(
    catalogue: Catalogue,
    split: Split,
    *,
    list_events: int = 20,
    ranker_share: float = RANKER_SHARE,
    parts: int = 3,
    seed: int = 0,
) -> tuple[list[Window], Window, Window]:
    """Windows to train the ranker on, the one of validation and the one of test.

    Args:
        catalogue: Of the data set that was split.
        split: Its parts.
        list_events: Events of a user that make a list, with times.
        ranker_share: Share of train that the ranker learns from; the rest is only history. Without times: share of each
            user's train events that its list holds.
        parts: Windows (with times) or folds of users (without) that train is cut into.
        seed: Of the folds and of what a list holds, without times.
    """
    train, validation, test = (catalogue.log(part) for part in (split.train, split.validation, split.test))
    everything = _joined(train, validation)
    make = _timed_windows if catalogue.timed else _folds
    trained = make(catalogue, train, list_events=list_events, share=ranker_share, parts=parts, seed=seed)
    held_out = [
        _timed(name, catalogue, known, events, list_events)
        if catalogue.timed
        else _untimed(name, catalogue, known, events)
        for name, known, events in (("validation", train, validation), ("test", everything, test))
    ]
    for window in (*trained, *held_out):
        check_window(window)
    return trained, held_out[0], held_out[1]


def stale(window: Window, moment: int, seed: int = 0) -> Window:
    """The window as a feature sees it that was computed long ago.

    With times, histories end before `moment`. Without, half of each history is missing, by a hash of user and item.
    """
    history = window.history
    if window.catalogue.timed:
        return window.with_history(history.time < moment)
    mixed = (history.user * 2_654_435_761 + history.item * 40_503 + seed * 97) % 2_147_483_647
    return window.with_history((mixed // 7) % 2 == 0)


def _timed_windows(
    catalogue: Catalogue, train: Log, *, list_events: int, share: float, parts: int, seed: int
) -> list[Window]:
    cuts = [train.time[min(round(len(train) * (1 - share * (parts - part) / parts)), len(train) - 1)]
            for part in range(parts)]  # fmt: skip
    edges = [*dict.fromkeys(cuts), END]
    found = []
    for number, (start, end) in enumerate(pairwise(edges)):
        known = train.take(train.time < start)
        events = train.take((train.time >= start) & (train.time < end))
        if len(known) and len(events):
            found.append(_timed(f"train {number + 1}", catalogue, known, events, list_events))
    if not found:
        raise InputError("evaluate: all training events have one time; leave the times out of the data.")
    return found


def _timed(name: str, catalogue: Catalogue, known: Log, events: Log, list_events: int) -> Window:
    """Lists of consecutive events; events of one moment stay in one list."""
    log = _joined(known, events)
    order = np.lexsort((np.arange(len(log)), log.user))  # by user, then time
    log = log.take(order)
    new = order >= len(known)
    bounds = np.flatnonzero(np.diff(log.user, prepend=-1, append=-1))
    users, moments, histories, relevant, passed = [], [], [], [], []
    for first, last in pairwise(bounds):
        at = first + int(np.argmax(new[first:last])) if new[first:last].any() else last
        while at < last:
            end = min(at + list_events, last)
            while end < last and log.time[end] == log.time[end - 1]:
                end += 1
            past = np.arange(at - 1, first - 1, -1)
            past = past[log.time[past] < log.time[at]]
            own = log.item[at:end][log.liked[at:end]]
            own = np.unique(own[~np.isin(own, log.item[past])])
            if len(own):
                users.append(log.user[first])
                moments.append(log.time[at])
                histories.append(past)
                relevant.append(own)
                passed.append(np.setdiff1d(log.item[at:end], own))
            at = end
    return Window(
        name=name,
        catalogue=catalogue,
        snapshot=known,
        start=int(events.time.min()),
        user=np.array(users, dtype=np.int64),
        moment=np.array(moments, dtype=np.int64),
        history=log.take(np.concatenate([np.zeros(0, dtype=np.int64), *histories])),
        offsets=_offsets([len(past) for past in histories]),
        relevant=relevant,
        passed=passed,
    )


def _folds(catalogue: Catalogue, train: Log, *, list_events: int, share: float, parts: int, seed: int) -> list[Window]:
    rng = np.random.default_rng(seed)
    fold = rng.integers(0, parts, len(catalogue.users))
    drawn = rng.random(len(train))
    # Rank of each event among its user's by the drawn number: the first share is the list, the rest the history.
    order = np.lexsort((drawn, train.user))
    user = train.user[order]
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    counts = np.diff([*starts, len(user)])
    rank = np.arange(len(user)) - np.repeat(starts, counts)
    held = np.clip(np.round(counts * share), 1, np.maximum(counts - 1, 0))
    out = np.zeros(len(train), dtype=bool)
    out[order] = rank < np.repeat(held, counts)
    found = []
    for number in range(parts):
        mine = fold[train.user] == number
        if mine.any() and (~mine).any() and out[mine].any():
            window = _untimed(f"train fold {number + 1}", catalogue, train.take(mine & ~out), train.take(mine & out))
            found.append(replace(window, snapshot=train.take(~mine)))
    if not found:
        raise InputError("evaluate: too few users to train on; every user needs two interactions or more.")
    return found


def _untimed(name: str, catalogue: Catalogue, known: Log, events: Log) -> Window:
    """One list per user: its events, with what is known of it as history, in the order of rows, the last as newest."""
    past: dict[int, list[int]] = {}
    for row, user in enumerate(known.user.tolist()):
        past.setdefault(user, []).append(row)
    users, histories, relevant, passed = [], [], [], []
    events = events.take(np.argsort(events.user, kind="stable"))
    for first, last in pairwise(np.flatnonzero(np.diff(events.user, prepend=-1, append=-1))):
        user = events.user[first]
        rows = np.array(past.get(int(user), [])[::-1], dtype=np.int64)
        own = events.take(np.arange(first, last))
        liked = np.setdiff1d(own.item[own.liked], known.item[rows])
        if len(liked):
            users.append(user)
            histories.append(rows)
            relevant.append(liked)
            passed.append(np.setdiff1d(own.item, liked))
    return Window(
        name=name,
        catalogue=catalogue,
        snapshot=known,
        start=END,
        user=np.array(users, dtype=np.int64),
        moment=np.full(len(users), END),
        history=known.take(np.concatenate([np.zeros(0, dtype=np.int64), *histories])),
        offsets=_offsets([len(rows) for rows in histories]),
        relevant=relevant,
        passed=passed,
    )


def _joined(first: Log, second: Log) -> Log:
    return Log(**{name: np.concatenate([values, getattr(second, name)]) for name, values in vars(first).items()})


def _offsets(counts: list[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)


def _index(keys: np.ndarray, values: np.ndarray, name: str) -> np.ndarray:
    places = {key: place for place, key in enumerate(keys)}
    try:
        return np.array([places[value] for value in values], dtype=np.int64)
    except KeyError as exc:
        raise InputError(f"evaluate: {name} {exc.args[0]!r} has interactions and no row in its table.") from exc


def _column(table: pd.DataFrame, key: str, name: str, keys: np.ndarray) -> list[object]:
    if name not in table.columns:
        raise InputError(f"evaluate: the data has no column {name!r} for {key}, only {', '.join(table.columns)}.")
    values = dict(zip(table[key], table[name], strict=True))
    found = [values.get(each) for each in keys]
    return [None if value is None or value != value else value for value in found]
