"""The value cache: (encoding fingerprint, hash of the assembled text) -> vector, on disk.

One SQLite file in WAL mode, shared by batch, on-demand and historical runs of many processes and
threads. A value carries a checksum over itself and its key, or is encrypted (`llmrec_plugin.runtime.sealing`); one that
fails it is a miss, so a damaged file gives no text the value of another. The cache is an optimization and never
the only copy: when it cannot be written (read-only folder, full disk) a warning is logged and the work
goes on; a file that is no database any more is moved aside and begun anew.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from llmrec_plugin.errors import ErasureError
from llmrec_plugin.runtime.database import BUSY_SECONDS, KEYS_PER_QUERY, Database
from llmrec_plugin.runtime.sealing import Seal, load_seal

logger = logging.getLogger(__name__)

_TOUCH_AFTER_SECONDS = 3600  # recency is kept to the hour, so that a hit rarely writes
_RUNS_KEPT = 1000

_Use: TypeAlias = Literal["read", "write"]

# Entries of older files have checksums of another kind: they are dropped and computed again.
_SCHEMA = """
DROP TABLE IF EXISTS total;
DROP TABLE IF EXISTS entries;
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, fingerprint TEXT NOT NULL, value BLOB NOT NULL, used INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL, entries INTEGER NOT NULL);
INSERT INTO total SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS entry_removed AFTER DELETE ON entries BEGIN
    UPDATE total SET bytes = bytes - length(OLD.value), entries = entries - 1; END;
CREATE TABLE IF NOT EXISTS runs (
    started REAL, feature TEXT, fingerprint TEXT, mode TEXT, rows INTEGER, empty INTEGER, invalid INTEGER,
    texts INTEGER, cached INTEGER, computed INTEGER, tokens INTEGER, seconds REAL,
    fallback INTEGER NOT NULL DEFAULT 0);
"""
_SCHEMA_VERSION = 3
_LATER_COLUMNS = {"runs": {"fallback": "INTEGER NOT NULL DEFAULT 0"}}


_COUNTS = ("rows", "empty", "invalid", "texts", "cached", "computed", "tokens", "fallback")


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What one run over rows did.

    Attributes:
        started: Unix time in seconds.
        feature: Name of the feature.
        fingerprint: Its fingerprint.
        mode: ``batch``, ``on_demand``, ``historical`` or ``push``.
        rows: Rows given.
        empty: Rows without text.
        invalid: Rows that could not be read (they give null).
        texts: Distinct texts, or inputs of a prompt, among the rows.
        cached: Texts whose values were in the cache.
        computed: Texts that the model encoded or answered: the number of inferences. On demand, a text that two
            requests wait for is one inference and counted by both.
        tokens: Tokens the model read; 0 on demand, where requests share batches.
        seconds: Wall-clock time.
        fallback: Rows that missed their deadline, or whose declared fallback stands for what a model gave.
    """

    started: float
    feature: str
    fingerprint: str
    mode: str
    rows: int
    empty: int
    invalid: int
    texts: int
    cached: int
    computed: int
    tokens: int
    seconds: float
    fallback: int = 0

    @classmethod
    def begin(cls, feature: str, fingerprint: str, mode: str) -> RunReport:
        """The report of a run that begins now."""
        counts = dict.fromkeys(_COUNTS, 0)
        return cls(started=time.time(), feature=feature, fingerprint=fingerprint, mode=mode, seconds=0.0, **counts)

    def plus(self, part: RunReport) -> RunReport:
        """This report with the counts of a part of its run added."""
        return replace(self, **{name: getattr(self, name) + getattr(part, name) for name in (*_COUNTS, "seconds")})

    def __str__(self) -> str:
        counts = {"empty": self.empty, "invalid": self.invalid, "fallback": self.fallback}
        notes = "".join(f", {count} {word}" for word, count in counts.items() if count)
        return (
            f"{self.feature}: {self.rows} rows{notes}, {self.texts} distinct texts: "
            f"{self.cached} cached, {self.computed} computed in {self.seconds:.1f} s"
        )


class ValueCache:
    """A bounded, shared cache of float32 vectors.

    Args:
        folder: Folder of the cache file, created for this user only.
        max_bytes: Bound on the stored values; beyond it the least recently used are dropped.
        seal: How entries are stored; default: as `load_seal` says.

    Raises:
        SettingsError: There is a key to encrypt with, and it is none.
        MissingExtraError: There is one, and the package cryptography is not installed.
    """

    def __init__(self, folder: Path, max_bytes: int, *, seal: Seal | None = None) -> None:
        self.seal = seal or load_seal()
        self.path = folder / self.seal.file
        self._max_bytes = max_bytes
        # A connection for each, so that a request that reads does not wait for a thread that writes.
        # A reader never waits for a writer.
        self._databases: dict[_Use, Database] = {
            use: Database(self.path, _SCHEMA, version=_SCHEMA_VERSION, later_columns=_LATER_COLUMNS)
            for use in get_args(_Use)
        }
        self._complained = False

    def get_many(self, fingerprint: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The cached vectors of those `texts` that have one, each (dims,) float32 and read-only."""
        found = self.get_bytes(fingerprint, texts)
        return {text: np.frombuffer(data, dtype="<f4") for text, data in found.items()}

    def get_bytes(self, fingerprint: str, texts: Sequence[str]) -> dict[str, bytes]:
        """The cached values of those `texts` that have one, as they were put."""
        by_key = {self.seal.name(fingerprint, text): text for text in texts}
        found: dict[str, bytes] = {}
        stale: list[bytes] = []
        damaged = 0
        now = int(time.time())
        with self._guard("read"), self._connect("read") as connection:
            keys = list(by_key)
            for start in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[start : start + KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, value, used FROM entries WHERE key IN ({marks})"  # noqa: S608 - only "?" marks
                for key, value, used in connection.execute(query, some):
                    data = self.seal.open(key, value)
                    if data is None:
                        damaged += 1
                        continue
                    found[by_key[key]] = data
                    if used < now - _TOUCH_AFTER_SECONDS:
                        stale.append(key)
        if damaged:
            logger.warning("%s: %d of %d values are damaged and computed again.", self.path, damaged, len(by_key))
        if stale:
            self._touch(stale, now)
        return found

    def known(self, fingerprint: str, texts: Sequence[str]) -> set[str]:
        """Those `texts` that have a cached vector; no vector is read, and none counts as used."""
        by_key = {self.seal.name(fingerprint, text): text for text in texts}
        found: set[str] = set()
        with self._guard("read"), self._connect("read") as connection:
            keys = list(by_key)
            for start in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[start : start + KEYS_PER_QUERY]
                query = f"SELECT key FROM entries WHERE key IN ({','.join('?' * len(some))})"  # noqa: S608 - only "?"
                found |= {by_key[key] for (key,) in connection.execute(query, some)}
        return found

    def put_many(self, fingerprint: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Stores the vectors of texts, all or none; they are on disk when this returns."""
        data = {text: np.ascontiguousarray(vector, dtype="<f4").tobytes() for text, vector in vectors.items()}
        self.put_bytes(fingerprint, data)

    def put_bytes(self, fingerprint: str, values: Mapping[str, bytes]) -> None:
        """Stores the values of texts, all or none; they are on disk when this returns."""
        now = int(time.time())
        keyed = {self.seal.name(fingerprint, text): data for text, data in values.items()}
        rows = [(key, fingerprint, self.seal.seal(key, data), now) for key, data in keyed.items()]
        rows.sort()  # keys that lie side by side are written side by side
        with self._guard("write"), self._connect("write") as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            replaced, replaced_bytes = self._stored(connection, [key for key, *_ in rows])
            connection.executemany(
                "INSERT INTO entries VALUES (?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value, used = excluded.used",
                rows,
            )
            # Counted here and not by a trigger, which would run for each row; few rows are ever deleted.
            added = len(rows) - replaced, sum(len(value) for _, _, value, _ in rows) - replaced_bytes
            connection.execute("UPDATE total SET entries = entries + ?, bytes = bytes + ?", added)
            self._evict(connection)

    def erase(self, fingerprint: str, texts: Iterable[str] | None = None) -> int:
        """Deletes the values of `texts`, or all of the fingerprint, and overwrites them in the file; returns how many.

        Raises:
            ErasureError: The file cannot be written; unlike elsewhere that must not go unseen.
        """
        try:
            with self._databases["write"].erasing() as connection:
                if texts is None:
                    return connection.execute("DELETE FROM entries WHERE fingerprint = ?", (fingerprint,)).rowcount
                keys = [(self.seal.name(fingerprint, text),) for text in texts]
                return connection.executemany("DELETE FROM entries WHERE key = ?", keys).rowcount
        except (sqlite3.Error, OSError) as exc:
            raise ErasureError(
                f"The value cache {self.path} cannot be erased from ({exc}): expected a file that this user may "
                "write. Stop the processes that use it, or delete it as a whole; its values are computed again."
            ) from exc

    def record(self, report: RunReport) -> None:
        """Keeps the report among the last 1,000."""
        with self._guard("write"), self._connect("write") as connection, connection:
            names = asdict(report)
            statement = f"INSERT INTO runs ({', '.join(names)}) VALUES (:{', :'.join(names)})"  # noqa: S608 - field names
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(statement, names)
            connection.execute("DELETE FROM runs WHERE rowid <= (SELECT max(rowid) FROM runs) - ?", (_RUNS_KEPT,))

    def runs(self) -> list[RunReport]:
        """The recorded reports, oldest first."""
        with self._guard("read"), self._connect("read") as connection:
            cursor = connection.execute("SELECT * FROM runs ORDER BY rowid")
            names = [column[0] for column in cursor.description]
            return [RunReport(**dict(zip(names, row, strict=True))) for row in cursor]
        return []

    def size(self) -> tuple[int, int]:
        """Number of entries, and bytes of their values."""
        with self._guard("read"), self._connect("read") as connection:
            entries, size = connection.execute("SELECT entries, bytes FROM total").fetchone()
            return entries, size
        return 0, 0

    def connect(self) -> AbstractContextManager[sqlite3.Connection]:
        """The connection that writes, for `llmrec_plugin.runtime.upkeep`, whose failures must not go unseen.

        Raises:
            sqlite3.Error, OSError: The file cannot be used.
        """
        return self._connect("write")

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        for database in self._databases.values():
            database.close()

    def _stored(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> tuple[int, int]:
        """How many of the keys have a value, and the bytes of these."""
        entries = size = 0
        for start in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[start : start + KEYS_PER_QUERY]
            marks = ",".join("?" * len(some))
            query = f"SELECT count(*), total(length(value)) FROM entries WHERE key IN ({marks})"  # noqa: S608 - only "?"
            found, found_bytes = connection.execute(query, some).fetchone()
            entries, size = entries + found, size + int(found_bytes)
        return entries, size

    def _evict(self, connection: sqlite3.Connection) -> None:
        (size,) = connection.execute("SELECT bytes FROM total").fetchone()
        oldest = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries ORDER BY used LIMIT 256)"
        while size > self._max_bytes and connection.execute(oldest).rowcount:
            (size,) = connection.execute("SELECT bytes FROM total").fetchone()

    def _touch(self, keys: Sequence[bytes], now: int) -> None:
        """Marks values as used, unless someone writes: a reader does not wait, and the next one will do it."""
        if not self._databases["write"].lock.locked():
            with self._guard("write"), self._connect("write") as connection, _without_waiting(connection), connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("UPDATE entries SET used = ? WHERE key = ?", [(now, key) for key in keys])

    def _connect(self, use: _Use) -> AbstractContextManager[sqlite3.Connection]:
        return self._databases[use].connect()

    @contextmanager
    def _guard(self, action: str) -> Iterator[None]:
        """Turns a failing cache into a missing one, with one warning per process."""
        try:
            yield
        except (sqlite3.Error, OSError) as exc:
            level = logging.DEBUG if self._complained else logging.WARNING
            logger.log(level, "Cannot %s the cache %s (%s); values are computed without it.", action, self.path, exc)
            self._complained = True


@contextmanager
def _without_waiting(connection: sqlite3.Connection) -> Iterator[None]:
    """What happens inside is skipped when another process writes."""
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        yield
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
