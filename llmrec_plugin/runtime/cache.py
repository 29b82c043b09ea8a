"""The value cache: (encoding fingerprint, hash of the assembled text) -> vector, on disk.

One SQLite file in WAL mode, shared by batch, on-demand and historical runs of many processes and
threads. A value carries a checksum; one that fails it is a miss. The cache is an optimization and never
the only copy: when it cannot be written (read-only folder, full disk) a warning is logged and the work
goes on; a file that is no database any more is moved aside and begun anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from filelock import FileLock

logger = logging.getLogger(__name__)

_KEYS_PER_QUERY = 500  # SQLite's default bound on variables is larger; long statements gain nothing
_BUSY_SECONDS = 60.0
_TOUCH_AFTER_SECONDS = 3600  # recency is kept to the hour, so that a hit rarely writes
_RUNS_KEPT = 1000

_Use: TypeAlias = Literal["read", "write"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, fingerprint TEXT NOT NULL, value BLOB NOT NULL, used INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL, entries INTEGER NOT NULL);
INSERT INTO total SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS entry_added AFTER INSERT ON entries BEGIN
    UPDATE total SET bytes = bytes + length(NEW.value), entries = entries + 1; END;
CREATE TRIGGER IF NOT EXISTS entry_removed AFTER DELETE ON entries BEGIN
    UPDATE total SET bytes = bytes - length(OLD.value), entries = entries - 1; END;
CREATE TABLE IF NOT EXISTS runs (
    started REAL, feature TEXT, fingerprint TEXT, mode TEXT, rows INTEGER, empty INTEGER, invalid INTEGER,
    texts INTEGER, cached INTEGER, computed INTEGER, tokens INTEGER, seconds REAL,
    fallback INTEGER NOT NULL DEFAULT 0);
"""
_SCHEMA_VERSION = 1
_LATER_COLUMNS = {"fallback": "INTEGER NOT NULL DEFAULT 0"}  # of `runs`; files of older versions lack them


_COUNTS = ("rows", "empty", "invalid", "texts", "cached", "computed", "tokens")


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
        texts: Distinct texts among the rows.
        cached: Texts whose vectors were in the cache.
        computed: Texts that the model encoded: the number of inferences. On demand, a text that two requests
            wait for is one inference and counted by both.
        tokens: Tokens the model read; 0 on demand, where requests share batches.
        seconds: Wall-clock time.
        fallback: Rows that missed their deadline.
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


class VectorCache:
    """A bounded, shared cache of float32 vectors.

    Args:
        folder: Folder of the cache file, created for this user only.
        max_bytes: Bound on the stored values; beyond it the least recently used are dropped.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.path = folder / "values.sqlite"
        self._max_bytes = max_bytes
        # A connection for each, so that a request that reads does not wait for a thread that writes.
        self._locks: dict[_Use, threading.Lock] = {"read": threading.Lock(), "write": threading.Lock()}
        self._connections: dict[tuple[int, _Use], sqlite3.Connection] = {}  # by process: they must not cross a fork
        self._complained = False

    def get_many(self, fingerprint: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The cached vectors of those `texts` that have one, each (dims,) float32 and read-only."""
        by_key = {_key(fingerprint, text): text for text in texts}
        found: dict[str, np.ndarray] = {}
        stale: list[bytes] = []
        now = int(time.time())
        with self._guard("read"), self._connect("read") as connection:
            keys = list(by_key)
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, value, used FROM entries WHERE key IN ({marks})"  # noqa: S608 - only "?" marks
                for key, value, used in connection.execute(query, some):
                    vector = _decode(value)
                    if vector is None:
                        logger.warning("%s: one damaged value is computed again.", self.path)
                        continue
                    found[by_key[key]] = vector
                    if used < now - _TOUCH_AFTER_SECONDS:
                        stale.append(key)
        if stale:
            self._touch(stale, now)
        return found

    def known(self, fingerprint: str, texts: Sequence[str]) -> set[str]:
        """Those `texts` that have a cached vector; no vector is read, and none counts as used."""
        by_key = {_key(fingerprint, text): text for text in texts}
        found: set[str] = set()
        with self._guard("read"), self._connect("read") as connection:
            keys = list(by_key)
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                query = f"SELECT key FROM entries WHERE key IN ({','.join('?' * len(some))})"  # noqa: S608 - only "?"
                found |= {by_key[key] for (key,) in connection.execute(query, some)}
        return found

    def put_many(self, fingerprint: str, vectors: Mapping[str, np.ndarray]) -> None:
        """Stores the vectors of texts, all or none; they are on disk when this returns."""
        now = int(time.time())
        rows = [(_key(fingerprint, text), fingerprint, _encode(vector), now) for text, vector in vectors.items()]
        with self._guard("write"), self._connect("write") as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            # Not REPLACE: it would skip the trigger that counts what is removed.
            connection.executemany("DELETE FROM entries WHERE key = ?", [(row[0],) for row in rows])
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", rows)
            self._evict(connection)

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

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        for use, lock in self._locks.items():
            with lock:
                connection = self._connections.pop((os.getpid(), use), None)
                if connection is not None:
                    connection.close()

    def _evict(self, connection: sqlite3.Connection) -> None:
        (size,) = connection.execute("SELECT bytes FROM total").fetchone()
        oldest = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries ORDER BY used LIMIT 256)"
        while size > self._max_bytes and connection.execute(oldest).rowcount:
            (size,) = connection.execute("SELECT bytes FROM total").fetchone()

    def _touch(self, keys: Sequence[bytes], now: int) -> None:
        """Marks values as used, unless someone writes: a reader does not wait, and the next one will do it."""
        if not self._locks["write"].locked():
            with self._guard("write"), self._connect("write") as connection, _without_waiting(connection), connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("UPDATE entries SET used = ? WHERE key = ?", [(now, key) for key in keys])

    @contextmanager
    def _connect(self, use: _Use) -> Iterator[sqlite3.Connection]:
        with self._locks[use]:
            key = (os.getpid(), use)
            if key not in self._connections:
                self._connections[key] = self._open()
            yield self._connections[key]

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One process at a time: SQLite does not wait when two switch a new file to WAL at once, and the
        # second to find a damaged file would move away the sound one that the first has begun.
        with FileLock(self.path.with_suffix(".lock"), timeout=_BUSY_SECONDS):
            try:
                return self._prepare()
            except sqlite3.DatabaseError as exc:
                if isinstance(exc, sqlite3.OperationalError):
                    raise  # locked, read-only or full: the file itself may be sound
                aside = self.path.with_suffix(f".damaged-{int(time.time())}")
                logger.warning(
                    "%s is not a readable cache (%s); it is moved to %s and begun anew.", self.path, exc, aside
                )
                os.replace(self.path, aside)
                return self._prepare()

    def _prepare(self) -> sqlite3.Connection:
        # isolation_level=None: transactions are begun by hand; `with connection` commits or rolls back.
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA page_size = 16384")  # several vectors per page; only heeded by a new file
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if connection.execute("PRAGMA user_version").fetchone() != (_SCHEMA_VERSION,):  # else there is nothing to write
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            present = {row[1] for row in connection.execute("PRAGMA table_info(runs)")}
            for name in _LATER_COLUMNS.keys() - present:
                connection.execute(f"ALTER TABLE runs ADD COLUMN {name} {_LATER_COLUMNS[name]}")
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        self.path.chmod(0o600)
        return connection

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
        connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_SECONDS * 1000)}")


def _key(fingerprint: str, text: str) -> bytes:
    return hashlib.sha256(f"{fingerprint}\n{text}".encode("utf-8", "surrogatepass")).digest()


def _encode(vector: np.ndarray) -> bytes:
    data = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    return zlib.crc32(data).to_bytes(4, "little") + data


def _decode(value: bytes) -> np.ndarray | None:
    checksum, data = value[:4], value[4:]
    if zlib.crc32(data).to_bytes(4, "little") != checksum:
        return None
    return np.frombuffer(data, dtype="<f4")
