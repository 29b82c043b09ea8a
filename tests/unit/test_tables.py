from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmrec_plugin.runtime import tables
from llmrec_plugin.runtime.tables import Table

HOLD = """
import sys
from pathlib import Path
from llmrec_plugin.runtime.tables import Table
state = Table(Path(sys.argv[1])).up_to_date(sys.argv[2], dict, lambda key, part: None)
print(state, flush=True)
sys.stdin.read()
"""


def _release() -> None:
    """Makes this process one that has read nothing."""
    for descriptor in tables._held.values():
        os.close(descriptor)
    tables._held.clear()


@pytest.fixture(autouse=True)
def _fresh_process() -> None:
    _release()


def _write(written: list[str]) -> Callable[[str, Path], None]:
    def write(key: str, part: Path) -> None:
        written.append(key)
        part.write_text(key)

    return write


def _contents(state: Path) -> list[str]:
    return [part.read_text() for part in sorted(state.glob("*.parquet"))]


def test_a_state_is_written_once(tmp_path: Path) -> None:
    written: list[str] = []
    table = Table(tmp_path / "table")
    for _ in range(2):
        state = table.up_to_date("s", lambda: {"a": "1", "b": "2"}, _write(written))
        assert _contents(state) == ["a", "b"]
    assert written == ["a", "b"]


def test_parts_that_did_not_change_are_taken_over(tmp_path: Path) -> None:
    written: list[str] = []
    table = Table(tmp_path / "table")
    first = table.up_to_date("s", lambda: {"a": "1", "b": "2"}, _write(written))
    second = table.up_to_date("t", lambda: {"a": "1", "b": "3", "c": "4"}, _write(written))
    assert written == ["a", "b", "b", "c"]
    assert _contents(second) == ["a", "b", "c"]
    assert _contents(first) == ["a", "b"]  # this process may still read it


def test_superseded_states_are_deleted_when_nobody_holds_them(tmp_path: Path) -> None:
    table = Table(tmp_path / "table")
    first = table.up_to_date("s", lambda: {"a": "1"}, _write([]))
    _release()
    second = table.up_to_date("t", lambda: {"a": "2"}, _write([]))
    assert not first.exists()
    assert _contents(second) == ["a"]


def test_a_state_that_another_process_reads_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    first = Table(folder).up_to_date("s", lambda: {"a": "1"}, _write([]))
    _release()
    reader = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), "s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline().strip() == str(first)
    second = Table(folder).up_to_date("t", lambda: {"a": "2"}, _write([]))
    assert _contents(first) == ["a"]
    reader.kill()  # a lock ends with its process, however that ends
    reader.communicate()
    _release()
    Table(folder).up_to_date("u", lambda: {"a": "3"}, _write([]))
    assert not first.exists()
    assert not second.exists()


def test_a_state_that_was_not_finished_is_not_seen(tmp_path: Path) -> None:
    def fail(key: str, part: Path) -> None:
        part.write_text("half")
        raise RuntimeError("out of memory")

    table = Table(tmp_path / "table")
    with pytest.raises(RuntimeError, match="out of memory"):
        table.up_to_date("s", lambda: {"a": "1"}, fail)
    assert not (tmp_path / "table" / "s").exists()
    assert _contents(table.up_to_date("s", lambda: {"a": "1"}, _write([]))) == ["a"]


def test_tables_that_nobody_reads_are_deleted(tmp_path: Path) -> None:
    old, recent, new = (Table(tmp_path / name) for name in ("old", "recent", "new"))
    for table in (old, recent):
        table.up_to_date("s", lambda: {"a": "1"}, _write([]))
    long_ago = time.time() - tables.FORGET_AFTER_SECONDS - 60
    os.utime(tmp_path / "old", (long_ago, long_ago))
    new.up_to_date("s", lambda: {"a": "1"}, _write([]))
    assert (tmp_path / "old").exists()  # this process has read it
    _release()
    new.up_to_date("t", lambda: {"a": "2"}, _write([]))
    assert not (tmp_path / "old").exists()
    assert (tmp_path / "recent" / "s").exists()


def test_a_deleted_folder_is_made_anew(tmp_path: Path) -> None:
    table = Table(tmp_path / "training" / "table")
    table.up_to_date("s", lambda: {"a": "1"}, _write([]))
    shutil.rmtree(tmp_path / "training")
    _release()
    assert _contents(table.up_to_date("s", lambda: {"a": "1"}, _write([]))) == ["a"]
