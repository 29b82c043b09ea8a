"""Tables of parquet parts that are replaced as a whole, and deleted when nobody reads them.

A table is a folder, and each of its states a folder in it, complete from the moment it is there and never
changed::

    training/<table>/<state>/part-00000.parquet
                             _parts.json          what each part was made from

A new state takes over the parts that are still right as hard links. A process that reads a state holds a
shared lock on it until it ends; a state that was superseded is deleted when no process holds it.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows: nothing is deleted there
    fcntl = None  # type: ignore[assignment]

FORGET_AFTER_SECONDS = 30 * 24 * 3600
"""A table that no process asked for in this time is deleted when another one is written."""

_PARTS = "_parts.json"
_HOLD = "_held"
_held: dict[Path, int] = {}


class Table:
    """One table.

    Args:
        folder: Its folder; tables that lie beside it may be deleted when they are not read any more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(f"{folder}.lock")

    def up_to_date(
        self, state: str, sources: Callable[[], Mapping[str, str]], write: Callable[[str, Path], None]
    ) -> Path:
        """The folder of the state, which is written if it is not there, and kept until this process ends.

        Args:
            state: A name that changes with the content.
            sources: Gives, in the order of the parts, what each part is made from: a key for `write`, and a
                signature that changes with its content. Asked only if something must be written.
            write: Writes the part of a key to a path, a file or a folder.
        """
        self._folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        current = self._folder / state
        with self._lock:
            if not current.is_dir():
                self._write(current, sources(), write)
                self._delete_superseded(current)
                _delete_forgotten(self._folder)
            _hold(current)
            os.utime(self._folder)
        return current

    def count(self, is_in: Callable[[Path], bool]) -> int:
        """How many states have a part for which `is_in` is true."""
        return len(self._holding(is_in))

    def delete(self, is_in: Callable[[Path], bool]) -> None:
        """Deletes the states with such a part, but for those that a process reads."""
        with self._lock:
            for state in self._holding(is_in):
                if _is_free(state):
                    shutil.rmtree(state)

    def _holding(self, is_in: Callable[[Path], bool]) -> list[Path]:
        known: dict[int, bool] = {}  # states share parts
        found = []
        for state in self._folder.iterdir():
            parts = {part.stat().st_ino: part for part in state.glob("part-*.parquet")}
            known |= {number: is_in(part) for number, part in parts.items() if number not in known}
            if any(known[number] for number in parts):
                found.append(state)
        return found

    def _write(self, target: Path, sources: Mapping[str, str], write: Callable[[str, Path], None]) -> None:
        known = self._known_parts()
        temporary = self._folder / ".new"  # the lock is held: what lies there is of a process that died
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True, mode=0o700)
        names = {}
        for number, (key, signature) in enumerate(sources.items()):
            part = temporary / f"part-{number:05}.parquet"
            if signature in known:
                os.link(known[signature], part)
            else:
                write(key, part)
            names[part.name] = signature
        (temporary / _PARTS).write_text(json.dumps(names))
        (temporary / _HOLD).touch()
        os.replace(temporary, target)

    def _known_parts(self) -> dict[str, Path]:
        """Signature -> a part of an earlier state."""
        return {
            signature: listing.parent / name
            for listing in self._folder.glob(f"*/{_PARTS}")
            for name, signature in json.loads(listing.read_text()).items()
            if (listing.parent / name).is_file()
        }

    def _delete_superseded(self, current: Path) -> None:
        for state in self._folder.iterdir():
            if state != current and _is_free(state):
                shutil.rmtree(state, ignore_errors=True)


def _delete_forgotten(table: Path) -> None:
    """Deletes tables beside this one that nobody has asked for in a long time and nobody holds."""
    oldest = time.time() - FORGET_AFTER_SECONDS
    for other in table.parent.iterdir():
        if other == table or not other.is_dir() or other.stat().st_mtime > oldest:
            continue
        try:
            with FileLock(f"{other}.lock", timeout=0):
                if other.stat().st_mtime <= oldest and all(map(_is_free, other.iterdir())):
                    shutil.rmtree(other, ignore_errors=True)
        except Timeout:
            continue  # somebody has just asked for it


def _hold(state: Path) -> None:
    """Keeps a shared lock on the state until this process ends, however it ends."""
    if fcntl is None or state in _held:
        return
    descriptor = os.open(state / _HOLD, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held[state] = descriptor


def _is_free(state: Path) -> bool:
    """Whether no process holds the state; to be asked under the table's lock."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(state / _HOLD, os.O_RDONLY)
    except FileNotFoundError:
        return True  # never completed
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
