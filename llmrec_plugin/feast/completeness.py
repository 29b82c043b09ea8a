"""Whether one version of a view holds every row that another one answers with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from feast import FeatureStore, FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.type_map import python_values_to_proto_values

KEYS_PER_READ = 1000


@dataclass(frozen=True)
class Rows:
    """Rows of a candidate, counted against the served version.

    Attributes:
        expected: Entities of the source for which the served version holds a row.
        complete: Those for which the candidate holds one that is as new, or newer.
        null: Those among the complete that the candidate answers with null and the served version does not.
    """

    expected: int
    complete: int
    null: int

    @property
    def missing(self) -> int:
        return self.expected - self.complete


def compare_rows(store: FeatureStore, candidate: FeatureView, served: FeatureView) -> Rows:
    """Reads both versions for every entity of the source, a chunk at a time.

    A row that the served version does not hold is not expected: after the switch, no reader gets less than
    before. Memory: the distinct keys of the source, and the rows of one chunk.
    """
    expected = complete = null = 0
    for keys in _entity_keys(candidate):
        old, new = (_read(store, view, keys) for view in (served, candidate))
        for (old_time, old_present), (new_time, new_present) in zip(old, new, strict=True):
            if old_time is None:
                continue
            expected += 1
            if new_time is not None and new_time >= old_time:
                complete += 1
                null += old_present and not new_present
    return Rows(expected, complete, null)


def _read(store: FeatureStore, view: FeatureView, keys: list[EntityKey]) -> list[tuple[Any, bool]]:
    """Per key the row's event time, None if there is no row, and whether it holds a vector."""
    names = [field.name for field in view.features]
    rows = store._get_provider().online_read(store.config, view, keys, names)
    return [
        (time, values is not None and any(value.WhichOneof("val") for value in values.values()))
        for time, values in rows
    ]


def _entity_keys(view: FeatureView) -> Iterator[list[EntityKey]]:
    source: Any = view.batch_source
    columns = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    for batch in source.distinct_keys():
        for start in range(0, batch.num_rows, KEYS_PER_READ):
            yield _keys(batch.slice(start, KEYS_PER_READ), columns)


def _keys(batch: pa.RecordBatch, columns: dict[str, Any]) -> list[EntityKey]:
    names = sorted(columns)
    values = [python_values_to_proto_values(batch.column(name).to_pylist(), columns[name]) for name in names]
    return [EntityKey(join_keys=names, entity_values=row) for row in zip(*values, strict=True)]
