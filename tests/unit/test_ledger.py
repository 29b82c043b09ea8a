import os
import sqlite3

import pytest

from llmrec_plugin.errors import LedgerError
from llmrec_plugin.runtime.ledger import Entry, Ledger

BIG = 2**63 - 1


def entry(key, **changes):
    return Entry(**{"key": key, "at": 10, "created": 0, "digest": -5, **changes})


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "cache")
    yield ledger
    ledger.close()


@pytest.fixture
def target(ledger):
    return ledger.target("project/view/v0", "view", "f" * 64)


def test_what_was_written_is_found_again(target):
    entries = [
        entry("a"),
        entry("b", at=-1, created=BIG, digest=-BIG - 1, invalid="bytes", pushed=True),
        entry(7, at=BIG),
        entry(b"\x00\xff"),
    ]
    target.write(entries)
    assert target.lookup(["a", "b", 7, b"\x00\xff", "unknown"]) == {item.key: item for item in entries}
    assert target.count() == 4


def test_a_key_keeps_its_type(target):
    target.write([entry("7", at=1), entry(7, at=2), entry(b"7", at=3), entry("", at=4)])
    assert {key: item.at for key, item in target.lookup(["7", 7, b"7", ""]).items()} == {"7": 1, 7: 2, b"7": 3, "": 4}


def test_a_newer_entry_replaces_the_older(target):
    target.write([entry("a", invalid="bytes"), entry("b")])
    target.write([entry("a", at=11, digest=6)])
    assert target.lookup(["a", "b"]) == {"a": entry("a", at=11, digest=6), "b": entry("b")}
    assert target.count() == 2


def test_many_keys_are_looked_up_at_once(target):
    target.write(entry(number) for number in range(1_203))
    assert len(target.lookup(list(range(-10, 1_300)))) == 1_203
    assert target.lookup([]) == {}


def test_an_error_writes_nothing(target):
    def entries():
        yield entry("a")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        target.write(entries())
    with pytest.raises(LedgerError):
        target.write([entry("a"), entry(None)])
    assert target.count() == 0


def test_invalid_rows_are_counted_and_listed(target):
    target.write(entry(number, invalid="bytes" if number % 3 == 0 else None) for number in range(10))
    assert target.count_invalid() == 4
    assert [item.key for item in target.invalid(2)] == [0, 3]
    target.write([entry(0)])
    assert target.count_invalid() == 3


def test_targets_share_nothing(ledger, target):
    other = ledger.target("project/view/v1", "view", "e" * 64)
    target.write([entry("a", invalid="bytes"), entry("b")])
    other.write([entry("a", at=99)])
    assert other.lookup(["a", "b"]) == {"a": entry("a", at=99)}
    assert (other.count_invalid(), other.sample(4)) == (0, ["a"])
    assert other.lock_path != target.lock_path
    other.forget()
    assert (other.count(), target.count()) == (0, 2)


def test_a_target_is_found_by_its_name(ledger, target):
    target.write([entry("a")])
    again = ledger.target("project/view/v0", "view", "f" * 64)
    assert (again.count(), again.lock_path) == (1, target.lock_path)


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_a_sample_holds_both_ends(target, count):
    target.write(entry(number) for number in range(count))
    keys = target.sample(3)
    assert len(keys) == len(set(keys)) == min(count, 6)
    assert set(keys) == {*range(min(count, 3)), *range(max(count - 3, 0), count)}


def test_it_is_on_disk_for_the_next_process_and_for_this_user_only(tmp_path, target):
    target.write([entry("a")])
    again = Ledger(tmp_path / "cache")
    assert again.target("project/view/v0", "view", "f" * 64).count() == 1
    assert again.path.stat().st_mode & 0o777 == 0o600
    assert again.path.parent.stat().st_mode & 0o777 == 0o700
    again.close()


def test_a_damaged_file_is_moved_aside(tmp_path, caplog):
    (tmp_path / "ledger.sqlite").write_text("not a database" * 1000)
    ledger = Ledger(tmp_path)
    target = ledger.target("name", "view", "f")
    target.write([entry("a")])
    assert target.count() == 1
    [aside] = tmp_path.glob("ledger.damaged-*")
    assert aside.read_text().startswith("not a database")
    assert "begun anew" in caplog.text
    ledger.close()


def test_damage_that_shows_later_is_told_with_its_remedy(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.target("name", "view", "f").write(entry(number) for number in range(5_000))
    ledger.close()
    size = ledger.path.stat().st_size
    with ledger.path.open("r+b") as stream:
        stream.seek(3 * 16_384)  # the header and the schema stay sound
        stream.write(os.urandom(size - 3 * 16_384))
    with pytest.raises(LedgerError, match=r"ledger\.sqlite.*Delete it"):
        ledger.target("name", "view", "f").lookup(list(range(5_000)))
    ledger.close()


@pytest.mark.parametrize("place", ["a file in place of the folder", "a folder in place of the file"])
def test_a_place_that_cannot_be_written_is_an_error_that_says_what_to_set(tmp_path, place):
    folder = tmp_path / "cache"
    if place.startswith("a file"):
        folder.write_text("")
    else:
        (folder / "ledger.sqlite").mkdir(parents=True)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite.*LLMREC_CACHE") as error:
        Ledger(folder).target("name", "view", "f")
    assert isinstance(error.value.__cause__, (sqlite3.Error, OSError))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error_that_says_what_to_set(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LedgerError, match="LLMREC_CACHE"):
        Ledger(tmp_path).target("name", "view", "f")


def test_a_read_only_file_is_an_error_that_says_what_to_set(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    target = ledger.target("name", "view", "f")
    with ledger._database.connect() as connection:
        connection.execute("PRAGMA query_only = 1")  # as SQLite answers on a read-only disk
    with pytest.raises(LedgerError, match=r"readonly.*LLMREC_CACHE"):
        target.write([entry("a")])
    ledger.close()


def test_a_run_goes_on_until_feast_has_noted_its_end(ledger, target):
    assert not target.begin_run(0)
    target.write([entry("a"), entry("b", invalid="bytes")])
    assert target.begin_run(0)
    target.write([entry("c")])
    assert target.written_by_this_run(["a", "b", "c", "d"]) == {"a", "c"}
    again = ledger.target("project/view/v0", "view", "f" * 64)
    assert again.begin_run(0)
    assert again.written_by_this_run(["a", "b", "c", "d"]) == {"a", "c"}
    assert not again.begin_run(1)
    assert again.written_by_this_run(["a", "b", "c", "d"]) == set()
    again.write([entry("b")])
    assert again.written_by_this_run(["a", "b"]) == {"b"}
    # The intervals are fewer when the view was removed and applied anew.
    assert not again.begin_run(0)


WRITER = """
from pathlib import Path
from llmrec_plugin.runtime.ledger import Entry, Ledger
who, folder = int(sys.argv[1]), Path(sys.argv[2])
wait()
target = Ledger(folder).target("name", "view", "f")
for number in range(40):
    target.write([Entry(f"{who} {number} {i}", number, 0, i) for i in range(10)] + [Entry("shared", who, 0, number)])
    assert len(target.lookup([f"{who} {number} {i}" for i in range(10)])) == 10
"""


def test_processes_that_begin_and_write_one_target_at_once_lose_nothing(tmp_path, run_together):
    run_together(WRITER, tmp_path)
    ledger = Ledger(tmp_path)
    assert ledger.target("name", "view", "f").count() == 4 * 40 * 10 + 1
    ledger.close()
