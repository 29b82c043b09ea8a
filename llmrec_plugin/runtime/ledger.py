"""The ledger: which row of each entity was written to an online store, by which fingerprint.

Feast remembers time windows only, so a row that arrives late or whose text was corrected in place is never
seen again. The ledger remembers entities: the timestamps and a hash of the columns of the row that was
written. With it a run finds such rows, keeps an older row from replacing a newer one, and `llmrec plan`
counts exactly. It is written after the online store, so what it holds was written; when it is lost, every
row counts as new and is written again, from the value cache.

One SQLite file in WAL mode beside the value cache. A **target** is one table of one online store under one
fingerprint.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from llmrec_plugin.errors import LedgerError
from llmrec_plugin.runtime.database import KEYS_PER_QUERY, Database

Key: TypeAlias = int | str | bytes
"""An entity's key, as the store knows it."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS targets (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, view TEXT NOT NULL, fingerprint TEXT NOT NULL,
    touched INTEGER NOT NULL, run INTEGER NOT NULL DEFAULT 0, intervals INTEGER);
CREATE TABLE IF NOT EXISTS rows (
    target INTEGER NOT NULL, key NOT NULL, at INTEGER NOT NULL, created INTEGER NOT NULL, digest INTEGER NOT NULL,
    invalid TEXT, pushed INTEGER NOT NULL, run INTEGER NOT NULL, PRIMARY KEY (target, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS invalid_rows ON rows (target) WHERE invalid IS NOT NULL;
"""


class Entry(NamedTuple):
    """The row of one entity that was written.

    Attributes:
        key: The entity's key.
        at: Event timestamp, microseconds since 1970 UTC.
        created: Created timestamp, likewise; 0 where the source has none.
        digest: Signed 64-bit hash of the columns that the feature reads.
        invalid: Why the row could not be read (its value is null), or None.
        pushed: Whether it came by a push rather than from the batch source.
    """

    key: Key
    at: int
    created: int
    digest: int
    invalid: str | None = None
    pushed: bool = False


class Ledger:
    """The ledger of a cache folder.

    Args:
        folder: Folder of the file, created for this user only.

    Raises:
        LedgerError: From every method of it and of its targets, when the file cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self._database = Database(folder / "ledger.sqlite", _SCHEMA)

    @property
    def path(self) -> Path:
        return self._database.path

    def target(self, name: str, view: str, fingerprint: str) -> Target:
        """The target of this name, begun if it is new.

        Args:
            name: Unique for the table of the store and the fingerprint.
            view: Name of the Feast view, for people.
            fingerprint: Fingerprint of the feature, for people.
        """
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO targets (name, view, fingerprint, touched) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET touched = excluded.touched",
                (name, view, fingerprint, int(time.time())),
            )
            (number,) = connection.execute("SELECT id FROM targets WHERE name = ?", (name,)).fetchone()
        return Target(self, number)

    def close(self) -> None:
        """Closes the file; the next use opens it again."""
        self._database.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._guard(), self._database.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._guard(), self._database.transaction() as connection:
            yield connection

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as exc:
            remedy = (
                "it is damaged. Delete it; every row is written once more, from the value cache."
                if type(exc) is sqlite3.DatabaseError  # its subclasses have other causes
                else "expected a folder that this user may write, on a disk with room. Set LLMREC_CACHE to one."
            )
            raise LedgerError(f"The ledger of written rows, {self.path}, cannot be used ({exc}): {remedy}") from exc


class Target:
    """What was written to one table under one fingerprint."""

    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger = ledger
        self._number = number
        self.lock_path = ledger.path.with_suffix(f".{number}.lock")

    def begin_run(self, intervals: int) -> bool:
        """Begins a run, or goes on with the last one; returns whether it goes on.

        Args:
            intervals: How many runs Feast has recorded for the view. As long as that is what it was, the last run
                did not succeed.
        """
        with self._ledger._writing() as connection:
            cursor = connection.execute(
                "UPDATE targets SET run = run + 1, intervals = ? WHERE id = ? AND intervals IS NOT ?",
                (intervals, self._number, intervals),
            )
            return cursor.rowcount == 0

    def is_interrupted(self, intervals: int) -> bool:
        """Whether `begin_run` would go on with the last run."""
        query = "SELECT count(*) FROM targets WHERE id = ? AND intervals IS ?"
        with self._ledger._reading() as connection:
            return bool(connection.execute(query, (self._number, intervals)).fetchone()[0])

    def written_by_this_run(self, keys: Sequence[Key]) -> set[Key]:
        """Those `keys` whose row was read and written since the run began, by this process or one that was killed."""
        where = "invalid IS NULL AND run = (SELECT run FROM targets WHERE id = target)"
        return {key for (key,) in self._select("key", keys, where)}

    def lookup(self, keys: Sequence[Key]) -> dict[Key, Entry]:
        """The entries of those `keys` that have one."""
        return {entry.key: entry for entry in map(_entry, self._select(_ENTRY, keys, "TRUE"))}

    def _select(self, columns: str, keys: Sequence[Key], where: str) -> Iterator[tuple[Any, ...]]:
        with self._ledger._reading() as connection:
            for start in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[start : start + KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                query = f"SELECT {columns} FROM rows WHERE target = ? AND key IN ({marks}) AND {where}"  # noqa: S608
                yield from connection.execute(query, (self._number, *some))

    def write(self, entries: Iterable[Entry]) -> None:
        """Records what was written, all or none; an entity's older entry is replaced."""
        entries = list(entries)
        with self._ledger._writing() as connection:
            # Asked in the same transaction, so that no other process begins a run in between.
            (run,) = connection.execute("SELECT run FROM targets WHERE id = ?", (self._number,)).fetchone()
            connection.executemany(
                f"INSERT OR REPLACE INTO rows (target, run, {_ENTRY}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                [(self._number, run, *entry) for entry in entries],
            )

    def count(self) -> int:
        """Number of entities."""
        return self._scalar("SELECT count(*) FROM rows WHERE target = ?")

    def count_invalid(self) -> int:
        """Number of entities whose row could not be read."""
        return self._scalar("SELECT count(*) FROM rows WHERE target = ? AND invalid IS NOT NULL")

    def invalid(self, limit: int) -> list[Entry]:
        """Entries whose rows could not be read, at most `limit` of them."""
        query = f"SELECT {_ENTRY} FROM rows WHERE target = ? AND invalid IS NOT NULL ORDER BY key LIMIT ?"  # noqa: S608
        with self._ledger._reading() as connection:
            return list(map(_entry, connection.execute(query, (self._number, limit))))

    def sample(self, size: int) -> list[Key]:
        """The first and the last keys, up to `size` of each."""
        keys: dict[Key, None] = {}
        with self._ledger._reading() as connection:
            for order in ("key", "key DESC"):
                query = f"SELECT key FROM rows WHERE target = ? ORDER BY {order} LIMIT ?"  # noqa: S608 - one of two
                keys |= dict.fromkeys(key for (key,) in connection.execute(query, (self._number, size)))
        return list(keys)

    def remove(self, keys: Sequence[Key]) -> None:
        """Removes the entries of some entities, and overwrites them in the file."""
        with self._ledger._guard(), self._ledger._database.erasing() as connection:
            statement = "DELETE FROM rows WHERE target = ? AND key = ?"
            connection.executemany(statement, [(self._number, key) for key in keys])

    def forget(self) -> None:
        """Removes every entry: the store was emptied."""
        with self._ledger._writing() as connection:
            connection.execute("DELETE FROM rows WHERE target = ?", (self._number,))

    def _scalar(self, query: str) -> int:
        with self._ledger._reading() as connection:
            return connection.execute(query, (self._number,)).fetchone()[0]


_ENTRY = ", ".join(Entry._fields)


def _entry(row: tuple[Any, ...]) -> Entry:
    key, at, created, digest, invalid, pushed = row
    return Entry(key, at, created, digest, invalid, bool(pushed))  # SQLite has no booleans
