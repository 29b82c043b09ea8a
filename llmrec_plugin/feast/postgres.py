"""Feast's PostgreSQL online store, with vector search by pgvector that can use an index.

In ``feature_store.yaml``::

    online_store:
      type: llmrec_plugin.feast.postgres.LLMRecPostgreSQLOnlineStore
      vector_index: hnsw
      host: ...

Tables are those of ``type: postgres`` with ``vector_enabled: true``. Feast's own search groups the table by key, which
no index of pgvector can serve.
"""

from __future__ import annotations

import contextlib
import selectors
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from feast import Entity, FeatureView, Field, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.utils.postgres.postgres_config import ConnectionType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from pydantic import field_validator

from llmrec_plugin.errors import DeclarationError, MissingExtraError
from llmrec_plugin.feast.vectors import VectorSearch, metric_of
from llmrec_plugin.specs import Metric

try:
    from feast.infra.online_stores.postgres_online_store.postgres import (
        PostgreSQLOnlineStore,
        PostgreSQLOnlineStoreConfig,
    )
    from feast.infra.utils.postgres.connection_utils import _get_conn, _get_connection_pool
    from psycopg import Connection, OperationalError, sql
except ModuleNotFoundError as exc:
    raise MissingExtraError("psycopg", "postgres", "An online store in PostgreSQL") from exc

MAX_INDEXED_DIMS = 2000  # of pgvector's type `vector`
MAX_EF_SEARCH = 1000  # of pgvector
_OPERATORS: dict[Metric, str] = {"cosine": "<=>", "dot": "<#>", "euclidean": "<->"}
_OPERATOR_CLASSES: dict[Metric, str] = {
    "cosine": "vector_cosine_ops",
    "dot": "vector_ip_ops",
    "euclidean": "vector_l2_ops",
}


class LLMRecPostgreSQLOnlineStoreConfig(PostgreSQLOnlineStoreConfig):
    """The settings of ``type: postgres`` and one more."""

    vector_enabled: bool | None = True
    vector_index: Literal["hnsw"] | None = None
    """None compares every vector. ``hnsw`` (pgvector 0.8 or newer) answers up to 500 rows from an index, faster and not
    always with the nearest, and makes every write slower."""

    @field_validator("type", mode="before")
    @classmethod
    def _as_feast_calls_it(cls, value: str) -> str:
        return "postgres"  # Feast's store asserts that this is its type


class LLMRecPostgreSQLOnlineStore(VectorSearch, PostgreSQLOnlineStore):
    """PostgreSQL with pgvector; of each view's table an index of its vectors, if the settings say so."""

    _conn: Any
    _conn_pool: Any

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def _get_conn(self, config: RepoConfig, autocommit: bool = False) -> Iterator[Connection]:
        # After an error Feast leaves the connection in its failed transaction, or takes it from the pool for good; and
        # one that the server has closed it uses for ever.
        pooled = config.online_store.conn_type == ConnectionType.pool
        with self._from_pool(config) if pooled else self._shared(config) as connection:
            connection.set_autocommit(autocommit)
            try:
                yield connection
            except Exception:
                if not connection.closed:
                    connection.rollback()
                raise

    @contextlib.contextmanager
    def _shared(self, config: RepoConfig) -> Iterator[Connection]:
        with self._lock:  # Feast's threads disturb each other's transactions
            if self._conn is None or _is_lost(self._conn):
                self._conn = _get_conn(config.online_store)
            yield self._conn

    @contextlib.contextmanager
    def _from_pool(self, config: RepoConfig) -> Iterator[Connection]:
        with self._lock:
            if self._conn_pool is None:
                self._conn_pool = _get_connection_pool(config.online_store)
                self._conn_pool.open()
        connection = self._conn_pool.getconn()
        while _is_lost(connection):
            self._conn_pool.putconn(connection)  # which replaces it
            connection = self._conn_pool.getconn()
        try:
            yield connection
        finally:
            self._conn_pool.putconn(connection)

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        with self._get_conn(config, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        super().update(config, tables_to_delete, tables_to_keep, entities_to_delete, entities_to_keep, partial)
        if config.online_store.vector_index is None:
            return
        for table in tables_to_keep:
            for column in table.features:
                if column.vector_index:
                    with self._get_conn(config, autocommit=True) as connection:
                        connection.execute(_index(_table(config, table), column))

    def delete_rows(self, config: RepoConfig, table: FeatureView, keys: Sequence[EntityKey]) -> None:
        """Deletes the rows of entities; their bytes leave the disk with PostgreSQL's next vacuum."""
        serialized = [serialize_entity_key(key, config.entity_key_serialization_version) for key in keys]
        statement = sql.SQL("DELETE FROM {} WHERE entity_key = ANY(%s)")
        with self._get_conn(config, autocommit=True) as connection:
            connection.execute(statement.format(sql.Identifier(_table(config, table))), (serialized,))

    def nearest_rows(
        self, config: RepoConfig, table: FeatureView, column: Field, query: np.ndarray, metric: Metric, count: int
    ) -> list[tuple[bytes, float]]:
        # What the index considers bounds what it can give.
        by_index = config.online_store.vector_index == "hnsw" and 2 * count <= MAX_EF_SEARCH
        if by_index:
            settings = f"SET LOCAL hnsw.ef_search = {max(40, 2 * count)}; SET LOCAL hnsw.iterative_scan = strict_order"
        else:
            settings = "SET LOCAL enable_indexscan = off"  # an index may be left from other settings
        statement = sql.SQL(
            "{settings}; SELECT entity_key, {vector} {operator} {query} AS distance FROM {table} "
            "WHERE feature_name = {name} AND vector_value IS NOT NULL "
            "ORDER BY {vector} {operator} {query} {of_equal} LIMIT {count}"
        ).format(
            settings=sql.SQL(settings),
            vector=_vector(column),
            operator=sql.SQL(_OPERATORS[metric]),
            query=sql.SQL("{}::vector").format(sql.Literal(str(query.tolist()))),
            table=sql.Identifier(_table(config, table)),
            name=sql.Literal(column.name),
            of_equal=sql.SQL("" if by_index else ", entity_key"),
            count=sql.Literal(count),
        )
        with self._get_conn(config, autocommit=True) as connection:
            # Sent together, the statements are one transaction, to which the settings are local.
            cursor = connection.execute(statement)
            while cursor.nextset():  # the rows come last
                pass
            rows: list[Any] = cursor.fetchall()
        # A vector without direction has no cosine; pgvector says NaN.
        return [(bytes(key), distance) for key, distance in rows if distance == distance]


def _is_lost(connection: Connection) -> bool:
    """Whether the server is gone: then an idle connection has something to read, its end. Asks the server nothing."""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            while selector.select(timeout=0):
                connection.pgconn.consume_input()  # the server's last words, then its end
    except OperationalError:
        connection.close()
    return connection.closed


def _table(config: RepoConfig, table: FeatureView) -> str:
    return compute_table_id(config.project, table, config.registry.enable_online_feature_view_versioning)


def _vector(column: Field) -> sql.Composed:
    """The column as vectors of its length: Feast's table has them of any, which cannot be indexed."""
    return sql.SQL("(vector_value::vector({}))").format(sql.Literal(column.vector_length))


def _index(table: str, column: Field) -> sql.Composed:
    if column.vector_length > MAX_INDEXED_DIMS:
        raise DeclarationError(
            f"Column {column.name!r} has {column.vector_length} dims: pgvector indexes at most {MAX_INDEXED_DIMS}. "
            "Declare fewer dims, or remove vector_index from online_store in feature_store.yaml."
        )
    return sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING hnsw ({} {}) WHERE feature_name = {}").format(
        sql.Identifier(f"{table}_hnsw"),
        sql.Identifier(table),
        _vector(column),
        sql.SQL(_OPERATOR_CLASSES[metric_of(column)]),
        sql.Literal(column.name),
    )
