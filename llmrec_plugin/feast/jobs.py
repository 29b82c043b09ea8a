"""What materializing one of our batch views needs, and which rows it has to write."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow.dataset as pads
from feast import FeatureView, FileSource
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.offline_store import OfflineStore
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.type_map import python_values_to_proto_values
from filelock import FileLock, Timeout

from llmrec_plugin.binding import BoundColumn
from llmrec_plugin.errors import InputError
from llmrec_plugin.feast.training import file_signature
from llmrec_plugin.runtime.ledger import Entry, Key, Ledger, Target
from llmrec_plugin.runtime.rawrows import Interval, RawRows, Rows, to_microseconds
from llmrec_plugin.runtime.runner import Runner, runner_for
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import digest
from llmrec_plugin.transform import Transform

logger = logging.getLogger(__name__)

State: TypeAlias = Literal["new", "changed", "unchanged", "superseded"]
Written: TypeAlias = Callable[[Sequence[Key]], Mapping[Key, Entry]]

_SAMPLED_KEYS = 16
_EPOCH = datetime.fromtimestamp(0, UTC)


def is_ours(view: object) -> bool:
    """Whether `view` is one of our batch views over a raw view that no other transformation makes."""
    transform = getattr(getattr(view, "feature_transformation", None), "udf", None)
    if not isinstance(transform, Transform) or transform.view != "batch":
        return False
    raw = getattr(view, "source_views", None) or []
    return len(raw) == 1 and getattr(raw[0], "feature_transformation", None) is None


@dataclass
class Job:
    """One of our batch views, and where its rows come from and go to."""

    config: RepoConfig
    view: FeatureView
    bound: BoundColumn
    raw: RawRows
    target: Target
    online_store: OnlineStore
    runner: Runner
    _path: Path | None
    _signature: bytes

    def source_changed(self) -> bool:
        """Whether a file of the source was written since the job was opened."""
        try:
            return self._path is not None and file_signature(self._path) != self._signature
        except OSError:  # it is gone
            return True

    def covered(self) -> list[Interval]:
        """The intervals that were materialized before."""
        return [(to_microseconds(start), to_microseconds(end)) for start, end in self.view.materialization_intervals]


def open_job(config: RepoConfig, view: FeatureView, offline_store: OfflineStore, online_store: OnlineStore) -> Job:
    """Everything that materializing `view`, or planning it, needs.

    Raises:
        InputError: The raw source cannot be read.
        MissingColumnError: The raw source lacks a column.
    """
    bound = view.feature_transformation.udf.bound
    source = view.source_views[0].batch_source
    path = _parquet_path(config, source)
    signature = b"" if path is None else file_signature(path)
    dataset = _load(config, source, offline_store) if path is None else _open(path, bound)
    raw = RawRows(
        dataset,
        bound.feature,
        key=view.entity_columns[0].name,
        timestamp=source.timestamp_field,
        created=source.created_timestamp_column,
        field_mapping=dict(source.field_mapping),
    )
    target = open_target(config, view)
    return Job(config, view, bound, raw, target, online_store, runner_for(load_settings()), path, signature)


def open_target(config: RepoConfig, view: FeatureView) -> Target:
    """The part of this machine's ledger that belongs to the online table of `view`."""
    bound = view.feature_transformation.udf.bound
    return _ledger(load_settings().cache_folder).target(_target_name(config, view, bound), view.name, bound.fingerprint)


@functools.lru_cache(maxsize=8)
def _ledger(folder: Path) -> Ledger:
    return Ledger(folder)


def _target_name(config: RepoConfig, view: FeatureView, bound: BoundColumn) -> str:
    store = config.online_store.model_dump_json() if config.online_store else ""
    place = digest([str(Path(config.repo_path or ".").resolve()), store])[:16]
    version = view.current_version_number or 0
    return f"{config.project}/{view.name}/v{version}/{bound.fingerprint}/{place}"


def _parquet_path(config: RepoConfig, source: Any) -> Path | None:
    """The file or folder of a parquet source on this machine; None for any other source."""
    is_parquet = isinstance(source, FileSource) and isinstance(source.file_format, (ParquetFormat, type(None)))
    return Path(config.repo_path or ".") / source.path if is_parquet and "://" not in source.path else None


def _open(path: Path, bound: BoundColumn) -> pads.Dataset:
    if not path.exists():
        raise InputError(
            f"Feature {bound.feature.name!r} reads {path}, which is not there. Write the file, or correct the path of "
            "its source and `feast apply`."
        )
    return pads.dataset(path, format="parquet", partitioning="hive")


def _load(config: RepoConfig, source: Any, offline_store: OfflineStore) -> pads.Dataset:
    """The rows of a source that only its offline store can read; they are held in memory."""
    job = offline_store.pull_all_from_table_or_query(
        config=config,
        data_source=source,
        join_key_columns=[],
        feature_name_columns=[],
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column or None,
    )
    return pads.dataset(job.to_arrow())


@contextmanager
def alone(job: Job) -> Iterator[None]:
    """One run per target at a time; a second one waits, then finds everything cached."""
    lock = FileLock(job.target.lock_path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("%s: another process materializes this view; waiting for it to end.", job.bound.feature.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass
class Selection:
    """The rows that a run is to write.

    Attributes:
        wanted: (total,) bool over the rows of the source.
        newest: Entities that have a row up to the end of the window.
        late: Wanted rows outside the window: not recorded as written, or changed since.
        unreadable: Rows without a key or a timestamp.
    """

    wanted: np.ndarray
    newest: int
    late: int
    unreadable: int

    def __len__(self) -> int:
        return int(self.wanted.sum())


def select(job: Job, window: Interval, written: Written) -> Selection:
    """The newest row of each entity inside `window`, and of the intervals before it what is new or changed.

    Args:
        job: The view.
        window: The rows that are to be written, whatever is known of them.
        written: Looks up what was written of entities.
    """
    newest = job.raw.newest(window, job.covered())
    wanted = newest.inside.copy()
    for positions, rows in job.raw.read(newest.earlier):
        wanted[positions] = [state in ("new", "changed") for state in states(rows, written(rows.keys), window[1])]
    late = int((wanted & ~newest.inside).sum())
    return Selection(wanted, int(newest.inside.sum() + newest.earlier.sum()), late, newest.unreadable)


def states(rows: Rows, written: Mapping[Key, Entry], end: int) -> list[State]:
    """What writing each row would be, by what was written of its entity.

    ``superseded``: what is stored is newer, because it was pushed or lies behind the `end` of the window.
    """
    return [_state(rows, i, written.get(key), end) for i, key in enumerate(rows.keys)]


def _state(rows: Rows, i: int, entry: Entry | None, end: int) -> State:
    if entry is None:
        return "new"
    if entry.at > rows.at[i] and (entry.pushed or entry.at > end):
        return "superseded"
    return "unchanged" if (entry.at, entry.digest) == (rows.at[i], rows.digests[i]) else "changed"


def count_lost(job: Job) -> int:
    """How many of a sample of the rows that were written are no longer in the online store."""
    keys = job.target.sample(_SAMPLED_KEYS)
    if not keys:
        return 0
    stored = job.online_store.online_read(job.config, job.view, entity_keys(job.view, keys), [job.bound.feature.name])
    return sum(is_missing(*row) for row in stored)


def is_missing(at: datetime | None, values: dict[str, Value] | None) -> bool:
    """Whether a store has no such row; Feast's Redis store says so by nulls of 1970."""
    return values is None or (at == _EPOCH and not any(value.WhichOneof("val") for value in values.values()))


def entity_keys(view: FeatureView, keys: Sequence[Key]) -> list[EntityKey]:
    """Feast's entity keys of our views, which have one join key."""
    column = view.entity_columns[0]
    values = python_values_to_proto_values(list(keys), column.dtype.to_value_type())
    return [EntityKey(join_keys=[column.name], entity_values=[value]) for value in values]
