"""A SQLite file shared by many processes and threads, in WAL mode; damaged ones are moved aside and begun anew."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

logger = logging.getLogger(__name__)

KEYS_PER_QUERY = 500  # SQLite's default bound on variables is larger; long statements gain nothing
BUSY_SECONDS = 60.0
_FORK_SECONDS = 5.0
"""How long a fork waits for a thread that uses a database."""


def make_private_folder(folder: Path) -> None:
    """Makes a folder for this user only, if it is not there; those above it are made as the system does."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """One connection per process to one file, made for this user only.

    A fork closes it first, for parent and child to open their own: locks are not inherited, but SQLite in the child
    would believe that they were, and the log would be deleted from under it.

    Args:
        path: The file.
        schema: Statements that create what is missing.
        version: Raised when `schema` or `later_columns` change.
        later_columns: Table -> column -> type, of columns that files of older versions lack.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        version: int = 1,
        later_columns: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._schema = schema
        self._version = version
        self._later_columns = later_columns
        self._connections: dict[int, sqlite3.Connection] = {}  # by process: they must not be used across a fork
        _databases.add(self)

    @contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """The connection, for this thread alone; opened at first use.

        Raises:
            sqlite3.Error, OSError: The file cannot be used.
        """
        with self.lock:
            if os.getpid() not in self._connections:
                self._connections[os.getpid()] = self._open()
            yield self._connections[os.getpid()]

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection inside a writing transaction, committed at the end or rolled back by an error."""
        with self.connect() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def erasing(self) -> Iterator[sqlite3.Connection]:
        """A transaction whose deletions leave no copy: their bytes are overwritten, and the log is emptied.

        Raises:
            sqlite3.Error, OSError: The file cannot be used.
        """
        with self.connect() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            try:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    yield connection
                (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.execute("PRAGMA secure_delete = OFF")
            if busy:
                raise sqlite3.OperationalError("another process reads it all the time, so its log cannot be emptied")

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        with self.lock:
            self._close()

    def _close(self) -> None:
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None:
            connection.close()

    def _open(self) -> sqlite3.Connection:
        make_private_folder(self.path.parent)
        # One process at a time: SQLite does not wait when two switch a new file to WAL at once, and the
        # second to find a damaged file would move away the sound one that the first has begun.
        with FileLock(self.path.with_suffix(".lock"), timeout=BUSY_SECONDS):
            try:
                return self._prepare()
            except sqlite3.DatabaseError as exc:
                if isinstance(exc, sqlite3.OperationalError):
                    raise  # locked, read-only or full: the file itself may be sound
                aside = self.path.with_suffix(f".damaged-{int(time.time())}")
                logger.warning(
                    "%s is no readable database (%s); it is moved to %s and begun anew.", self.path, exc, aside
                )
                os.replace(self.path, aside)
                return self._prepare()

    def _prepare(self) -> sqlite3.Connection:
        # The write-ahead log and its index get the rights that the file has when it is first written. A file that is
        # there is not opened here: to close it again would give away the locks of this process's other connections
        # to it (a trap of POSIX locks), and a process that finds no lock deletes the log that they go on writing to.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        if self.path.stat().st_mode & 0o077:
            self.path.chmod(0o600)
        # isolation_level=None: transactions are begun by hand; `with connection` commits or rolls back.
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA page_size = 16384")  # several vectors per page; only heeded by a new file
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        if connection.execute("PRAGMA user_version").fetchone() != (self._version,):  # else there is nothing to write
            connection.executescript(f"BEGIN IMMEDIATE; {self._schema} COMMIT;")
            for table, columns in self._later_columns.items():
                present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                for name in columns.keys() - present:
                    connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {columns[name]}")
            connection.execute(f"PRAGMA user_version = {self._version}")
        return connection


_held = threading.local()
"""The databases that wait, closed, for this thread to fork: its ``databases``."""


def _close_before_fork() -> None:
    _held.databases = []
    for database in list(_databases):
        # One that is in use all the time goes on as it is: the child opens another, which may lose what it keeps.
        if database.lock.acquire(timeout=_FORK_SECONDS):
            _held.databases.append(database)
            database._close()


def _go_on_after_fork() -> None:
    for database in _held.databases:
        database.lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_close_before_fork, after_in_parent=_go_on_after_fork, after_in_child=_go_on_after_fork)
