"""``llmrec plan``: what the next materialization would do, counted before anything runs."""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from feast import FeatureStore, FeatureView
from feast.errors import FeatureViewNotFoundException
from feast.repo_operations import parse_repo

from llmrec_plugin.errors import InputError, UnknownNameError
from llmrec_plugin.feast.engine import LLMComputeEngine, LLMComputeEngineConfig, value_bytes
from llmrec_plugin.feast.estimates import works
from llmrec_plugin.feast.jobs import Job, Written, count_lost, is_ours, open_job, select, states
from llmrec_plugin.feast.versions import kept_by, read
from llmrec_plugin.runtime.ledger import Entry, Key
from llmrec_plugin.runtime.rawrows import Interval, to_microseconds

logger = logging.getLogger(__name__)

ROWS_WRITTEN_PER_SECOND = 6000
"""Measured: 384 dims into SQLite on two busy cores, 5,000 to 8,000; small beside inference."""
_BYTES_PER_COMPONENT = 64
"""Memory of one component of a chunk while Feast's messages are built: a Python float and its place in lists."""


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """What materializing one view would do.

    Attributes:
        view: Name of the view.
        fingerprint: Fingerprint of its feature.
        start: First moment of the window.
        end: Last moment of the window.
        entities: Entities with a row up to the end of the window.
        new: Rows to write whose entity is not in the store.
        changed: Rows to write that are newer than what is stored, or differ from it.
        unchanged: Rows to write again, because the window holds them.
        late: Of the rows to write, those that lie before the window.
        superseded: Rows left out because the store holds newer ones.
        done: Rows left out because a run that was interrupted has written them.
        texts: Distinct texts of the rows to write.
        cached: Texts whose vectors are in the value cache.
        compute: Texts that the model would read: the number of inferences.
        tokens: Tokens of those texts.
        tokens_exact: Whether they were counted rather than estimated from a sample.
        seconds: Estimated wall-clock time, from the speed just measured on some of the texts.
        memory_bytes: Estimated peak of resident memory.
    """

    view: str
    fingerprint: str
    start: datetime
    end: datetime
    entities: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    late: int = 0
    superseded: int = 0
    done: int = 0
    texts: int = 0
    cached: int = 0
    compute: int = 0
    tokens: int = 0
    tokens_exact: bool = True
    seconds: float = 0.0
    memory_bytes: int = 0

    @property
    def rows(self) -> int:
        """Rows to write."""
        return self.new + self.changed + self.unchanged


def plan(
    repo: Path, views: Iterable[str] = (), start: datetime | None = None, end: datetime | None = None
) -> list[ViewPlan]:
    """Plans the batch views that the repo declares, applied or not, as ``feast plan`` does.

    Nothing is written, neither to the stores nor to the cache. Each model is loaded, to measure its speed.

    Args:
        repo: Folder with ``feature_store.yaml``.
        views: Names of views; default: every LLM batch view.
        start: As for ``feast materialize``; default: where ``feast materialize-incremental`` would begin.
        end: Default: now.

    Raises:
        InputError: There is no feature repo, or a source cannot be read.
        UnknownNameError: The repo has no such view.
    """
    if not (repo / "feature_store.yaml").is_file():
        raise InputError(
            f"{repo.absolute()} is no feature repo: expected a feature_store.yaml in it. Give --repo FOLDER."
        )
    os.chdir(repo)  # Feast, too, reads a repo from inside
    sys.path.insert(0, str(Path.cwd()))
    store = FeatureStore(repo_path=".")
    declared = {view.name: view for view in parse_repo(Path.cwd()).feature_views if is_ours(view)}
    for name in set(views) - declared.keys():
        raise UnknownNameError("LLM batch view", name, declared)
    chosen = [view for name, view in declared.items() if not views or name in set(views)]
    return [_plan_view(store, _registered(store, view), start, end or datetime.now(UTC)) for view in chosen]


def _registered(store: FeatureStore, declared: FeatureView) -> FeatureView:
    """The registry's version of this declaration and model, which knows what was materialized, if there is one."""
    try:
        served = store.registry.get_feature_view(declared.name, store.project)
    except FeatureViewNotFoundException:
        return declared
    known = [served]
    if kept_by(store.registry):
        versions = read(store.registry, store.project)[declared.name]
        known += [versions.view(number) for number in versions.kept]
    return next((view for view in known if is_ours(view) and _udf_text(view) == _udf_text(declared)), declared)


def _udf_text(view: FeatureView) -> str:
    return view.feature_transformation.udf_string


def _plan_view(store: FeatureStore, view: FeatureView, start: datetime | None, end: datetime) -> ViewPlan:
    provider = store._get_provider()
    job = open_job(store.config, view, provider.offline_store, provider.online_store)
    start = start or view.most_recent_end_time or datetime.now(UTC) - (view.ttl or timedelta(weeks=52))
    engine = provider.batch_engine
    if not isinstance(engine, LLMComputeEngine):
        logger.warning(
            "batch_engine is a %s: the plan is that of %s.%s, which `feature_store.yaml` does not name.",
            type(engine).__name__, LLMComputeEngine.__module__, LLMComputeEngine.__name__,
        )  # fmt: skip
    settings = engine.settings if isinstance(engine, LLMComputeEngine) else LLMComputeEngineConfig()
    empty = ViewPlan(view=view.name, fingerprint=job.bound.fingerprint, start=start, end=end)
    return _Planner(job, (to_microseconds(start), to_microseconds(end)), settings.chunk_rows).fill(empty)


class _Planner:
    """Counts the rows of one view as the engine will meet them."""

    def __init__(self, job: Job, window: Interval, chunk_rows: int) -> None:
        self._job = job
        self._window = window
        self._chunk_rows = chunk_rows
        self._states: Counter[str] = Counter()
        self._works = works(job.bound, job.runner)

    def fill(self, empty: ViewPlan) -> ViewPlan:
        target = self._job.target
        lost = count_lost(self._job) > 0
        written: Written = _nothing if lost else target.lookup
        resumed = not lost and target.is_interrupted(len(self._job.covered()))
        selection = select(self._job, self._window, written)
        for _, rows in self._job.raw.read(selection.wanted):
            done = target.written_by_this_run(rows.keys) if resumed else set()
            found = [
                "done" if state == "unchanged" and key in done else state
                for key, state in zip(rows.keys, states(rows, written(rows.keys), self._window[1]), strict=True)
            ]
            self._states.update(found)
            to_write = rows.take(np.array([state not in ("superseded", "done") for state in found]))
            for work in self._works:
                work.add(to_write)
        texts, compute = (sum(getattr(work, name) for work in self._works) for name in ("texts", "compute"))
        seconds = sum(work.seconds() for work in self._works)
        return replace(
            empty,
            entities=selection.newest,
            late=selection.late,
            texts=texts,
            cached=texts - compute,
            compute=compute,
            tokens=sum(work.tokens for work in self._works),
            tokens_exact=all(work.is_exact for work in self._works),
            seconds=seconds + self._writing_seconds() if compute else 0.0,
            memory_bytes=self._memory(len(selection.wanted)),
            **self._states,  # type: ignore[arg-type]
        )

    def _writing_seconds(self) -> float:
        """Time for the rows to get into the store."""
        rows = self._states.total() - self._states["superseded"] - self._states["done"]
        return rows / ROWS_WRITTEN_PER_SECOND

    def _memory(self, total: int) -> int:
        """What this process took, in which the model has run, and the engine's chunk and bookkeeping."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        numbers = value_bytes(self._job.bound.feature) // 4
        return peak + self._chunk_rows * numbers * _BYTES_PER_COMPONENT + 2 * total


def _nothing(keys: Sequence[Key]) -> dict[Key, Entry]:
    """The ledger of an empty store."""
    return {}
