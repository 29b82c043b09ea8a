"""Values of declared features for the rows of a data set, by the chain that also computes them for Feast.

items, lists -> columns -> Runner(artifact, cache) -> vectors, numbers or tags
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.binding import BoundSimilarity, BoundTokens, bind
from llmrec_plugin.errors import DeclarationError, InputError
from llmrec_plugin.evaluation.windows import Catalogue, Window
from llmrec_plugin.interactions.dataset import ITEM, USER
from llmrec_plugin.runtime.runner import Runner
from llmrec_plugin.settings import Settings
from llmrec_plugin.specs import HistoryEmbeddingFeature, SimilarityFeature

_SAMPLE = 64  # rows whose inference is timed


@dataclass(frozen=True, kw_only=True)
class EventList:
    """A list column with one side of the history alone, such as what was not liked.

    Attributes:
        shows: What each event gives, as in `Inputs.events`.
        liked: Whether the list holds the liked events or the others.
    """

    shows: str
    liked: bool


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the columns that a feature reads come from.

    Items have the columns of the items' table, lists those of the user's row, and `events`.

    Attributes:
        events: List column of a list -> what each event of the history gives: a column of the items' table,
            ``item_id``, ``rating`` or a template such as ``"{title}. {genres}"``; or an `EventList` of some events.
        last_n: Newest events that such a list holds.
        liked_only: Whether it holds liked events only.
    """

    events: Mapping[str, str | EventList] = field(default_factory=dict)
    last_n: int = 20
    liked_only: bool = False


class Computer:
    """Computes declared features; each model is loaded once.

    Args:
        settings: Where artifacts and the cache lie.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._runner = Runner(settings)

    def values(self, feature: Any, columns: Mapping[str, Sequence[Any]]) -> list[Any]:
        """What a feature gives for rows: (d,) float32 vectors, what a model wrote, numbers, or None."""
        return self._runner.compute(bind(feature, self._runner.store), columns, "batch").values

    def vectors(self, feature: Any, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """(n, dims) float32; a row without a vector is NaN, and so may all be, e.g. where all histories are empty."""
        return stacked(self.values(feature, columns), getattr(feature, "dims", None) or 1)

    def check_space(self, item: Any, user: Any) -> None:
        """Raises if the vectors of two features cannot be compared.

        Raises:
            DeclarationError: They are of different spaces; names both.
        """
        left, right = (bind(feature, self._runner.store) for feature in (item, user))
        if isinstance(left, BoundTokens) or isinstance(right, BoundTokens):
            raise DeclarationError(f"{item.name!r} and {user.name!r}: expected features that give vectors.")
        named = SimilarityFeature(name="similarity", left=item.name, right=user.name, metric=item.metric)
        BoundSimilarity(named, left, right)  # checks

    def seconds(self, feature: Any, columns: Mapping[str, Sequence[Any]]) -> float:
        """Seconds of inference for the rows, from a sample of them without the cache; loading is not counted."""
        rows = len(next(iter(columns.values())))
        if not rows:
            return 0.0
        chosen = np.unique(np.linspace(0, rows - 1, min(rows, _SAMPLE)).astype(int))
        sample = {name: [values[row] for row in chosen] for name, values in columns.items()}
        with tempfile.TemporaryDirectory() as folder:
            runner = Runner(replace(self._settings, cache_folder=Path(folder), progress=False))
            bound = bind(feature, runner.store)
            # Another text than the sample's, so that the model is loaded and the sample is not cached.
            runner.compute(bound, {name: values[:1] for name, values in sample.items()}, "batch", quiet=True)
            started = time.perf_counter()
            runner.compute(bound, {name: values[1:] for name, values in sample.items()}, "batch", quiet=True)
            elapsed = time.perf_counter() - started
        return elapsed / max(len(chosen) - 1, 1) * rows


def item_columns(feature: Any, catalogue: Catalogue) -> dict[str, list[Any]]:
    """The columns that a feature of items reads, for all items in the order of their keys."""
    return {name: list(catalogue.items) if name == ITEM else catalogue.item_column(name) for name in feature.columns}


def list_columns(feature: Any, window: Window, inputs: Inputs) -> dict[str, list[Any]]:
    """The columns that a feature of users or histories reads, for each list of a window."""
    catalogue = window.catalogue
    found: dict[str, list[Any]] = {}
    for name in feature.columns:
        if name in inputs.events:
            oldest_first = isinstance(feature, HistoryEmbeddingFeature) and feature.order == "oldest_first"
            found[name] = _event_lists(window, inputs, inputs.events[name], oldest_first=oldest_first)
        elif name == USER:
            found[name] = [catalogue.users[user] for user in window.user]
        else:
            column = catalogue.user_column(name)
            found[name] = [column[user] for user in window.user]
    return found


def reads_history(feature: Any, inputs: Inputs) -> bool:
    """Whether a feature of a list depends on its events, and not on the user's row alone."""
    return any(name in inputs.events for name in feature.columns)


def stacked(values: Sequence[Any], dims: int = 1) -> np.ndarray:
    """(n, d) float32 of vectors or numbers, NaN for None.

    Args:
        values: What a feature gave.
        dims: d where all are None.

    Raises:
        InputError: What a model wrote is no number.
    """
    first = next((value for value in values if value is not None), None)
    found = np.full((len(values), dims if first is None else np.size(_numbers(first))), np.nan, dtype=np.float32)
    for row, value in enumerate(values):
        if value is not None:
            found[row] = _numbers(value)
    return found


def _numbers(value: Any) -> Any:
    value = getattr(value, "value", value)  # what a model wrote
    try:
        return np.atleast_1d(np.asarray(value, dtype=np.float32))
    except (TypeError, ValueError) as exc:
        raise InputError(f"evaluate: expected vectors or numbers of a feature, got {value!r}.") from exc


def _event_lists(window: Window, inputs: Inputs, source: str | EventList, *, oldest_first: bool) -> list[list[Any]]:
    history, catalogue = window.history, window.catalogue
    kept = history.liked if inputs.liked_only else np.ones(len(history), dtype=bool)
    if isinstance(source, EventList):
        kept, source = history.liked == source.liked, source.shows
    if source == ITEM:
        values: Any = catalogue.items[history.item]
    elif source == "rating":
        values = history.rating
    elif "{" in source:
        texts = catalogue.data.item_texts(source)
        values = np.array([texts[item] for item in catalogue.items], dtype=object)[history.item]
    else:
        column = np.empty(len(catalogue.items), dtype=object)
        column[:] = catalogue.item_column(source)
        values = column[history.item]
    lists = []
    for first, last in zip(window.offsets[:-1], window.offsets[1:], strict=True):
        rows = first + np.flatnonzero(kept[first:last])[: inputs.last_n]
        lists.append([values[row] for row in (rows[::-1] if oldest_first else rows)])
    return lists
