"""Our compute engine for the local path: one line in ``feature_store.yaml``.

    batch_engine: {type: llmrec_plugin.feast.engine.LLMComputeEngine}

It materializes our batch views in chunks and hands every other view to Feast's local engine. Of each run:

- only the newest row of each entity is encoded, and memory does not depend on the number of rows;
- every chunk is in the value cache, then in the online store, then in the ledger, before the next one begins,
  so a run that was killed goes on where it was and repeats at most one chunk, without inference;
- rows that arrived late, or were corrected in place, inside the intervals materialized before are found;
- an older row never replaces a newer one;
- a row that cannot be read becomes a null and is counted; the run fails above a declared share of them.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from pydantic import Field, ValidationError
from tqdm import tqdm

from llmrec_plugin.errors import InputError, SettingsError
from llmrec_plugin.feast.jobs import Job, Selection, alone, count_lost, entity_keys, is_ours, open_job, select, states
from llmrec_plugin.feast.training import TrainingSource
from llmrec_plugin.feast.vectors import value_columns
from llmrec_plugin.feast.writing import writing
from llmrec_plugin.runtime.cache import RunReport
from llmrec_plugin.runtime.ledger import Entry
from llmrec_plugin.runtime.rawrows import Rows, concatenate, to_datetime, to_microseconds
from llmrec_plugin.runtime.runner import Computed
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import ColumnFeature, Scores, TokenFeature

logger = logging.getLogger(__name__)


class LLMComputeEngineConfig(FeastConfigBaseModel):
    """What ``batch_engine`` in ``feature_store.yaml`` may say."""

    type: str = "llmrec_plugin.feast.engine.LLMComputeEngine"

    chunk_rows: int = Field(1024, ge=1)
    """Rows encoded and written at a time: the work that a killed run repeats."""

    max_invalid_share: float = Field(0.1, ge=0, le=1)
    """Share of a view's rows that may be unreadable before the run fails."""

    training_table: bool = False
    """Whether to bring the table of training data up to date as well, which else happens when it is next read."""


class LLMComputeEngine(LocalComputeEngine):
    """Feast's local engine, with our own way through our own views.

    Args:
        options: ``repo_config``, ``offline_store`` and ``online_store`` from Feast, and the fields of
            `LLMComputeEngineConfig`.

    Raises:
        SettingsError: ``batch_engine`` holds something else.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{name: options.pop(name) for name in ("repo_config", "offline_store", "online_store")})
        self.settings = _settings(options)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        if not is_ours(task.feature_view):
            return super()._materialize_one(registry, task, **kwargs)
        job = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        try:
            _Run(self, task).execute()
        except Exception as exc:  # Feast raises a job's error itself
            return LocalMaterializationJob(job, MaterializationJobStatus.ERROR, error=exc)
        return LocalMaterializationJob(job, MaterializationJobStatus.SUCCEEDED)


def _settings(given: dict[str, Any]) -> LLMComputeEngineConfig:
    try:
        return LLMComputeEngineConfig(**given)
    except ValidationError as exc:
        wrong = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors())
        raise SettingsError(
            f"batch_engine of feature_store.yaml: {wrong}. Expected some of "
            f"{', '.join(LLMComputeEngineConfig.model_fields)}; correct or remove the rest."
        ) from exc


class _Run:
    """One materialization of one view."""

    def __init__(self, engine: LLMComputeEngine, task: MaterializationTask) -> None:
        self._settings = engine.settings
        self._job = open_job(engine.repo_config, task.feature_view, engine.offline_store, engine.online_store)
        self._window = to_microseconds(task.start_time), to_microseconds(task.end_time)
        self._left_out = self._unanswered = 0
        self._unanswered_reason = ""
        self._resumed = False
        self._report = RunReport.begin(self._job.bound.feature.name, self._job.bound.fingerprint, "batch")

    def execute(self) -> None:
        with alone(self._job):
            self._write_selected()
            self._check_source()
            self._check_invalid()
            self._check_answered()
        if self._left_out:
            logger.info(
                "%s: %d rows were left out, the store holds newer ones.", self._job.bound.feature.name, self._left_out
            )
        if self._settings.training_table and isinstance(self._job.view.batch_source, TrainingSource):
            self._job.view.batch_source.refresh()

    def _write_selected(self) -> None:
        clock = time.perf_counter()
        try:
            self._check_store()
            self._resumed = self._job.target.begin_run(len(self._job.covered()))
            selection = select(self._job, self._window, self._job.target.lookup)
            self._announce(selection)
            with _Bar(self._job.bound.feature.name, len(selection)) as bar:
                for rows in self._chunks(selection):
                    self._write(rows)
                    bar.advance(len(rows), self._report)
        except Exception as exc:
            self._check_source(exc)  # what reads a file that is replaced meanwhile can fail in any way
            raise
        finally:
            self._job.runner.record(replace(self._report, seconds=time.perf_counter() - clock))

    def _chunks(self, selection: Selection) -> Iterator[Rows]:
        size = self._settings.chunk_rows
        waiting: list[Rows] = []
        for _, rows in self._job.raw.read(selection.wanted):
            waiting.append(rows)
            if sum(map(len, waiting)) >= size:
                rows = concatenate(waiting)
                full = len(rows) // size * size
                for start in range(0, full, size):
                    yield rows.slice(start, start + size)
                waiting = [rows.slice(full, len(rows))]
        if sum(map(len, waiting)):
            yield concatenate(waiting)

    def _write(self, rows: Rows) -> None:
        """One chunk: value cache, online store, ledger, in this order."""
        rows = self._still_to_write(rows)
        if not len(rows):
            return
        computed = self._job.runner.compute(self._job.bound, rows.columns, "batch", quiet=True)
        self._report = self._report.plus(computed.report)
        self._unanswered += len(computed.unanswered)
        self._unanswered_reason = next(iter(computed.unanswered.values()), self._unanswered_reason)
        protos = to_protos(self._job, rows, computed)
        with writing(self._job.config.project):
            ours = ~self._superseded(rows)  # by newer ones, during inference
            recorded = stored = ours
            if computed.unanswered:
                # What is stored is better than nothing, and what is not recorded is asked for again by the next run.
                answered = np.array([number not in computed.unanswered for number in range(len(rows))])
                written = self._job.target.lookup(rows.keys)
                recorded = ours & answered
                stored = ours & (answered | np.array([key not in written for key in rows.keys]))
            self._job.online_store.online_write_batch(
                self._job.config, self._job.view, list(compress(protos, stored)), None
            )
            self._job.target.write(compress(entries(rows, computed.invalid), recorded))

    def _still_to_write(self, rows: Rows) -> Rows:
        """Without those of which the store holds a newer one, or this one since before the run was interrupted."""
        superseded = self._superseded(rows)
        self._left_out += int(superseded.sum())
        return rows.take(~superseded & ~self._written(rows))

    def _written(self, rows: Rows) -> np.ndarray:
        """(n,) bool: an earlier attempt at this run has written the row."""
        if not self._resumed:
            return np.zeros(len(rows), dtype=bool)
        keys = self._job.target.written_by_this_run(rows.keys)
        found = states(rows, self._job.target.lookup(rows.keys), self._window[1])
        return np.array([key in keys and state == "unchanged" for key, state in zip(rows.keys, found, strict=True)])

    def _superseded(self, rows: Rows) -> np.ndarray:
        """(n,) bool: the store holds a newer row of the entity."""
        written = self._job.target.lookup(rows.keys)
        return np.array([state == "superseded" for state in states(rows, written, self._window[1])], dtype=bool)

    def _announce(self, selection: Selection) -> None:
        name = self._job.bound.feature.name
        if selection.late:
            logger.warning(
                "%s: %d rows of intervals materialized before arrived late, changed, or are not recorded as written; "
                "they are written now.", name, selection.late,
            )  # fmt: skip
        if selection.unreadable:
            logger.warning(
                "%s: %d rows of the source have no key or no timestamp and are left out.", name, selection.unreadable
            )
        needed = value_bytes(self._job.bound.feature) * selection.newest
        bound = load_settings().cache_max_bytes
        if needed > bound:
            logger.warning(
                "%s: the values of %d rows take about %.1f GiB, the value cache holds %.1f: what it drops is computed "
                "again when it is needed again. Set LLMREC_CACHE_MAX_BYTES.",
                name, selection.newest, needed / 2**30, bound / 2**30,
            )  # fmt: skip

    def _check_invalid(self) -> None:
        invalid = self._job.target.count_invalid()
        if not invalid:
            return
        written = self._job.target.count()
        first = self._job.target.invalid(1)[0]
        summary = (
            f"Feature {self._job.bound.feature.name!r}: {invalid} of {written} rows could not be read and are null; "
            f"the first is {self._job.view.entity_columns[0].name}={first.key!r}: {first.invalid}"
        )
        if invalid > self._settings.max_invalid_share * written:
            raise InputError(
                f"{summary}. That is more than max_invalid_share={self._settings.max_invalid_share:g} of batch_engine. "
                "The other rows are written. Correct these or allow a larger share, and run again."
            )
        logger.warning("%s", summary)

    def _check_answered(self) -> None:
        if not self._unanswered:
            return
        summary = (
            f"Feature {self._job.bound.feature.name!r}: {self._unanswered} of {self._report.rows} rows got no answer "
            f"from the model, e.g. {self._unanswered_reason}"
        )
        if self._unanswered > self._settings.max_invalid_share * self._report.rows:
            raise InputError(
                f"{summary}. That is more than max_invalid_share={self._settings.max_invalid_share:g} of batch_engine. "
                "The other rows are written, and these keep what was stored. Run again; nothing is computed twice."
            )
        logger.warning("%s; the next run asks again.", summary)

    def _check_source(self, cause: Exception | None = None) -> None:
        if self._job.source_changed():
            raise InputError(
                f"Feature {self._job.bound.feature.name!r}: its source was written while it was read, so rows may have "
                "been missed. Run again when it is complete; nothing is computed twice."
            ) from cause

    def _check_store(self) -> None:
        """Forgets what was written when the store no longer holds it, e.g. because it was emptied."""
        lost = count_lost(self._job)
        if lost:
            logger.warning(
                "%s: %d sampled rows that were written are no longer in the online store; all rows count as new.",
                self._job.bound.feature.name, lost,
            )  # fmt: skip
            self._job.target.forget()


class _Bar:
    """The progress bar: rows, rows/s and time left by tqdm; tokens/s and the share of cached texts beside it."""

    def __init__(self, name: str, total: int) -> None:
        self._bar = tqdm(total=total, desc=name, unit="row", file=sys.stderr, disable=not load_settings().progress)
        self._clock = time.perf_counter()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, rows: int, report: RunReport) -> None:
        speed = report.tokens / max(time.perf_counter() - self._clock, 1e-9)
        cached = report.cached / max(report.texts, 1)
        self._bar.set_postfix_str(f"{speed:,.0f} tokens/s, {cached:.0%} cached", refresh=False)
        self._bar.update(rows)


def entries(rows: Rows, invalid: Mapping[int, str]) -> Iterator[Entry]:
    """What the ledger records of rows, those of `invalid` by their number with the reason."""
    reasons = map(invalid.get, range(len(rows)))
    return map(Entry, rows.keys, rows.at.tolist(), rows.created.tolist(), rows.digests.tolist(), reasons)


def value_bytes(feature: ColumnFeature) -> int:
    """About how many bytes the value cache holds for one row."""
    if isinstance(feature, TokenFeature):
        return 0 if isinstance(feature.output, Scores) else 4 * feature.decoding.max_new_tokens
    return 4 * (feature.dims or 1)


def to_protos(job: Job, rows: Rows, computed: Computed) -> list[tuple[Any, ...]]:
    """What Feast's online stores write: (entity key, values by name, event timestamp, created timestamp) per row."""
    feature = job.bound.feature
    columns = value_columns(feature, computed.values)
    if feature.status:
        columns[feature.status_name] = [Value(string_val=status) for status in computed.statuses]
    values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    at = map(to_datetime, rows.at.tolist())
    created = [to_datetime(moment) if moment else None for moment in rows.created.tolist()]
    return list(zip(entity_keys(job.view, rows.keys), values, at, created, strict=True))
