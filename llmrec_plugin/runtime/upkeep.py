"""The upkeep of the value cache: what nobody needs any more goes, and every value is read and checked.

`prune` and `verify` work in small transactions, so batch runs and servers go on meanwhile. What they remove is computed
again if it is asked for.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import Bound, BoundColumn, BoundTokens, cached_parts
from llmrec_plugin.errors import ArtifactError, CacheError
from llmrec_plugin.runtime.cache import ValueCache
from llmrec_plugin.runtime.sealing import Seal
from llmrec_plugin.runtime.writer import Outcome

_KEY_BYTES = 32
_PER_TRANSACTION = 2000
FLOAT_BYTES = 4

Fits = Callable[[bytes], bool]
"""Whether a value is one of its feature."""


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What is removed of one encoding.

    Attributes:
        fingerprint: The encoding fingerprint.
        entries: Number of values.
        bytes: Bytes of these.
        used: When the newest of them was last used, Unix time in seconds.
    """

    fingerprint: str
    entries: int
    bytes: int
    used: int


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One value that cannot be used.

    Attributes:
        key: The entry's key, hex digits.
        fingerprint: Its encoding fingerprint.
        reason: What is wrong with it.
    """

    key: str
    fingerprint: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found.

    Attributes:
        entries: Number of values that were read.
        of_known_features: Those whose form could be compared with their feature's; of all others only the checksum.
        damaged: Those that cannot be used.
        structure: What SQLite says is wrong with the file itself; empty if it is sound.
        removed: Number of damaged values that were removed.
    """

    entries: int
    of_known_features: int
    damaged: tuple[Damage, ...]
    structure: tuple[str, ...]
    removed: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing damaged is left."""
        return not self.structure and len(self.damaged) == self.removed


def encodings_of(features: Iterable[Bound], store: ArtifactStore) -> dict[str, Fits | None]:
    """The encoding fingerprints that the features use, and what their values look like, where that is known."""
    parts = {part.encoding_fingerprint: part for bound in features for part in cached_parts(bound)}
    return {fingerprint: _form(part, store) for fingerprint, part in parts.items()}


def _form(bound: BoundColumn, store: ArtifactStore) -> Fits | None:
    if isinstance(bound, BoundTokens):
        return _is_outcome
    try:
        manifest = store.find(bound.feature.model, bound.artifact_id).manifest
    except ArtifactError:  # it is computed on another machine
        return None
    size = FLOAT_BYTES * (getattr(manifest, "dims", None) or 1)  # a network without dims gives one number
    return lambda data: len(data) == size


def _is_outcome(data: bytes) -> bool:
    try:
        Outcome.from_bytes(data)
    except (ValueError, TypeError, KeyError):
        return False
    return data[:1] in (b"+", b"-")


def prune(
    cache: ValueCache,
    *,
    unused_seconds: float | None = None,
    keep: Collection[str] | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
) -> list[Pruned]:
    """Removes values by any of three reasons, the least recently used first, and shrinks the file.

    Args:
        cache: The value cache.
        unused_seconds: Remove what was not used for so long. Recency is kept to the hour.
        keep: Encoding fingerprints; remove the values of all others.
        max_bytes: Remove until the values have no more bytes than this.
        dry_run: Only tell what would be removed.

    Returns:
        What was removed, or would be, by fingerprint, the most bytes first.

    Raises:
        CacheError: The file cannot be read or written.
    """
    with _errors(cache), cache.connect() as connection:
        try:
            _doom(connection, unused_seconds, keep, max_bytes)
            pruned = [
                Pruned(fingerprint=fingerprint, entries=entries, bytes=size, used=used)
                for fingerprint, entries, size, used in connection.execute(
                    "SELECT fingerprint, count(*), sum(length(value)), max(used) FROM entries "
                    "WHERE rowid IN (SELECT number FROM doomed) GROUP BY fingerprint ORDER BY 3 DESC, 1"
                )
            ]
            if pruned and not dry_run:
                _remove_doomed(connection)
        finally:
            connection.executescript("DROP TABLE IF EXISTS temp.doomed; DROP TABLE IF EXISTS temp.kept;")
    return pruned


def _doom(
    connection: sqlite3.Connection, unused_seconds: float | None, keep: Collection[str] | None, max_bytes: int | None
) -> None:
    """Notes in the temporary table ``doomed`` what is to be removed."""
    connection.execute("CREATE TEMP TABLE doomed (number INTEGER PRIMARY KEY)")
    if unused_seconds is not None:
        before = int(time.time() - unused_seconds)
        connection.execute("INSERT INTO doomed SELECT rowid FROM entries WHERE used < ?", (before,))
    if keep is not None:
        connection.execute("CREATE TEMP TABLE kept (fingerprint TEXT PRIMARY KEY)")
        connection.executemany("INSERT INTO kept VALUES (?)", [(fingerprint,) for fingerprint in set(keep)])
        connection.execute(
            "INSERT OR IGNORE INTO doomed SELECT rowid FROM entries "
            "WHERE fingerprint NOT IN (SELECT fingerprint FROM kept)"
        )
    if max_bytes is not None:
        left = "FROM entries WHERE rowid NOT IN (SELECT number FROM doomed)"
        (size,) = connection.execute(f"SELECT total(length(value)) {left}").fetchone()
        oldest: list[tuple[int]] = []
        for number, length in connection.execute(f"SELECT rowid, length(value) {left} ORDER BY used"):
            if size <= max_bytes:
                break
            oldest.append((number,))
            size -= length
        connection.executemany("INSERT INTO doomed VALUES (?)", oldest)


def _remove_doomed(connection: sqlite3.Connection) -> None:
    some = "(SELECT number FROM doomed ORDER BY number LIMIT ?)"
    while connection.execute("SELECT EXISTS (SELECT 1 FROM doomed)").fetchone()[0]:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"DELETE FROM entries WHERE rowid IN {some}", (_PER_TRANSACTION,))  # noqa: S608
            connection.execute(f"DELETE FROM doomed WHERE number IN {some}", (_PER_TRANSACTION,))  # noqa: S608
    try:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.OperationalError:  # others use it, or the disk has no room for a copy: its pages are used again
        return


def verify(cache: ValueCache, known: Mapping[str, Fits | None] | None = None, *, repair: bool = False) -> Verification:
    """Reads every value, and compares it with its checksum and the form of its feature's values.

    Args:
        cache: The value cache.
        known: From `encodings_of`.
        repair: Remove what is damaged.

    Raises:
        CacheError: The file cannot be read or written.
    """
    forms = {fingerprint: fits for fingerprint, fits in (known or {}).items() if fits is not None}
    entries = compared = removed = 0
    damaged: list[Damage] = []
    with _errors(cache), cache.connect() as connection:
        structure = tuple(text for (text,) in connection.execute("PRAGMA integrity_check") if text != "ok")
        if structure:
            return Verification(entries=0, of_known_features=0, damaged=(), structure=structure)
        for key, fingerprint, value in _entries(connection):
            entries += 1
            compared += fingerprint in forms
            reason = _what_is_wrong(cache.seal, key, fingerprint, value, forms)
            if reason:
                damaged.append(Damage(key=bytes(key).hex(), fingerprint=str(fingerprint), reason=reason))
                removed += repair and _remove(connection, key, value)
    return Verification(
        entries=entries, of_known_features=compared, damaged=tuple(damaged), structure=(), removed=removed
    )


def _entries(connection: sqlite3.Connection) -> Iterator[tuple[bytes, str, bytes]]:
    """All entries, in pieces, so that no reading transaction stays open for long."""
    last = -1
    query = "SELECT rowid, key, fingerprint, value FROM entries WHERE rowid > ? ORDER BY rowid LIMIT ?"
    while rows := connection.execute(query, (last, _PER_TRANSACTION)).fetchall():
        for last, key, fingerprint, value in rows:  # noqa: B007 - where the next piece begins
            yield key, fingerprint, value


def _what_is_wrong(seal: Seal, key: bytes, fingerprint: str, value: bytes, forms: Mapping[str, Fits]) -> str:
    if len(key) != _KEY_BYTES:
        return f"the key has {len(key)} bytes, expected {_KEY_BYTES}"
    data = seal.open(key, value)
    if data is None:
        return "the checksum differs"
    fits = forms.get(fingerprint)
    if fits is not None and not fits(data):
        return f"{len(data)} bytes are no value of its feature"
    return ""


def _remove(connection: sqlite3.Connection, key: bytes, value: bytes) -> bool:
    """Removes an entry, unless its value was computed again meanwhile."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        return connection.execute("DELETE FROM entries WHERE key = ? AND value = ?", (key, value)).rowcount > 0


@contextmanager
def _errors(cache: ValueCache) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        raise CacheError(
            f"The value cache {cache.path} cannot be read or written ({exc}): expected a SQLite file that this user "
            "may write. If it is damaged, stop the processes that use it and delete it; its values are computed again."
        ) from exc
