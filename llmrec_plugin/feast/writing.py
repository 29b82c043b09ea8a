"""One writer of LLM views at a time, on this machine: materializing and pushing do not overtake each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock

from llmrec_plugin.settings import load_settings

_POLL_SECONDS = 0.002


@contextmanager
def writing(project: str) -> Iterator[None]:
    """Held from a look at what is stored until the write that depends on it; never during inference.

    It also keeps SQLite, which allows one writer, from failing with "database is locked" when threads of several
    processes push at once.
    """
    folder = load_settings().cache_folder / "writing"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(folder / f"{project}.lock").acquire(poll_interval=_POLL_SECONDS):
        yield
