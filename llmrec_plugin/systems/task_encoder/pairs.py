"""From interactions to pairs of a query, which is a user's history or text, and the item that came next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import ITEM, RATING, TIME, USER, Dataset, histories, split_dataset

if TYPE_CHECKING:
    import pandas as pd

Query = Literal["history", "user"]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Queries with the items that came next, n of them.

    Attributes:
        queries: n texts.
        items: (n,) int64, rows of the catalogue.
        past: n sets of items that the user had before and that are no answers; empty for training.
        owned: n sets of items that the user has in all of the training part; never negatives.
    """

    queries: list[str]
    items: np.ndarray
    past: list[frozenset[int]]
    owned: list[frozenset[int]]

    def __len__(self) -> int:
        return len(self.queries)

    def take(self, rows: Sequence[int] | np.ndarray) -> Pairs:
        """The pairs of these rows, in their order."""
        return Pairs(
            queries=[self.queries[row] for row in rows],
            items=self.items[rows],
            past=[self.past[row] for row in rows],
            owned=[self.owned[row] for row in rows],
        )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned and what is measured.

    Attributes:
        texts: Text of each item of the catalogue: those with a text that training or validation names.
        train: To learn from.
        validation: To stop and to measure on.
        counts: (items,) int64: how often each is in training, for the trivial baseline.
        without_query: Validation events that are left out because the user has no history, or no text, before them.
    """

    texts: list[str]
    train: Pairs
    validation: Pairs
    counts: np.ndarray
    without_query: int


def make_task(
    dataset: Dataset,
    text: str,
    *,
    query: Query = "history",
    user_text: str = "",
    last_n: int = 5,
    liked_from: float | None = None,
    seed: int = 0,
) -> Task:
    """The pairs of a data set; a history never holds its own item or anything later.

    Args:
        dataset: Interactions and texts.
        text: Template of an item's text over its columns.
        query: ``history``: the texts of the last items, the newest first, joined by ``", "``, as an `EmbeddingFeature`
            reads a list; ``user``: the user's own text.
        user_text: Template over the users' columns, for ``user``.
        last_n: Items of a history at most.
        liked_from: Events with a lower rating are left out; None keeps all.
        seed: Of the split, where it is drawn.

    Raises:
        InputError: A part has no pairs, or a template names a column that is not there.
    """
    import pandas as pd

    split = split_dataset(dataset, seed=seed)
    known = {item: shown for item, shown in _texts(dataset, text).items() if shown}
    parts = [_usable(part, known, liked_from) for part in (split.train, split.validation)]
    events = pd.concat([parts[0].assign(_train=True), parts[1].assign(_train=False)], ignore_index=True)
    if dataset.timed:  # a split that is given need not be one in time
        events = events.sort_values(TIME, kind="stable", ignore_index=True)
    learned = events["_train"].to_numpy()
    catalogue = {item: row for row, item in enumerate(sorted(set(events[ITEM])))}
    texts = [known[item] for item in catalogue]
    items = events[ITEM].map(catalogue).to_numpy(dtype=np.int64)
    if query == "user":
        of_user = _user_texts(dataset, user_text)
        queries = [of_user.get(user, "") for user in events[USER]]
    else:
        queries = [", ".join(known[item] for item in earlier) for earlier in histories(events, last_n)]
    owned = {user: frozenset(group.map(catalogue)) for user, group in events[learned].groupby(USER, sort=False)[ITEM]}
    nothing: frozenset[int] = frozenset()
    pairs = Pairs(
        queries=queries,
        items=items,
        past=_had_before(events, items, ~learned),
        owned=[owned.get(user, nothing) for user in events[USER]],
    )
    asked = np.array([bool(text) for text in queries], dtype=bool)
    train, validation = (pairs.take(np.flatnonzero(asked & side)) for side in (learned, ~learned))
    if not len(train) or not len(validation):
        raise InputError(
            f"data set {dataset.name!r}: expected pairs to learn from and to measure on, got {len(train)} and "
            f"{len(validation)}. Look at the text templates and at liked_from."
        )
    return Task(
        texts=texts,
        train=train,
        validation=validation,
        counts=np.bincount(items[learned], minlength=len(texts)),
        without_query=int((~asked & ~learned).sum()),
    )


def false_negatives(pairs: Pairs) -> np.ndarray:
    """Which items of a batch are no negatives of which query, (n, n) bool: the same item, or one that the user has.

    A pair's own item is not among them.
    """
    same = pairs.items[:, None] == pairs.items[None, :]
    has = np.array([[int(item) in owned for item in pairs.items] for owned in pairs.owned], dtype=bool)
    return (same | has) & ~np.eye(len(pairs), dtype=bool)


def _had_before(events: pd.DataFrame, items: np.ndarray, wanted: np.ndarray) -> list[frozenset[int]]:
    """For each event that is `wanted` the items of its user's events at earlier times; nothing for the others."""
    times = events[TIME].to_numpy() if TIME in events.columns else np.arange(len(events))
    found: list[frozenset[int]] = [frozenset()] * len(events)
    for rows in events.groupby(USER, sort=False).indices.values():
        for row in rows[wanted[rows]]:
            found[row] = frozenset(items[rows[times[rows] < times[row]]].tolist())
    return found


def _usable(events: pd.DataFrame, known: dict[str, str], liked_from: float | None) -> pd.DataFrame:
    if liked_from is not None and RATING not in events.columns:
        raise InputError(f"task-encoder: liked_from={liked_from} needs a column {RATING!r}; leave it out.")
    kept = events[ITEM].isin(known)
    return events[kept if liked_from is None else kept & (events[RATING] >= liked_from)]


def _texts(dataset: Dataset, template: str) -> dict[str, str]:
    try:
        return dataset.item_texts(template)
    except (KeyError, IndexError) as exc:
        raise InputError(
            f"data set {dataset.name!r}: the text template {template!r} names {exc}; the items have the columns "
            f"{', '.join(dataset.items.columns)}."
        ) from exc


def _user_texts(dataset: Dataset, template: str) -> dict[str, str]:
    rows = dataset.users.fillna("").to_dict("records")
    try:
        return {row[USER]: template.format(**row).strip() for row in rows}
    except (KeyError, IndexError) as exc:
        raise InputError(
            f"data set {dataset.name!r}: the text template {template!r} names {exc}; the users have the columns "
            f"{', '.join(dataset.users.columns)}."
        ) from exc
