"""What Feast's online stores have in common when they search vectors: columns, queries, hits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from feast import FeatureView, Field, RepoConfig
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Int64List, StringList, Value

from llmrec_plugin.errors import DeclarationError, FingerprintMismatchError, InputError
from llmrec_plugin.pipeline.columns import is_number, plain_columns
from llmrec_plugin.pipeline.nearest import Block, nearest
from llmrec_plugin.pipeline.outputs import ColumnType, columns_of_output
from llmrec_plugin.pipeline.packing import VectorFeature, stored_values
from llmrec_plugin.specs import ColumnFeature, Metric, TokenFeature

Hit: TypeAlias = tuple[datetime | None, EntityKey | None, dict[str, Value] | None]
"""Time, key and features of a row, one of them ``distance``, as Feast's stores return it."""

FEAST_METRICS: dict[Metric, str] = {"cosine": "cosine", "dot": "inner_product", "euclidean": "L2"}
"""The names that Feast's PostgreSQL store understands, capitals included."""

_METRICS: dict[str, Metric] = {name.lower(): metric for metric, name in FEAST_METRICS.items()}
ROWS_PER_BLOCK = 8192
_KEYS_PER_READ = 10_000  # SQLite takes 32,766 parameters


def vector_column(table: FeatureView) -> Field:
    """The view's column with a vector index.

    Raises:
        DeclarationError: There is none, or more than one.
    """
    columns = [field for field in table.features if field.vector_index]
    if len(columns) != 1:
        raise DeclarationError(
            f"Feature view {table.name!r} has {len(columns)} columns with vector_index=True: expected one. "
            "Search the batch view of an embedding feature."
        )
    return columns[0]


def metric_of(column: Field, asked: str | None = None) -> Metric:
    """The metric of the column's index, else the one asked for.

    Raises:
        DeclarationError: It is not one of ours.
    """
    name = column.vector_search_metric or asked or ""
    if name.lower() not in _METRICS:
        raise DeclarationError(
            f"Column {column.name!r} has vector_search_metric {name!r}: expected {', '.join(FEAST_METRICS.values())}."
        )
    return _METRICS[name.lower()]


def query_vector(values: Sequence[float] | np.ndarray, column: Field) -> np.ndarray:
    """The query as (dims,) float32.

    Raises:
        InputError: It is no vector of the column's length, has no direction under cosine, or is not finite.
    """
    vector = np.asarray(values, dtype=np.float32)
    expected = f"Column {column.name!r} holds vectors of {column.vector_length} finite numbers"
    if vector.shape != (column.vector_length,):
        raise InputError(
            f"{expected}, the query has shape {vector.shape}. Encode the query with a feature of the same vector space."
        )
    if not np.isfinite(vector).all():
        raise InputError(f"{expected}, the query has others.")
    if metric_of(column, "cosine") == "cosine" and not vector.any():
        raise InputError(
            f"The query for column {column.name!r} is all zeros: it has no direction to compare by cosine."
        )
    return vector


def list_head(length: int) -> bytes:
    """What comes before the numbers of a serialized list of `length` > 0 floats.

    They follow as they lie in memory, little-endian; going through them number by number, as protobuf's own interface
    does, takes many times longer.
    """
    return Value(float_list_val=FloatList(val=[0.0] * length)).SerializeToString()[: -4 * length]


def vector_values(feature: VectorFeature, vectors: Sequence[np.ndarray | None]) -> list[Value]:
    """Feast's values of n vectors of (dims,) float32, as `feature` stores them; an empty one for None."""
    assert feature.dims is not None
    head = list_head(feature.dims)
    return [
        Value()
        if stored is None
        else Value(bytes_val=stored)
        if isinstance(stored, bytes)
        else Value.FromString(head + stored.astype("<f4", copy=False).tobytes())
        for stored in stored_values(feature, vectors)
    ]


def value_columns(feature: ColumnFeature, values: Sequence[Any]) -> dict[str, list[Value]]:
    """Feast's values of n values of `feature`, by column, without statuses; an empty one for None."""
    if is_number(feature):
        return {feature.name: _protos(values, "float")}
    if not isinstance(feature, TokenFeature):
        return {feature.name: vector_values(feature, values)}
    types = [kind for _, kind in columns_of_output(feature.output)]
    columns = plain_columns(feature, values).items()
    return {name: _protos(column, kind) for (name, column), kind in zip(columns, types, strict=True)}


def _protos(column: Sequence[Any], kind: ColumnType) -> list[Value]:
    makers: dict[ColumnType, Callable[[Any], Value]] = {
        "string": lambda value: Value(string_val=value),
        "strings": lambda value: Value(string_list_val=StringList(val=value)),
        "float": lambda value: Value(float_val=value),
        "floats": lambda value: Value(float_list_val=FloatList(val=value)),
        "ints": lambda value: Value(int64_list_val=Int64List(val=value)),
    }
    make = makers[kind]
    return [Value() if value is None else make(value) for value in column]


def decode(rows: Iterable[tuple[bytes, bytes]], column: Field) -> Iterator[Block]:
    """Blocks of the vectors among (key, serialized value) rows; a null is no vector.

    Raises:
        FingerprintMismatchError: A vector has another length.
    """
    size = 4 * column.vector_length
    head = list_head(column.vector_length)
    rows = iter(rows)
    while chunk := list(islice(rows, ROWS_PER_BLOCK)):
        present = [(bytes(key), bytes(value)) for key, value in chunk if value]
        for _, value in present:
            if len(value) != len(head) + size or not value.startswith(head):
                raise FingerprintMismatchError(
                    f"A stored value of column {column.name!r} is no vector of {column.vector_length} numbers: it was "
                    "written under another declaration. Run `feast materialize` for this view again."
                )
        floats = np.frombuffer(b"".join(value[-size:] for _, value in present), dtype="<f4")
        yield Block([key for key, _ in present], floats.reshape(-1, column.vector_length))


class VectorSearch:
    """Vector search of an online store of Feast, put before its class.

    Hits are in the order of their entity keys, not of their distances: Feast 0.67 sorts the keys and leaves the
    features (feature_store.py:4714-4739), so any other order gives the features of one row to the key of another.
    """

    @abstractmethod
    def nearest_rows(
        self, config: RepoConfig, table: FeatureView, column: Field, query: np.ndarray, metric: Metric, count: int
    ) -> list[tuple[bytes, float]]:
        """Serialized entity keys and distances of the `count` nearest rows, nearest first."""

    def retrieve_online_documents_v2(
        self,
        config: RepoConfig,
        table: FeatureView,
        requested_features: list[str],
        embedding: list[float] | None,
        top_k: int,
        distance_metric: str | None = None,
        query_string: str | None = None,
        filters: Any = None,
        include_feature_view_version_metadata: bool = False,
    ) -> list[Hit]:
        """The `top_k` nearest rows with the requested features and their distance, in the order of their keys.

        A search by text or with filters is left to Feast's store.

        Raises:
            InputError: The query is no vector of the column's length.
            FingerprintMismatchError: A stored vector has another length.
        """
        if isinstance(filters, bool):  # Feast 0.65 has no filters, and gives what follows them in this place
            filters, include_feature_view_version_metadata = None, filters
        if embedding is None or query_string is not None or filters is not None:
            further = {} if filters is None else {"filters": filters}
            return by_entity_key(
                super().retrieve_online_documents_v2(  # type: ignore[misc]
                    config,
                    table,
                    requested_features,
                    embedding,
                    top_k,
                    distance_metric=distance_metric,
                    query_string=query_string,
                    include_feature_view_version_metadata=include_feature_view_version_metadata,
                    **further,
                )
            )
        if top_k < 1:
            raise InputError(f"top_k must be at least 1, got {top_k}.")
        column = vector_column(table)
        query = query_vector(embedding, column)
        found = self.nearest_rows(config, table, column, query, metric_of(column, distance_metric), top_k)
        keys = [deserialize_entity_key(key, config.entity_key_serialization_version) for key, _ in found]
        rows: list[Any] = []
        for start in range(0, len(keys), _KEYS_PER_READ):
            # A copy of the names: Feast's Redis store adds to the list it is given.
            part = keys[start : start + _KEYS_PER_READ]
            rows += self.online_read(config, table, part, list(requested_features))  # type: ignore[attr-defined]
        hits = [
            (at, key, {**values, "distance": Value(float_val=distance)})
            for key, (_, distance), (at, values) in zip(keys, found, rows, strict=True)
            if values is not None  # removed in between
        ]
        return by_entity_key(hits)


class ExactSearch(VectorSearch):
    """Compares every stored vector with the query, in this process."""

    @abstractmethod
    def vector_blocks(self, config: RepoConfig, table: FeatureView, column: Field) -> Iterable[Block]:
        """The stored vectors with their serialized entity keys, in the order of these."""

    def nearest_rows(
        self, config: RepoConfig, table: FeatureView, column: Field, query: np.ndarray, metric: Metric, count: int
    ) -> list[tuple[bytes, float]]:
        return nearest(self.vector_blocks(config, table, column), query, metric, count)


def by_entity_key(hits: list[Any]) -> list[Any]:
    """The hits in the order into which Feast sorts their keys, see `VectorSearch`."""
    return sorted(hits, key=lambda hit: [getattr(value, value.WhichOneof("val")) for value in hit[1].entity_values])
