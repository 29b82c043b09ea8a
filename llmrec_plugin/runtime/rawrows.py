"""The raw rows behind a batch view, read in chunks: the newest row of each entity, in bounded memory.

A source is read twice or thrice: first keys and timestamps only, to find which rows are the newest of their
entity, then the columns of the rows that are wanted. Keys are spilled to disk in partitions, so that memory
depends on the chunk and not on the table (two bytes per row apart).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from llmrec_plugin.errors import ColumnTypeError, MissingColumnError
from llmrec_plugin.runtime.ledger import Key
from llmrec_plugin.specs import ColumnFeature

Interval: TypeAlias = tuple[int, int]
"""First and last microsecond since 1970 UTC, both included, as in Feast's file store."""

ROWS_PER_BATCH = 1024
ROWS_PER_PARTITION = 8192
MAX_PARTITIONS = 512
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970 UTC; a naive datetime is UTC, as everywhere in Feast."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - EPOCH) // _MICROSECOND


def to_datetime(microseconds: int) -> datetime:
    return EPOCH + microseconds * _MICROSECOND


@dataclass(frozen=True)
class Rows:
    """n raw rows.

    Attributes:
        keys: Per row the entity's key.
        at: (n,) int64, event timestamps in microseconds since 1970 UTC.
        created: (n,) int64, created timestamps likewise; 0 where there is none.
        columns: The columns that the feature reads, by name.
        digests: (n,) int64, a hash of each row's `columns`.
    """

    keys: list[Key]
    at: np.ndarray
    created: np.ndarray
    columns: dict[str, list[Any]]
    digests: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, wanted: np.ndarray) -> Rows:
        """The rows where `wanted`, (n,) bool, is true."""
        numbers = np.flatnonzero(wanted)
        if len(numbers) == len(self):
            return self
        return Rows(
            [self.keys[i] for i in numbers],
            self.at[numbers],
            self.created[numbers],
            {name: [values[i] for i in numbers] for name, values in self.columns.items()},
            self.digests[numbers],
        )

    def slice(self, start: int, stop: int) -> Rows:
        """Rows from `start` to before `stop`."""
        return Rows(
            self.keys[start:stop],
            self.at[start:stop],
            self.created[start:stop],
            {name: values[start:stop] for name, values in self.columns.items()},
            self.digests[start:stop],
        )


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of one or more parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        [key for part in parts for key in part.keys],
        np.concatenate([part.at for part in parts]),
        np.concatenate([part.created for part in parts]),
        {name: [value for part in parts for value in part.columns[name]] for name in parts[0].columns},
        np.concatenate([part.digests for part in parts]),
    )


class RawRows:
    """A raw source as rows of one feature.

    Args:
        dataset: The source's rows.
        feature: The feature that reads them.
        key: Name of the entity's key.
        timestamp: Name of the event timestamp.
        created: Name of the created timestamp, maybe empty.
        field_mapping: Name in the source -> name in Feast; the other arguments are names in Feast.

    Raises:
        MissingColumnError: The source lacks one of the columns.
        ColumnTypeError: A timestamp is none, or the key is neither text nor an integer.
    """

    def __init__(
        self,
        dataset: pads.Dataset,
        feature: ColumnFeature,
        *,
        key: str,
        timestamp: str,
        created: str = "",
        field_mapping: dict[str, str] | None = None,
    ) -> None:
        raw_names = {renamed: name for name, renamed in (field_mapping or {}).items()}
        self.feature = feature
        self._dataset = dataset
        self._raw = {name: raw_names.get(name, name) for name in (key, timestamp, created, *feature.columns) if name}
        self._key, self._timestamp, self._created = key, timestamp, created
        missing = [name for name in self._raw.values() if name not in dataset.schema.names]
        if missing:
            raise MissingColumnError(feature.name, missing, dataset.schema.names)
        for name in filter(None, (timestamp, created)):
            kind = dataset.schema.field(self._raw[name]).type
            if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
                raise ColumnTypeError(
                    f"Feature {feature.name!r}: expected a timestamp in column {self._raw[name]!r}, got {kind}. "
                    "Convert the column in its source."
                )
        self._key_type = _decoded(dataset.schema.field(self._raw[key]).type)
        if not (pa.types.is_string(self._key_type) or pa.types.is_large_string(self._key_type)
                or pa.types.is_integer(self._key_type) or pa.types.is_binary(self._key_type)):  # fmt: skip
            raise ColumnTypeError(
                f"Feature {feature.name!r}: expected text or integers in key column {self._raw[key]!r}, got "
                f"{self._key_type}. Convert the column in its source (pandas writes integers with gaps as float64; "
                "its type Int64 keeps them)."
            )

    def newest(self, window: Interval, covered: Sequence[Interval] = ()) -> Newest:
        """Which rows are the newest of their entity among those up to the end of `window`.

        Of rows with one event timestamp the one created last is the newest, then the one further down in the source.

        Args:
            window: The rows that are to be written, whatever is known of them.
            covered: Further intervals, those that were written before.
        """
        total = self._dataset.count_rows()
        partitions = min(1 + total // ROWS_PER_PARTITION, MAX_PARTITIONS)
        inside, earlier = np.zeros(total, dtype=bool), np.zeros(total, dtype=bool)
        with tempfile.TemporaryDirectory(prefix="llmrec-keys-") as folder:
            unreadable = self._spill(Path(folder), partitions, window[1])
            for number in range(partitions):
                positions, at = _newest_of_partition(Path(folder) / str(number))
                within = _is_within(at, [window])
                inside[positions[within]] = True
                earlier[positions[~within & _is_within(at, covered)]] = True
        return Newest(inside, earlier, unreadable)

    def read(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, Rows]]:
        """The rows where `wanted`, (total,) bool, is true, in chunks of at most `ROWS_PER_BATCH`.

        Yields:
            The rows' positions in the source, (n,) int64, and the rows.
        """
        start = 0
        for batch in self._batches(list(self._raw), ROWS_PER_BATCH):
            here = wanted[start : start + batch.num_rows]
            positions = start + np.flatnonzero(here)
            start += batch.num_rows
            if len(positions):
                yield positions, self._rows(batch.filter(pa.array(here)))

    def of(self, keys: Sequence[Key]) -> Iterator[Rows]:
        """All rows of some entities, in chunks of at most `ROWS_PER_BATCH`."""
        wanted = pa.array(keys).cast(self._key_type)
        for batch in self._batches(list(self._raw), ROWS_PER_BATCH):
            here = pc.is_in(batch.column(self._raw[self._key]).cast(self._key_type), value_set=wanted)
            if here.true_count:
                yield self._rows(batch.filter(here))

    def _rows(self, batch: pa.RecordBatch) -> Rows:
        columns = {name: batch.column(self._raw[name]).to_pylist() for name in self.feature.columns}
        created = _microseconds(batch.column(self._raw[self._created])) if self._created else None
        return Rows(
            batch.column(self._raw[self._key]).to_pylist(),
            _microseconds(batch.column(self._raw[self._timestamp])),
            np.zeros(batch.num_rows, np.int64) if created is None else created,
            columns,
            digests(columns),
        )

    def _spill(self, folder: Path, partitions: int, until: int) -> int:
        """Writes (position, key, at, created) of every row up to `until`; returns how many rows have no key or time."""
        key, at = self._raw[self._key], self._raw[self._timestamp]
        created = self._raw.get(self._created)
        schema = pa.schema(
            [("position", pa.int64()), ("key", self._key_type), ("at", pa.int64()), ("created", pa.int64())]
        )
        writers = [pa.ipc.new_stream(str(folder / str(number)), schema) for number in range(partitions)]
        unreadable = start = 0
        try:
            names = [name for name in (self._key, self._timestamp, self._created) if name]
            for batch in self._batches(names, ROWS_PER_PARTITION):
                readable = pc.and_(batch.column(key).is_valid(), batch.column(at).is_valid())
                unreadable += batch.num_rows - readable.true_count
                times = _microseconds(batch.column(at))
                table = pa.record_batch(
                    [
                        pa.array(np.arange(start, start + batch.num_rows)),
                        batch.column(key).cast(self._key_type),
                        pa.array(times),
                        pa.array(
                            _microseconds(batch.column(created)) if created else np.zeros(batch.num_rows, np.int64)
                        ),
                    ],
                    schema=schema,
                )
                start += batch.num_rows
                table = table.filter(pc.and_(readable, pa.array(times <= until)))
                if partitions == 1:
                    writers[0].write_batch(table)
                    continue
                keys = table.column("key").to_numpy(zero_copy_only=False)
                homes = pd.util.hash_array(keys, categorize=False) % partitions
                for number in np.unique(homes):
                    writers[number].write_batch(table.filter(pa.array(homes == number)))
        finally:
            for writer in writers:
                writer.close()
        return unreadable

    def _batches(self, names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Batches of the source in its order."""
        columns = [self._raw[name] for name in names]
        if not isinstance(self._dataset, pads.FileSystemDataset):
            yield from self._dataset.to_batches(columns=columns, batch_size=rows)
            return
        schema = pa.schema([self._dataset.schema.field(name) for name in columns])
        for fragment in self._dataset.get_fragments():
            yield from _stream(fragment, schema, rows)


def _stream(fragment: pads.ParquetFileFragment, schema: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
    """Batches of one parquet file; the dataset's own scanner would decode a whole row group at a time."""
    constants = pads.get_partition_keys(fragment.partition_expression)
    with pq.ParquetFile(fragment.open(), buffer_size=1 << 20, pre_buffer=False) as file:
        present = [name for name in schema.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=rows, columns=present, use_threads=False):
            columns = []
            for field in schema:
                if field.name in present:
                    columns.append(batch.column(field.name).cast(field.type))
                else:  # the folder's name tells it, or this file has no such column
                    columns.append(pa.array([constants.get(field.name)] * batch.num_rows, field.type))
            yield pa.record_batch(columns, schema=schema)


@dataclass(frozen=True)
class Newest:
    """Which rows of a source are the newest of their entity.

    Attributes:
        inside: (total,) bool, true for such a row inside the window.
        earlier: (total,) bool, true for such a row outside the window, in an interval covered before.
        unreadable: Rows without a key or without a timestamp; they belong to no entity.
    """

    inside: np.ndarray
    earlier: np.ndarray
    unreadable: int


def _newest_of_partition(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions and event timestamps of the newest rows, both (entities,) int64."""
    newest: list[pa.RecordBatch] = []
    with pa.ipc.open_stream(str(path)) as reader:
        for batch in reader:
            newest.append(batch)
            if sum(len(item) for item in newest) > 2 * ROWS_PER_PARTITION:  # e.g. an entity with a long history
                newest = [_newest_rows(reader.schema, newest)]
        rows = _newest_rows(reader.schema, newest)
    return rows.column("position").to_numpy(), rows.column("at").to_numpy()


def _newest_rows(schema: pa.Schema, batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    rows = pa.Table.from_batches(batches, schema)
    frame = rows.to_pandas().sort_values(["at", "created", "position"])
    last = frame.drop_duplicates("key", keep="last").index.to_numpy()
    return rows.take(pa.array(last)).combine_chunks().to_batches(max_chunksize=None)[0] if len(last) else _empty(schema)


def _decoded(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _is_within(at: np.ndarray, intervals: Sequence[Interval]) -> np.ndarray:
    within = np.zeros(len(at), dtype=bool)
    for start, end in intervals:
        within |= (at >= start) & (at <= end)
    return within


def _microseconds(column: pa.Array) -> np.ndarray:
    """Timestamps or dates as microseconds since 1970 UTC, (n,) int64; 0 for null."""
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    return column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)


def digests(columns: dict[str, list[Any]]) -> np.ndarray:
    """A 64-bit hash of each row's values, (n,) int64; every kind of missing value is the same."""
    rows = zip(*columns.values(), strict=True)
    texts = (repr([None if _is_missing(value) else value for value in row]) for row in rows)
    hashes = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(hashes), dtype="<i8")


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)
