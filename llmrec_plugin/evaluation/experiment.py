"""The same ranker with and without feature sets: train each arm, rank everything, measure.

windows -> columns of every set -> for each ranker and arm: grid on validation, one model per seed
        -> test lists, some at a time: columns, scores of all models, metrics of each list
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.evaluation.base import BaseColumns, baselines
from llmrec_plugin.evaluation.features import (
    Columns,
    Cost,
    FeatureSet,
    Vectors,
    cost_of,
    vectors_of,
)
from llmrec_plugin.evaluation.metrics import METRICS, list_metrics
from llmrec_plugin.evaluation.rankers import Model, Ranker, Sides, Table
from llmrec_plugin.evaluation.windows import Rows, Window, check_no_future

ITEM_SLICES = ("all", "warm items", "tail items", "cold items")
USER_SLICES = ("warm users", "tail users", "cold users")
BASE = "base"
_ROWS = 300_000  # of test lists whose columns are held at a time


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A ranker's diet.

    Attributes:
        name: In results.
        sets: Feature sets beside the base columns.
        control_of: The arm that it is a control of, or the empty string.
        control: ``random``, ``shuffled`` or ``stale``.
    """

    name: str
    sets: tuple[FeatureSet, ...] = ()
    control_of: str = ""
    control: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is computed.

    Attributes:
        seeds: Models of each arm, which differ in negatives and in the ranker's own randomness.
        negatives: Drawn for each training list, half uniformly, half by popularity.
        validation_negatives: For each validation list, drawn once.
        most_training_lists: Lists that are trained on at most, drawn at random.
        most_validation_lists: Likewise.
        most_lists: Test lists at most, drawn at random.
        candidates: None ranks all items; a number ranks that many of a recall stage: half by co-occurrence, half by
            popularity.
        k: Cutoff of the metrics.
        tail_events: Items with fewer events before the window are tail items, those with none cold.
        tail_history: Lists with fewer events before them are of tail users, those with less than a quarter of that of
            cold ones.
        seed: Of everything that is drawn once.
    """

    seeds: int = 5
    negatives: int = 60
    validation_negatives: int = 200
    most_training_lists: int = 2_000
    most_validation_lists: int = 300
    most_lists: int = 300
    candidates: int | None = None
    k: int = 10
    tail_events: int = 10
    tail_history: int = 20
    seed: int = 0


@dataclass(kw_only=True)
class Measured:
    """What was measured.

    Attributes:
        lists: Names of the test lists.
        user: (L,) the user of each list.
        history: (L,) events before each list.
        scores: Ranker and arm -> (seeds, item slices, L, metrics) float64, NaN where a list has nothing relevant in
            the slice.
        baselines: Name -> (1, item slices, L, metrics), for rankings without a ranker and for runs from outside.
        params: Ranker and arm -> the hyper-parameters that validation chose.
        validation: Ranker and arm -> NDCG@k of them on validation.
        columns: Arm -> names of its columns.
        cost: Arm -> what its sets cost, together.
        ceiling: Mean share of the relevant items that are candidates.
        seconds: Stage -> seconds.
    """

    lists: list[str]
    user: np.ndarray
    history: np.ndarray
    scores: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    baselines: dict[str, np.ndarray] = field(default_factory=dict)
    params: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    validation: dict[tuple[str, str], float] = field(default_factory=dict)
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cost: dict[str, Cost] = field(default_factory=dict)
    ceiling: float = 1.0
    seconds: dict[str, float] = field(default_factory=dict)


def measure(
    train: Sequence[Window],
    validation: Window,
    test: Window,
    arms: Sequence[Arm],
    rankers: Sequence[Ranker],
    plan: Plan,
    *,
    runs: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Trains every arm with every ranker and measures them on the test lists.

    Args:
        train: Windows that the rankers learn from.
        validation: Lists that choose hyper-parameters and stop training early.
        test: Lists that are measured.
        arms: The first is what the others are compared with.
        rankers: Each is trained on each arm.
        plan: How much is computed.
        runs: Name -> list -> item -> score: rankings from outside, measured by the same rules.
        report: Called with a line for each stage.

    Raises:
        LeakError: A value comes from an event later than its label.
        InputError: There are no lists, or a set gives other columns from one window to the next.
    """
    if not len(test) or not len(validation):
        raise InputError("measure: there are no lists of validation or of test with a relevant item.")
    rng = np.random.default_rng(plan.seed)
    validation = _some_lists(validation, plan.most_validation_lists, rng)
    test = _some_lists(test, plan.most_lists, rng)
    kept = _shares(train, plan.most_training_lists)
    train = [_some_lists(window, most, rng) for window, most in zip(train, kept, strict=True) if most]
    learning = _Stage(train, [_drawn(window, 3 * plan.negatives, rng) for window in train])
    choosing = _Stage([validation], [_drawn(validation, plan.validation_negatives, rng)])
    measured = Measured(lists=test.names(), user=test.user, history=np.diff(test.offsets).astype(np.int64))

    base = BaseColumns()
    sets = [base, *_distinct(arms)]
    clock = time.perf_counter()
    for features in sets:
        learning.compute(features)
        choosing.compute(features)
        report(f"{features.name}: {len(learning) + len(choosing):,} rows")
    measured.seconds["columns"] = time.perf_counter() - clock

    models: dict[tuple[str, str], list[Model]] = {}
    clock = time.perf_counter()
    for arm in arms:
        held_out = choosing.table([base, *arm.sets])
        chosen = [learning.draw(plan.negatives, plan.seed * 1_000 + seed) for seed in range(plan.seeds)]
        tables = [learning.table([base, *arm.sets], rows) for rows in chosen]
        measured.columns[arm.name] = learning.names([base, *arm.sets])
        for ranker in rankers:
            key = (ranker.name, arm.name)
            best, first = _chosen(ranker, tables[0], held_out, plan)
            measured.params[key], measured.validation[key] = best
            rest = [ranker.fit(table, held_out, best[0], seed) for seed, table in enumerate(tables[1:], 1)]
            models[key] = [first, *rest]
            report(f"{ranker.name}, {arm.name}: validation ndcg@{plan.k} {best[1]:.4f} with {dict(best[0])}")
    measured.seconds["training"] = time.perf_counter() - clock

    clock = time.perf_counter()
    _rank(test, arms, base, models, plan, runs or {}, measured, report)
    measured.seconds["ranking"] = time.perf_counter() - clock
    costs = {id(features): cost_of(features) for arm in arms if not arm.control for features in arm.sets}
    for arm in arms:
        parts = [costs[id(features)] for features in arm.sets if id(features) in costs]
        measured.cost[arm.name] = Cost(
            seconds=sum(part.seconds for part in parts), item_bytes=sum(part.item_bytes for part in parts)
        )
    return measured


def _distinct(arms: Sequence[Arm]) -> list[FeatureSet]:
    """The sets of all arms, each object once."""
    return list({id(features): features for arm in arms for features in arm.sets}.values())


class _Stage:
    """Rows of windows and the columns of every set for them."""

    def __init__(self, windows: Sequence[Window], drawn: Sequence[tuple[Rows, np.ndarray]]) -> None:
        self.windows, self._rows = windows, [rows for rows, _ in drawn]
        self._label = np.concatenate([label for _, label in drawn]).astype(np.float32)
        starts = np.cumsum([0, *map(len, windows)])
        self._query = np.concatenate([rows.query + start for rows, start in zip(self._rows, starts, strict=False)])
        self._columns: dict[int, tuple[tuple[str, ...], np.ndarray]] = {}
        self._sides: dict[int, Sides | None] = {}

    def __len__(self) -> int:
        return len(self._label)

    def compute(self, features: FeatureSet) -> None:
        """Computes and checks the columns of a set."""
        parts, sides = [], []
        for window, rows in zip(self.windows, self._rows, strict=True):
            parts.append(_checked(features, window, rows))
            sides.append(vectors_of(features, window))
        names = {part.names for part in parts}
        if len(names) > 1:
            raise InputError(f"feature set {features.name!r} gives other columns from one window to the next: {names}.")
        self._columns[id(features)] = (parts[0].names, np.concatenate([part.values for part in parts]))
        self._sides[id(features)] = _stacked(sides)

    def names(self, sets: Sequence[FeatureSet]) -> tuple[str, ...]:
        """Names of the columns of some sets."""
        return tuple(name for features in sets for name in self._columns[id(features)][0])

    def draw(self, negatives: int, seed: int) -> np.ndarray:
        """(R,) bool: all relevant rows and, of each list, as many of the others."""
        drawn = np.random.default_rng(seed).random(len(self))
        drawn[self._label > 0] = -1.0
        order = np.lexsort((drawn, self._query))
        starts = np.flatnonzero(np.diff(self._query, prepend=-1))
        place = np.empty(len(self), dtype=np.int64)
        place[order] = np.arange(len(self)) - np.repeat(starts, np.diff([*starts, len(self)]))
        relevant = np.bincount(self._query, weights=self._label)[self._query]
        return place < relevant + negatives

    def table(self, sets: Sequence[FeatureSet], rows: np.ndarray | None = None) -> Table:
        """The columns of some sets, for some rows."""
        chosen = np.arange(len(self)) if rows is None else np.flatnonzero(rows)
        item = np.concatenate([rows.item for rows in self._rows])
        ids = [_ids(window, rows) for window, rows in zip(self.windows, self._rows, strict=True)]
        return Table(
            values=np.concatenate([self._columns[id(features)][1][chosen] for features in sets], axis=1),
            query=self._query[chosen],
            item=np.concatenate([pair[0] for pair in ids])[chosen],
            user=np.concatenate([pair[1] for pair in ids])[chosen],
            place=item[chosen],
            label=self._label[chosen],
            vectors=tuple(side for side in (self._sides[id(features)] for features in sets) if side is not None),
        )


def _rank(
    test: Window,
    arms: Sequence[Arm],
    base: BaseColumns,
    models: Mapping[tuple[str, str], Sequence[Model]],
    plan: Plan,
    runs: Mapping[str, Mapping[str, Mapping[str, float]]],
    measured: Measured,
    report: Callable[[str], None],
) -> None:
    """Fills in the metrics of every list."""
    size = len(test.catalogue.items)
    step = max(1, _ROWS // (plan.candidates or size))
    events = np.bincount(test.snapshot.item, minlength=size)
    slices = {
        "all": np.ones(size, dtype=bool),
        "warm items": events >= plan.tail_events,
        "tail items": (events > 0) & (events < plan.tail_events),
        "cold items": events == 0,
    }
    place_of = {key: place for place, key in enumerate(test.catalogue.items)}
    found = _Results(len(test), plan.k, [slices[name] for name in ITEM_SLICES])
    reached = []
    for first in range(0, len(test), step):
        queries = np.arange(first, min(first + step, len(test)))
        window = test.part(queries)
        rows = _candidates(window, base, plan)
        known = _checked(base, window, rows)
        parts: dict[int, tuple[Columns, Sides | None]] = {id(base): (known, None)}
        for features in _distinct(arms):
            side = vectors_of(features, window)
            parts[id(features)] = (_checked(features, window, rows), _stacked([side]))
        item, user = _ids(window, rows)
        for arm in arms:
            used = [parts[id(features)] for features in (base, *arm.sets)]
            table = Table(
                values=np.concatenate([columns.values for columns, _ in used], axis=1),
                query=rows.query,
                item=item,
                user=user,
                place=rows.item,
                label=np.zeros(0, dtype=np.float32),
                vectors=tuple(side for _, side in used if side is not None),
            )
            for (ranker, name), trained in models.items():
                if name == arm.name:
                    for seed, model in enumerate(trained):
                        found.add((ranker, name), seed, len(trained), first, window, rows, model(table))
        for name, scores in baselines(known).items():
            found.add(("", name), 0, 1, first, window, rows, scores)
        noise = np.random.default_rng((plan.seed, first)).random(len(rows))
        found.add(("", "random"), 0, 1, first, window, rows, noise)
        for name, run in runs.items():
            found.add(("", name), 0, 1, first, window, *_from_run(run, window, place_of))
        reached += [
            np.isin(relevant, rows.item[begin:end]).mean()
            for relevant, begin, end in zip(window.relevant, rows.offsets[:-1], rows.offsets[1:], strict=True)
        ]
        report(f"ranked {queries[-1] + 1} of {len(test)} lists")
    measured.ceiling = float(np.mean(reached))
    for (ranker, name), values in found.values.items():
        if ranker:
            measured.scores[ranker, name] = values
        else:
            measured.baselines[name] = values


class _Results:
    """Metrics of every list, by ranking."""

    def __init__(self, lists: int, k: int, slices: list[np.ndarray]) -> None:
        self.values: dict[tuple[str, str], np.ndarray] = {}
        self._lists, self._k, self._slices = lists, k, slices

    def add(
        self,
        key: tuple[str, str],
        seed: int,
        seeds: int,
        first: int,
        window: Window,
        rows: Rows,
        scores: np.ndarray,
    ) -> None:
        """Measures the lists of a part; items that are no candidates rank last, items of the history not at all."""
        if key not in self.values:
            self.values[key] = np.full((seeds, len(self._slices), self._lists, len(METRICS)), np.nan)
        size = len(window.catalogue.items)
        for query in range(len(window)):
            part = slice(rows.offsets[query], rows.offsets[query + 1])
            full = np.full(size, -np.inf)
            full[rows.item[part]] = scores[part]
            open_items = np.ones(size, dtype=bool)
            open_items[window.past_items(query)] = False
            relevant = np.zeros(size, dtype=bool)
            relevant[window.relevant[query]] = True
            for number, chosen in enumerate(self._slices):
                some = open_items & chosen
                self.values[key][seed, number, first + query] = list_metrics(full[some], relevant[some], self._k)


def _checked(features: FeatureSet, window: Window, rows: Rows) -> Columns:
    found = features.columns(window, rows)
    if window.catalogue.timed:
        check_no_future(window.moment[rows.query], found.latest, f"feature set {features.name!r}, {window.name}")
    return found


def _stacked(sides: Iterable[Vectors | None]) -> Sides | None:
    there = [side for side in sides if side is not None]
    if not there:
        return None
    return Sides(item=there[-1].item, query=np.concatenate([side.query for side in there]))


def _ids(window: Window, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Ids of items and users for embeddings, 0 for those without events before."""
    used = np.zeros(len(window.catalogue.items), dtype=bool)
    used[window.snapshot.item] = True
    active = np.diff(window.offsets) > 0
    return np.where(used[rows.item], rows.item + 1, 0), np.where(active, window.user + 1, 0)[rows.query]


def _chosen(ranker: Ranker, table: Table, held_out: Table, plan: Plan) -> tuple[tuple[Mapping[str, Any], float], Model]:
    """The best of the grid on validation with the first seed, its NDCG, and that model."""
    tried = []
    for params in ranker.grid:
        model = ranker.fit(table, held_out, params, 0)
        tried.append((held_out.mean_ndcg(model(held_out), plan.k), params, model))
    reached, params, model = max(tried, key=lambda each: each[0])
    return (params, reached), model


def _candidates(window: Window, base: BaseColumns, plan: Plan) -> Rows:
    """All items, or those of the recall stage, ascending within each list."""
    if plan.candidates is None or plan.candidates >= len(window.catalogue.items):
        return Rows.everything(window)
    return base.shortlist(window, plan.candidates)


def _from_run(
    run: Mapping[str, Mapping[str, float]], window: Window, places: Mapping[str, int]
) -> tuple[Rows, np.ndarray]:
    lists, scores = [], []
    for name in window.names():
        scored = sorted((places[item], score) for item, score in run.get(name, {}).items() if item in places)
        lists.append(np.array([place for place, _ in scored], dtype=np.int64))
        scores += [score for _, score in scored]
    return Rows.of(lists), np.array(scores, dtype=np.float64)


def _drawn(window: Window, negatives: int, rng: np.random.Generator) -> tuple[Rows, np.ndarray]:
    """Relevant items and drawn ones of each list, ascending, and which are relevant."""
    size = len(window.catalogue.items)
    events = np.bincount(window.snapshot.item, minlength=size) ** 0.75
    shares = np.cumsum(events) / events.sum() if events.sum() else np.linspace(1 / size, 1, size)
    lists, labels = [], []
    for query in range(len(window)):
        uniform = rng.integers(0, size, negatives // 2)
        popular = np.minimum(np.searchsorted(shares, rng.random(negatives - len(uniform))), size - 1)
        taken = np.concatenate([window.past_items(query), window.passed[query], window.relevant[query]])
        others = np.setdiff1d(np.concatenate([uniform, popular]), taken)
        items = np.union1d(others, window.relevant[query])
        lists.append(items)
        labels.append(np.isin(items, window.relevant[query]))
    return Rows.of(lists), np.concatenate([np.zeros(0, dtype=bool), *labels])


def _some_lists(window: Window, most: int, rng: np.random.Generator) -> Window:
    if len(window) <= most:
        return window
    return window.part(np.sort(rng.choice(len(window), most, replace=False)))


def _shares(windows: Sequence[Window], most: int) -> list[int]:
    """How many lists of each window are kept so that there are `most` in all."""
    total = sum(map(len, windows))
    return [len(window) if total <= most else max(round(len(window) * most / total), 1) for window in windows]
