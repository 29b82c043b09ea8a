"""Feast's SQLite online store, with exact vector search.

In ``feature_store.yaml``::

    online_store:
      type: llmrec_plugin.feast.sqlite.LLMRecSqliteOnlineStore
      path: data/online.db

The file and its tables are those of ``type: sqlite``. Feast's own search needs an extension that it loads on
Python 3.10 alone, and writes every vector anew for each query.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from feast import FeatureView, Field, RepoConfig
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey

from llmrec_plugin.feast.vectors import ExactSearch, decode
from llmrec_plugin.pipeline.nearest import Block


class LLMRecSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    """The settings of ``type: sqlite`` and one more."""

    type: Literal["llmrec_plugin.feast.sqlite.LLMRecSqliteOnlineStore"] = (  # type: ignore[assignment]
        "llmrec_plugin.feast.sqlite.LLMRecSqliteOnlineStore"
    )
    max_cached_vector_bytes: int = 2**31
    """Vectors kept in memory, of all views together; a view that does not fit is read from the file for every query."""


class _Cached(NamedTuple):
    connection: sqlite3.Connection
    version: tuple[int, int, int]
    blocks: list[Block]
    size: int


class LLMRecSqliteOnlineStore(ExactSearch, SqliteOnlineStore):
    """SQLite with exact vector search; a view's vectors stay in memory until the database changes."""

    def __init__(self) -> None:
        super().__init__()
        self._cached: dict[tuple[str, str], _Cached] = {}  # the least recently used first
        self._lock = threading.Lock()

    def vector_blocks(self, config: RepoConfig, table: FeatureView, column: Field) -> Iterable[Block]:
        connection = self._get_conn(config)
        name = compute_table_id(config.project, table, config.registry.enable_online_feature_view_versioning)
        with self._lock:
            version = _version(connection)
            cached = self._cached.pop((name, column.name), None)
            if cached is None or cached.connection is not connection or cached.version != version:
                size = _bytes_needed(connection, name, column)
                # What is not committed yet may be taken back, so it is not kept.
                if size > config.online_store.max_cached_vector_bytes or connection.in_transaction:
                    return _read(connection, name, column)
                while self._cached and size + self._bytes_cached() > config.online_store.max_cached_vector_bytes:
                    self._cached.pop(next(iter(self._cached)))
                cached = _Cached(connection, version, list(_read(connection, name, column)), size)
            self._cached[name, column.name] = cached
            return cached.blocks

    def delete_rows(self, config: RepoConfig, table: FeatureView, keys: Sequence[EntityKey]) -> None:
        """Deletes the rows of entities, and overwrites them in the file."""
        connection = self._get_conn(config)
        name = compute_table_id(config.project, table, config.registry.enable_online_feature_view_versioning)
        serialized = [(serialize_entity_key(key, config.entity_key_serialization_version),) for key in keys]
        connection.execute("PRAGMA secure_delete = ON")
        with connection:
            connection.executemany(f"DELETE FROM {_quoted(name)} WHERE entity_key = ?", serialized)  # noqa: S608
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _bytes_cached(self) -> int:
        return sum(cached.size for cached in self._cached.values())


def _version(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """Changes with every write: of other connections, of this one, and of tables made or dropped."""
    [of_others] = connection.execute("PRAGMA data_version").fetchone()
    [of_tables] = connection.execute("PRAGMA schema_version").fetchone()
    return of_others, of_tables, connection.total_changes


def _bytes_needed(connection: sqlite3.Connection, name: str, column: Field) -> int:
    """What the vectors of a table and their keys take in memory, roughly."""
    statement = f"SELECT count(*), sum(length(entity_key)) FROM {_quoted(name)} WHERE feature_name = ?"  # noqa: S608
    rows, key_bytes = connection.execute(statement, (column.name,)).fetchone()
    return rows * (4 * column.vector_length + sys.getsizeof(b"")) + (key_bytes or 0)


def _read(connection: sqlite3.Connection, name: str, column: Field) -> Iterator[Block]:
    statement = f"SELECT entity_key, value FROM {_quoted(name)} WHERE feature_name = ? ORDER BY entity_key"  # noqa: S608
    return decode(connection.execute(statement, (column.name,)), column)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
