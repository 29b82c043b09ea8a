"""Feature sets: what a ranker may get beside its base columns, and the controls made from them.

A feature set gives a few **pair columns** for the candidates of lists and, if it has them, vectors of items and of
lists. All see the same `Window`; what they read of the past is what the window holds.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.evaluation.windows import NEVER, Rows, Window, stale


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Values of n rows.

    Attributes:
        names: (k,) names.
        values: (n, k) float32; NaN is missing.
        latest: (n,) int64 microseconds: the newest event that a row's values are made from, `NEVER` if from none.
    """

    names: tuple[str, ...]
    values: np.ndarray
    latest: np.ndarray

    def __post_init__(self) -> None:
        rows, width = self.values.shape
        if width != len(self.names) or len(self.latest) != rows:
            raise InputError(
                f"Columns: expected values (n, {len(self.names)}) for {', '.join(self.names)} and latest (n,), "
                f"got {self.values.shape} and {self.latest.shape}."
            )


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Vectors for rankers that read some: of all items (M, d) and of the lists (Q, d), float32, NaN rows missing."""

    item: np.ndarray
    query: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a feature costs.

    Attributes:
        seconds: Inference for the whole catalogue and the users once, from what a sample took without a cache.
        item_bytes: Bytes stored for an item.
    """

    seconds: float
    item_bytes: float


@runtime_checkable
class FeatureSet(Protocol):
    """What an arm adds to the ranker."""

    @property
    def name(self) -> str:
        """Prefix of its columns."""
        ...

    def columns(self, window: Window, rows: Rows) -> Columns:
        """The pair columns of `rows`, in their order."""
        ...


def vectors_of(features: FeatureSet, window: Window) -> Vectors | None:
    """The vectors of a feature set that has some."""
    make = getattr(features, "vectors", None)
    return None if make is None else make(window)


def cost_of(features: FeatureSet) -> Cost:
    """What a feature set says that it costs; nothing if it says nothing."""
    measure = getattr(features, "cost", None)
    return Cost(seconds=0.0, item_bytes=0.0) if measure is None else measure()


@dataclass(frozen=True, kw_only=True)
class FunctionSet:
    """A feature set written in Python: ``function(window, rows, **options)`` gives `Columns`.

    Attributes:
        name: Prefix of its columns.
        function: The function.
        options: Its further arguments.
    """

    name: str
    function: Callable[..., Columns]
    options: Mapping[str, Any]

    def columns(self, window: Window, rows: Rows) -> Columns:
        found = self.function(window, rows, **self.options)
        if not isinstance(found, Columns) or len(found.values) != len(rows):
            raise InputError(f"feature set {self.name!r}: the function must return Columns of {len(rows)} rows.")
        return replace(found, values=np.asarray(found.values, dtype=np.float32))


def function_named(path: str) -> Callable[..., Any]:
    """The object that ``module:name`` names.

    Raises:
        InputError: There is none.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise InputError(f"{path!r}: expected <module>:<name> that can be imported: {exc}.") from exc


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Control: the features of another item, in histories and as a candidate, as if its text were swapped."""

    inner: FeatureSet
    permutation: np.ndarray

    @property
    def name(self) -> str:
        return self.inner.name

    def columns(self, window: Window, rows: Rows) -> Columns:
        return self.inner.columns(*swapped(window, rows, self.permutation))

    def vectors(self, window: Window) -> Vectors | None:
        found = vectors_of(self.inner, swapped(window, Rows.of([]), self.permutation)[0])
        return None if found is None else replace(found, item=found.item[self.permutation])


@dataclass(frozen=True, kw_only=True)
class Stale:
    """Control: features of users as they were in the middle of the training time."""

    inner: FeatureSet
    moment: int

    @property
    def name(self) -> str:
        return self.inner.name

    def columns(self, window: Window, rows: Rows) -> Columns:
        return self.inner.columns(stale(window, self.moment), rows)

    def vectors(self, window: Window) -> Vectors | None:
        return vectors_of(self.inner, stale(window, self.moment))


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Control for sets without vectors: as many columns of normal noise, missing where the set's are missing."""

    inner: FeatureSet
    seed: int

    @property
    def name(self) -> str:
        return self.inner.name

    def columns(self, window: Window, rows: Rows) -> Columns:
        found = self.inner.columns(window, rows)
        # By list and item, so that a row has the same noise in whatever part of the lists it is computed.
        moment = window.moment if window.catalogue.timed else np.zeros(len(window), dtype=np.int64)
        lists = (window.user * 1_000_003 + moment // 1_000_000)[rows.query]
        values = np.stack(
            [_normal(lists, rows.item, self.seed * 101 + column) for column in range(len(found.names))], axis=1
        )
        values[np.isnan(found.values)] = np.nan
        return replace(found, values=values.astype(np.float32), latest=np.full(len(rows), NEVER))


def swapped(window: Window, rows: Rows, permutation: np.ndarray) -> tuple[Window, Rows]:
    """Histories and candidates with another item in each item's place."""
    history = replace(window.history, item=permutation[window.history.item])
    return replace(window, history=history), replace(rows, item=permutation[rows.item])


Change = Callable[[Window, Rows], tuple[Window, Rows]]
"""What a control reads in place of the lists and candidates that it is asked for."""


def shuffled(features: FeatureSet, permutation: np.ndarray) -> FeatureSet:
    """The control with the features of other items."""
    control = _reading(features, lambda window, rows: swapped(window, rows, permutation))
    return control or Shuffled(inner=features, permutation=permutation)


def outdated(features: FeatureSet, moment: int) -> FeatureSet:
    """The control with features of users as they were at `moment`."""
    control = _reading(features, lambda window, rows: (stale(window, moment), rows))
    return control or Stale(inner=features, moment=moment)


def _reading(features: FeatureSet, change: Change) -> FeatureSet | None:
    """What a set makes of the control itself, as one does that has values for some candidates alone."""
    make = getattr(features, "reading", None)
    return None if make is None else make(change)


def randomized(features: FeatureSet, seed: int) -> FeatureSet:
    """The control with random vectors of the same shape, or random columns for a set that has no vectors."""
    make = getattr(features, "randomized", None)
    if make is None:
        return Noise(inner=features, seed=seed)
    control: FeatureSet = make(seed)
    return control


def _normal(lists: np.ndarray, items: np.ndarray, seed: int) -> np.ndarray:
    """Normal numbers that depend on their arguments alone (Box-Muller on mixed integers)."""
    with np.errstate(over="ignore"):
        state = lists.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + items.astype(np.uint64) * np.uint64(
            0xBF58476D1CE4E5B9
        )
        uniform = [_mixed(state + np.uint64(2 * seed + part)) for part in range(2)]
    return np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * np.pi * uniform[1])


def _mixed(state: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1): the finalizer of splitmix64."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
