"""The value cache: what comes back, what is dropped, what happens when the file is in a bad state."""

import logging
import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_plugin.runtime import cache as module
from llmrec_plugin.runtime.cache import RunReport, ValueCache
from llmrec_plugin.runtime.sealing import Checksum, Encryption

HOUR = 3600
BYTES = 4 + 8 * 4  # of one value: checksum and eight float32


@pytest.fixture
def cache(tmp_path):
    cache = ValueCache(tmp_path / "cache", 2**20)
    yield cache
    cache.close()


@pytest.fixture
def clock(monkeypatch):
    """The cache's clock, set by ``clock.now = ...``."""
    clock = SimpleNamespace(now=1_700_000_000)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


def vectors(*texts):
    """A vector per text that tells which text it is for."""
    return {text: np.full(8, len(text) + 0.1, dtype=np.float32) + np.arange(8, dtype=np.float32) for text in texts}


def numbered(start, stop):
    return vectors(*(f"text {number}" for number in range(start, stop)))


def report(**changes):
    return RunReport(
        **{
            "started": 1.5, "feature": "f", "fingerprint": "a", "mode": "batch", "rows": 3, "empty": 1, "invalid": 0,
            "texts": 2, "cached": 1, "computed": 1, "tokens": 9, "seconds": 0.25, **changes,
        }
    )  # fmt: skip


def damage(cache, sql):
    """Changes the file behind the cache's back."""
    cache.close()
    connection = sqlite3.connect(cache.path)
    connection.executescript(sql)
    connection.commit()
    connection.close()


def check_equal(got, expected):
    assert got.keys() == expected.keys()
    for text, vector in expected.items():
        assert got[text].dtype == np.float32
        np.testing.assert_array_equal(got[text], vector)


# --- values


def test_values_come_back_as_they_were(cache):
    stored = {**vectors("one", "three", ""), "odd": np.array([np.nan, -0.0, np.inf, 1e-45] * 2, dtype=np.float32)}
    cache.put_many("a", stored)
    got = cache.get_many("a", ["three", "unknown", "one", "", "odd", "one"])
    check_equal(got, stored)
    assert np.signbit(got["odd"][1])


def test_values_of_another_fingerprint_are_not_given(cache):
    cache.put_many("a", vectors("one"))
    assert cache.get_many("b", ["one"]) == {}


def test_a_value_cannot_be_changed_by_who_reads_it(cache):
    cache.put_many("a", vectors("one"))
    with pytest.raises(ValueError, match="read-only"):
        cache.get_many("a", ["one"])["one"][0] = 9


def test_a_second_value_of_a_text_replaces_the_first(cache):
    cache.put_many("a", vectors("one"))
    cache.put_many("a", {"one": np.zeros(8, dtype=np.float32)})
    check_equal(cache.get_many("a", ["one"]), {"one": np.zeros(8)})
    assert cache.size() == (1, BYTES)


def test_more_texts_than_one_query_takes_come_back(cache):
    stored = numbered(0, 3 * module.KEYS_PER_QUERY + 1)
    cache.put_many("a", stored)
    check_equal(cache.get_many("a", list(stored)), stored)


def test_no_texts_are_no_work(cache):
    cache.put_many("a", {})
    assert cache.get_many("a", []) == {}
    assert cache.size() == (0, 0)


def test_values_are_there_after_the_file_was_closed(cache):
    cache.put_many("a", vectors("one"))
    cache.close()
    check_equal(cache.get_many("a", ["one"]), vectors("one"))


def test_the_file_is_for_this_user_only(cache):
    cache.put_many("a", vectors("one"))
    assert cache.path.stat().st_mode & 0o077 == 0
    assert cache.path.parent.stat().st_mode & 0o077 == 0


def test_every_file_is_for_this_user_only_where_the_folder_is_not(tmp_path):
    before = os.umask(0)
    try:
        tmp_path.chmod(0o755)
        cache = ValueCache(tmp_path, 2**20)
        cache.put_many("a", vectors("one"))  # the write-ahead log now holds it
        found = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("values.sqlite*")}
        cache.close()
    finally:
        os.umask(before)
    assert found == dict.fromkeys(("values.sqlite", "values.sqlite-wal", "values.sqlite-shm"), "0o600")


@given(st.lists(st.tuples(st.text(), st.text(st.characters(codec=None))), unique=True, max_size=20))
def test_different_texts_and_fingerprints_have_different_keys(pairs):
    fingerprints = {(fingerprint.replace("\n", ""), text) for fingerprint, text in pairs}
    for seal in (Checksum(), Encryption(bytes(range(32)))):
        assert len({seal.name(*pair) for pair in fingerprints}) == len(fingerprints)


# --- damage


@pytest.mark.parametrize(
    "value", ["zeroblob(36)", "substr(value, 1, 20)", "x''", "CAST(substr(value, 1, 35) || x'00' AS BLOB)"]
)
def test_a_damaged_value_is_a_miss_and_can_be_replaced(cache, caplog, value):
    cache.put_many("a", vectors("one"))
    cache.put_many("b", vectors("one"))
    damage(cache, f"UPDATE entries SET value = {value} WHERE fingerprint = 'a'")
    assert cache.get_many("a", ["one"]) == {}
    assert "1 of 1 values are damaged and computed again" in caplog.text
    check_equal(cache.get_many("b", ["one"]), vectors("one"))
    cache.put_many("a", vectors("one"))
    check_equal(cache.get_many("a", ["one"]), vectors("one"))


def test_a_value_under_the_key_of_another_text_is_a_miss(cache, caplog):
    cache.put_many("a", vectors("one", "other text"))
    swap = "UPDATE entries SET value = (SELECT value FROM old WHERE old.key != entries.key)"
    damage(cache, f"CREATE TABLE old AS SELECT * FROM entries; {swap}")
    assert cache.get_many("a", ["one", "other text"]) == {}
    assert "2 of 2 values are damaged" in caplog.text


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\x00" + b"\xff" * 20_000])
def test_a_file_that_is_no_database_is_moved_aside(cache, caplog, content):
    cache.path.parent.mkdir()
    cache.path.write_bytes(content)
    cache.put_many("a", vectors("one"))
    check_equal(cache.get_many("a", ["one"]), vectors("one"))
    (aside,) = cache.path.parent.glob("values.damaged-*")
    assert aside.read_bytes() == content
    assert "begun anew" in caplog.text
    assert "computed without it" not in caplog.text


def test_a_folder_that_cannot_be_written_only_warns_and_once(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    cache = ValueCache(tmp_path / "file" / "cache", 2**20)
    for _ in range(2):
        cache.put_many("a", vectors("one"))
        assert cache.get_many("a", ["one"]) == {}
        cache.record(report())
        assert (cache.runs(), cache.size()) == ([], (0, 0))
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "values are computed without it" in warnings[0].getMessage()


def test_a_write_that_fails_stores_all_or_nothing(cache, caplog):
    cache.put_many("a", vectors("one"))
    damage(cache, "CREATE TRIGGER full BEFORE INSERT ON entries WHEN (SELECT count(*) FROM entries) = 3 "
                  "BEGIN SELECT RAISE(ABORT, 'disk full'); END")  # fmt: skip
    cache.put_many("a", numbered(0, 5))
    assert "disk full" in caplog.text
    assert cache.size() == (1, BYTES)
    check_equal(cache.get_many("a", ["one", *numbered(0, 5)]), vectors("one"))
    cache.put_many("a", numbered(0, 2))
    assert cache.size()[0] == 3


# --- the bound


def test_the_least_recently_used_values_are_dropped(tmp_path, clock):
    cache = ValueCache(tmp_path, 600 * BYTES)
    cache.put_many("a", numbered(0, 300))
    clock.now += 2 * HOUR
    cache.put_many("a", numbered(300, 600))
    clock.now += 2 * HOUR
    assert len(cache.get_many("a", list(numbered(0, 300)))) == 300  # now the first are the recent ones
    clock.now += 2 * HOUR
    cache.put_many("a", numbered(600, 601))
    assert cache.size()[0] <= 600
    assert len(cache.get_many("a", list(numbered(0, 300)))) == 300
    assert len(cache.get_many("a", list(numbered(600, 601)))) == 1
    assert len(cache.get_many("a", list(numbered(300, 600)))) < 300
    cache.close()


@pytest.mark.parametrize("bound", [1, 10 * BYTES, 400 * BYTES])
def test_the_bound_holds_after_every_write(tmp_path, bound):
    cache = ValueCache(tmp_path, bound)
    for start in range(0, 1500, 300):
        cache.put_many("a", numbered(start, start + 300))
        entries, size = cache.size()
        assert size == entries * BYTES <= bound
    cache.close()


def counted(cache):
    """Entries and bytes, counted in the file."""
    connection = sqlite3.connect(cache.path)
    found = connection.execute("SELECT count(*), total(length(value)) FROM entries").fetchone()
    connection.close()
    return found


def test_the_count_agrees_with_what_is_stored(tmp_path):
    cache = ValueCache(tmp_path, 400 * BYTES)
    for start in (0, 100, 50, 300, 0):
        cache.put_many("a", numbered(start, start + 200))
        assert cache.size() == counted(cache)
    cache.put_many("a", {text: vector[:5] for text, vector in numbered(0, 250).items()})  # some replace longer ones
    assert cache.size() == counted(cache)
    cache.close()


def test_values_of_an_older_version_are_dropped_with_their_triggers(cache):
    cache.put_many("a", numbered(0, 3))
    damage(cache, "CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN UPDATE total SET "
                  "bytes = bytes + length(NEW.value), entries = entries + 1; END")  # fmt: skip
    damage(cache, "PRAGMA user_version = 1")
    cache.put_many("a", numbered(2, 9))
    assert cache.size() == counted(cache) == (7, 7 * BYTES)


# --- runs


def test_runs_are_kept_in_order(cache):
    reports = [report(started=float(number), feature=f"f{number}") for number in range(3)]
    for item in reports:
        cache.record(item)
    assert cache.runs() == reports


def test_only_the_last_runs_are_kept(cache, monkeypatch):
    monkeypatch.setattr(module, "_RUNS_KEPT", 5)
    for number in range(12):
        cache.record(report(rows=number))
    assert [item.rows for item in cache.runs()] == [7, 8, 9, 10, 11]


def test_a_run_is_told_in_one_line():
    assert str(report()) == "f: 3 rows, 1 empty, 2 distinct texts: 1 cached, 1 computed in 0.2 s"
    assert "2 invalid" in str(report(invalid=2, empty=0))
    assert "empty" not in str(report(empty=0))


# --- threads and processes

WORKER = """
import numpy as np
from pathlib import Path
from llmrec_plugin.runtime.cache import ValueCache
who, folder, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
cache = ValueCache(folder, 2**24)
wait()
for number in range(rounds):
    stored = {f"{who} {number} {i}": np.full(8, number + i, np.float32) for i in range(20)}
    stored["shared"] = np.ones(8, np.float32)
    cache.put_many("a", stored)
    got = cache.get_many("a", list(stored))
    assert got.keys() == stored.keys(), len(got)
    assert all((got[text] == vector).all() for text, vector in stored.items())
"""


def test_processes_that_write_and_read_at_once_lose_nothing(cache, run_together):
    cache.put_many("a", vectors("before"))
    run_together(WORKER, cache.path.parent, 25)
    assert cache.size()[0] == 1 + 1 + 4 * 25 * 20
    texts = [f"{who} {number} {i}" for who in range(4) for number in range(25) for i in range(20)]
    assert len(cache.get_many("a", texts)) == len(texts)


OPENER = """
import numpy as np
from pathlib import Path
from llmrec_plugin.runtime.cache import ValueCache
for folder in sys.argv[2:]:
    cache = ValueCache(Path(folder), 2**20)
    wait()
    cache.put_many("a", {sys.argv[1]: np.ones(8, np.float32)})
    cache.close()
"""


def test_processes_that_open_a_new_or_damaged_file_at_once_lose_nothing(tmp_path, run_together):
    folders = [tmp_path / str(number) for number in range(16)]
    for folder in folders[::2]:
        folder.mkdir()
        (folder / "values.sqlite").write_text("not a database" * 1000)
    run_together(OPENER, *folders, rounds=len(folders))
    for folder in folders:
        cache = ValueCache(folder, 2**20)
        assert cache.get_many("a", ["0", "1", "2", "3"]).keys() == {"0", "1", "2", "3"}
        assert len(list(folder.glob("values.damaged-*"))) <= 1
        cache.close()


def test_threads_share_one_cache(cache):
    def work(who):
        for number in range(20):
            stored = numbered(1000 * who + 10 * number, 1000 * who + 10 * number + 10)
            cache.put_many("a", stored)
            check_equal(cache.get_many("a", list(stored)), stored)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert cache.size()[0] == 4 * 20 * 10


def test_a_reader_does_not_wait_for_a_writer_of_this_process_or_another(cache, monkeypatch):
    monkeypatch.setattr(module, "_TOUCH_AFTER_SECONDS", -1)  # a hit wants to write, too
    stored = numbered(0, 10)
    cache.put_many("a", stored)
    other = sqlite3.connect(cache.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with cache._databases["write"].lock:
            check_equal(cache.get_many("a", list(stored)), stored)
        check_equal(cache.get_many("a", list(stored)), stored)
    finally:
        other.close()


def test_a_file_of_an_older_version_keeps_its_runs_and_takes_new_ones(tmp_path):
    connection = sqlite3.connect(tmp_path / "values.sqlite")
    connection.execute(
        "CREATE TABLE runs (started REAL, feature TEXT, fingerprint TEXT, mode TEXT, rows INTEGER, empty INTEGER, "
        "invalid INTEGER, texts INTEGER, cached INTEGER, computed INTEGER, tokens INTEGER, seconds REAL)"
    )
    connection.execute("INSERT INTO runs VALUES (1.5, 'old', 'f', 'batch', 9, 1, 2, 5, 3, 2, 40, 0.5)")
    connection.commit()
    connection.close()
    for _ in range(2):  # the second time there is nothing to add
        cache = ValueCache(tmp_path, 2**20)
        old = cache.runs()[0]
        assert (old.feature, old.rows, old.seconds, old.fallback) == ("old", 9, 0.5, 0)
        new = replace(old, feature="new", fallback=7)
        cache.record(new)
        assert cache.runs()[-1] == new
        cache.close()


COMING_AND_GOING = """
import sys
from pathlib import Path
from llmrec_plugin.runtime.cache import ValueCache
cache = ValueCache(Path(sys.argv[1]), 2**20)
print(cache.size()[0])
cache.close()
"""


def seen_by_another_process(folder):
    """How many values a process finds that opens the cache and closes it again."""
    done = subprocess.run([sys.executable, "-c", COMING_AND_GOING, folder], capture_output=True, check=True, timeout=60)
    return int(done.stdout)


def test_a_process_that_comes_and_goes_takes_nothing_from_one_that_stays(tmp_path):
    """The last to close a file deletes its log; it must not take itself for the last."""
    cache = ValueCache(tmp_path, 2**20)
    cache.put_many("a", numbered(0, 1))
    check_equal(cache.get_many("a", list(numbered(0, 1))), numbered(0, 1))  # so that both connections are open
    for number in range(1, 4):
        assert seen_by_another_process(tmp_path) == number
        cache.put_many("a", numbered(number, number + 1))
    assert seen_by_another_process(tmp_path) == cache.size()[0] == 4
    check_equal(cache.get_many("a", list(numbered(0, 4))), numbered(0, 4))
    cache.close()


FORKING = """
import os, sqlite3, subprocess, sys
import numpy as np
from pathlib import Path
from llmrec_plugin.runtime.cache import ValueCache
folder, another = Path(sys.argv[1]), sys.argv[2]
cache = ValueCache(folder, 2**20)
vector = np.ones(8, np.float32)
cache.put_many("a", {"parent": vector})
assert len(cache.get_many("a", ["parent"])) == 1
(told, tell), (heard, hear) = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    cache.put_many("a", {"child": vector})
    os.write(tell, b".")
    os.read(heard, 1)
    cache.put_many("a", {"child, later": vector})
    ok = len(cache.get_many("a", ["parent", "child", "child, later"])) == 3
    cache.close()
    os._exit(0 if ok else 1)
os.read(told, 1)
cache.put_many("a", {"parent, later": vector})
cache.close()
assert subprocess.run([sys.executable, "-c", another, folder], stdout=subprocess.PIPE, check=True).stdout == b"3\\n"
os.write(hear, b".")
assert os.waitpid(child, 0)[1] == 0
assert len(cache.get_many("a", ["parent", "child", "parent, later", "child, later"])) == 4
assert sqlite3.connect(cache.path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_opens_the_file_for_itself(tmp_path):
    """Locks are not inherited: a child that goes on with its parent's connection writes to a log that is deleted."""
    script = [sys.executable, "-c", FORKING, tmp_path, COMING_AND_GOING]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
