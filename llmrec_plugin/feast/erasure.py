"""Erases what was computed from the texts of an entity, by its keys.

Such values lie in four places: the online tables of our batch views (of every version that a rollout keeps), the
ledger, the tables of training data, and the value cache. All four are asked again afterwards; what is still there is
an error. The raw source belongs to the user: while it has a row of the key, the next run computes its value again.

The value cache knows texts and no keys, so its entries are found by the rows that the source has now. A text that was
replaced before leaves the cache when nobody has used it for long, or at once with ``all_cached``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.dataset as pads
from feast import FeatureStore, FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int32, Int64

from llmrec_plugin.binding import BoundColumn, BoundFeature, BoundNetwork, BoundTokens, cached_parts
from llmrec_plugin.errors import ErasureError, InputError, UnknownNameError
from llmrec_plugin.feast.jobs import alone, entity_keys, is_ours, open_job
from llmrec_plugin.feast.training import TrainingSource
from llmrec_plugin.feast.versions import kept_by, read
from llmrec_plugin.feast.writing import writing
from llmrec_plugin.runtime.cache import ValueCache
from llmrec_plugin.runtime.ledger import Key
from llmrec_plugin.runtime.networks import Result
from llmrec_plugin.runtime.runner import Mode, Runner
from llmrec_plugin.runtime.tables import Table
from llmrec_plugin.runtime.writer import Outcome
from llmrec_plugin.settings import Settings, load_settings


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What was kept of the keys under one version of one view.

    Attributes:
        view: Name of the batch view.
        version: Number of its version, 0 where there is one only.
        source: Rows of the raw source that have one of the keys; what they hold is computed again by the next run.
        online: Keys of which the online store held a value.
        recorded: Keys that the ledger knew.
        training: States of training tables that had rows of the keys, and are gone as a whole; the next training
            read makes the table again, of cached values.
        cached: Entries of the value cache.
        unknown: Texts of the rows whose way into the cache could not be followed, since what is computed from them
            first is not cached any more; entries that were computed from it may be left.
    """

    view: str
    version: int
    source: int = 0
    online: int = 0
    recorded: int = 0
    training: int = 0
    cached: int = 0
    unknown: int = 0


def erase(
    store: FeatureStore, entity: str, keys: Sequence[str], *, all_cached: bool = False, dry_run: bool = False
) -> list[Erasure]:
    """Erases what is kept of the keys in all our batch views of an entity, and proves it by looking again.

    Our own stores for SQLite, Redis and PostgreSQL delete the rows; in any other store their values become null.

    Args:
        store: The feature repo's.
        entity: Name of the entity.
        keys: Values of its join key; integers as digits.
        all_cached: Erase all cached values of these features, of whatever keys and texts.
        dry_run: Only count.

    Raises:
        UnknownNameError: No batch view of ours has this entity.
        InputError: A key is no integer where the join key is one, or the raw source cannot be read.
        ErasureError: Something is still there, e.g. because another process reads it; the rest is erased.
    """
    targets = [_Target(store, view, keys) for view in _versions(store, entity)]
    for target in targets:  # all of them before the first erasure, since they share what is cached
        target.find()
    if dry_run:
        return [target.found for target in targets]
    for target in targets:
        target.erase(all_cached=all_cached)
    left = [what for target in targets for what in target.left()]
    if left:
        raise ErasureError(
            f"Of {len(keys)} key(s) of entity {entity!r} this is still there: {'; '.join(left)}. The rest is erased. "
            "Stop the processes that read or write these features, and erase again."
        )
    return [target.found for target in targets]


def _versions(store: FeatureStore, entity: str) -> Iterator[FeatureView]:
    """Every version of our batch views that has an online table."""
    registered = sorted(store.registry.list_feature_views(store.project), key=lambda view: str(view.name))
    names = {view.name for view in registered if is_ours(view)}
    served = [view for view in registered if view.name in names and view.entities == [entity]]
    if not served:
        known = {name for view in registered if view.name in names for name in view.entities}
        raise UnknownNameError("entity of LLM batch views", entity, known)
    book = read(store.registry, store.project) if kept_by(store.registry) else {}
    for view in served:
        yield view
        versions = book.get(view.name)
        if versions is not None:
            yield from (versions.view(number) for number in sorted(versions.kept) if number != versions.number)


class _Target:
    """The keys in one version of one view.

    Attributes:
        found: What was kept of them.
    """

    def __init__(self, store: FeatureStore, view: FeatureView, keys: Sequence[str]) -> None:
        provider = store._get_provider()
        self._job = open_job(store.config, view, provider.offline_store, provider.online_store)
        self._keys = _typed(view, keys)
        self._texts: dict[str, list[str]] = {}
        self.found = Erasure(view=view.name, version=view.current_version_number or 0)

    def find(self) -> None:
        """Counts what is kept, and remembers what is cached."""
        finder = _Finder(load_settings())
        rows = 0
        for part in self._job.raw.of(self._keys):
            finder.find(self._job.bound, part.columns)
            rows += len(part)
        self._texts = finder.found()
        self.found = replace(
            self.found,
            source=rows,
            online=len(self._online()),
            recorded=len(self._recorded()),
            training=self._training(),
            cached=sum(map(len, self._texts.values())),
            unknown=finder.unknown,
        )

    def erase(self, *, all_cached: bool) -> None:
        """Erases it; an erasure that is interrupted can be repeated, as what finds the rest goes last."""
        job = self._job
        with alone(job):
            with writing(job.config.project):
                self._erase_online(self._online())
                job.target.remove(self._recorded())
            for table in self._tables():
                table.delete(self._is_in)
            for fingerprint, texts in self._texts.items():
                job.runner.cache.erase(fingerprint, texts)
            for part in cached_parts(job.bound) if all_cached else ():
                job.runner.cache.erase(part.encoding_fingerprint)

    def left(self) -> list[str]:
        """What is still there, for messages."""
        cache = self._job.runner.cache
        counts = {
            "row(s) in the online store": len(self._online()),
            "row(s) in the ledger": len(self._recorded()),
            "state(s) of training tables": self._training(),
            "cached value(s)": sum(len(cache.known(*asked)) for asked in self._texts.items()),
        }
        return [f"{count} {what} of {self._job.view.name!r}" for what, count in counts.items() if count]

    def _online(self) -> list[EntityKey]:
        job, names = self._job, [field.name for field in self._job.view.features]
        keys = entity_keys(job.view, self._keys)
        rows = job.online_store.online_read(job.config, job.view, keys, names)
        return [
            key
            for key, (_, values) in zip(keys, rows, strict=True)
            if values is not None and any(value.WhichOneof("val") for value in values.values())
        ]

    def _erase_online(self, keys: list[EntityKey]) -> None:
        job = self._job
        if not keys:
            return
        delete = getattr(job.online_store, "delete_rows", None)
        if delete is not None:
            delete(job.config, job.view, keys)
            return
        nothing = {field.name: Value() for field in job.view.features}
        now = datetime.now(UTC)
        job.online_store.online_write_batch(job.config, job.view, [(key, nothing, now, now) for key in keys], None)

    def _recorded(self) -> list[Key]:
        return list(self._job.target.lookup(self._keys))

    def _training(self) -> int:
        return sum(table.count(self._is_in) for table in self._tables())

    def _tables(self) -> list[Table]:
        """The tables of training data of this feature, of all its fingerprints."""
        folder = load_settings().training_folder
        return [Table(path) for path in folder.glob(f"{self._job.bound.feature.name}-*") if path.is_dir()]

    def _is_in(self, part: Path) -> bool:
        """Whether a part of a training table has a row with one of the keys."""
        source = self._job.view.batch_source
        name = self._job.view.entity_columns[0].name
        column = source.raw_name(name) if isinstance(source, TrainingSource) else name
        rows = pads.dataset(part, format="parquet")
        return column in rows.schema.names and rows.count_rows(filter=pads.field(column).isin(self._keys)) > 0


def _typed(view: FeatureView, keys: Sequence[str]) -> list[Key]:
    column = view.entity_columns[0]
    if column.dtype not in (Int32, Int64):
        return list(keys)
    try:
        return [int(key) for key in keys]
    except ValueError as exc:
        raise InputError(f"The keys of {column.name!r} are integers: {exc}. Give them as digits.") from exc


class _Noting(ValueCache):
    """A value cache that remembers what it was asked for."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        super().__init__(folder, max_bytes)
        self.asked: defaultdict[str, set[str]] = defaultdict(set)

    def get_bytes(self, fingerprint: str, texts: Sequence[str]) -> dict[str, bytes]:
        self.asked[fingerprint].update(texts)
        return super().get_bytes(fingerprint, texts)


class _Finder(Runner):
    """Looks up all that the values of rows are made from, and computes none of it.

    Attributes:
        unknown: How many inputs of an intermediate model had no value, so that what follows from it is not known.
    """

    def __init__(self, settings: Settings) -> None:
        cache = _Noting(settings.cache_folder, settings.cache_max_bytes)
        super().__init__(settings, cache)
        self._asked = cache.asked
        self.unknown = 0
        self._whole: BoundColumn | None = None

    def found(self) -> dict[str, list[str]]:
        """Encoding fingerprint -> those texts that were looked up under it and have a value."""
        known = {fingerprint: self.cache.known(fingerprint, list(texts)) for fingerprint, texts in self._asked.items()}
        return {fingerprint: list(texts) for fingerprint, texts in known.items() if texts}

    def find(self, bound: BoundColumn, columns: dict[str, list[object]]) -> None:
        """Looks up what the rows are made from."""
        if not isinstance(bound, BoundTokens) and bound.feature.noise is not None:
            # Noise is not cached, and its key need not be here.
            bound = replace(bound, feature=replace(bound.feature, noise=None))  # type: ignore[arg-type]
        self._whole = bound
        self.compute(bound, columns, "historical", quiet=True)

    def _encode(self, bound: BoundFeature, texts: list[str], *_: object, **__: object) -> int:
        self._note(bound, texts)
        return 0

    def _write(self, bound: BoundTokens, keys: list[str], mode: Mode, *, quiet: bool) -> dict[str, Outcome]:
        self._note(bound, keys)
        return {}

    def _run(self, bound: BoundNetwork, rows: list[str], mode: Mode, *, quiet: bool) -> dict[str, Result]:
        return {}

    def _note(self, bound: BoundColumn, texts: list[str]) -> None:
        if bound is not self._whole:
            self.unknown += len(texts)
