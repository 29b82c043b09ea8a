"""The upkeep of the value cache: what is removed, what is found damaged, and what stays."""

import json
import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from llmrec_plugin import EmbeddingFeature
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import bind
from llmrec_plugin.cli import main
from llmrec_plugin.errors import CacheError
from llmrec_plugin.runtime import cache as module
from llmrec_plugin.runtime import upkeep
from llmrec_plugin.runtime.cache import ValueCache
from llmrec_plugin.runtime.upkeep import encodings_of, prune, verify

DAY = 86_400
NOW = 1_700_000_000
BYTES = 4 + 8 * 4  # of one value: checksum and eight float32
OLD, NEW, SIDE = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Three values of OLD, two days old, two of NEW and one of SIDE, used now."""
    monkeypatch.setenv("LLMREC_HOME", str(tmp_path))
    clock = SimpleNamespace(now=NOW - 2 * DAY)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: clock.now))
    monkeypatch.setattr(upkeep, "time", SimpleNamespace(time=lambda: clock.now))
    cache = ValueCache(tmp_path / "cache", 2**20)
    put(cache, OLD, "one", "two", "three")
    clock.now = NOW
    put(cache, NEW, "one", "two")
    put(cache, SIDE, "one")
    yield cache
    cache.close()


def put(cache, fingerprint, *texts):
    cache.put_many(fingerprint, {text: np.full(8, len(text) + ord(text[0]), np.float32) for text in texts})


def left(cache):
    """Entries by fingerprint, as the file has them; its counters must agree."""
    with cache.connect() as connection:
        found = dict(connection.execute("SELECT fingerprint, count(*) FROM entries GROUP BY fingerprint"))
        size = connection.execute("SELECT total(length(value)) FROM entries").fetchone()[0]
    assert cache.size() == (sum(found.values()), int(size))
    return found


def flip_a_byte(cache, value):
    """Changes one bit of a stored value in the file itself."""
    cache.close()
    data = bytearray(cache.path.read_bytes())
    place = data.find(np.full(8, value, "<f4").tobytes())
    assert place > 0
    data[place + 7] ^= 1
    cache.path.write_bytes(data)


# --- prune


def test_values_that_were_not_used_for_long_go(cache):
    (pruned,) = prune(cache, unused_seconds=DAY)
    assert (pruned.fingerprint, pruned.entries, pruned.bytes, pruned.used) == (OLD, 3, 3 * BYTES, NOW - 2 * DAY)
    assert left(cache) == {NEW: 2, SIDE: 1}
    assert cache.get_many(NEW, ["one", "two"]).keys() == {"one", "two"}


def test_values_of_encodings_that_nobody_uses_go(cache):
    assert {item.fingerprint for item in prune(cache, keep={OLD, "unheard of"})} == {NEW, SIDE}
    assert left(cache) == {OLD: 3}


def test_down_to_a_size_the_least_recently_used_go_first(cache):
    (pruned,) = prune(cache, max_bytes=4 * BYTES)
    assert (pruned.fingerprint, pruned.entries) == (OLD, 2)
    assert left(cache) == {OLD: 1, NEW: 2, SIDE: 1}
    assert prune(cache, max_bytes=4 * BYTES) == []


def test_reasons_add_up(cache):
    prune(cache, unused_seconds=DAY, keep={OLD, NEW}, max_bytes=BYTES)
    assert left(cache) == {NEW: 1}


def test_a_dry_run_tells_the_same_and_removes_nothing(cache):
    before = cache.path.read_bytes()
    planned = prune(cache, keep={NEW}, dry_run=True)
    assert left(cache) == {OLD: 3, NEW: 2, SIDE: 1}
    assert cache.path.read_bytes() == before
    assert prune(cache, keep={NEW}) == planned


def test_more_than_one_transaction_goes_and_the_file_shrinks(cache, monkeypatch):
    monkeypatch.setattr(upkeep, "_PER_TRANSACTION", 100)
    put(cache, SIDE, *(f"text {number}" for number in range(2550)))
    cache.close()
    before = cache.path.stat().st_size
    prune(cache, keep={NEW})
    assert left(cache) == {NEW: 2}
    cache.close()
    assert cache.path.stat().st_size < before / 2


def test_a_cache_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "values.sqlite").mkdir()
    with pytest.raises(CacheError, match="expected a SQLite file that this user may write"):
        prune(ValueCache(tmp_path, 2**20), max_bytes=0)


# --- verify


def test_a_sound_cache_has_no_damage(cache):
    found = verify(cache, {NEW: lambda data: len(data) == 32, OLD: None})
    assert found.sound
    assert (found.entries, found.of_known_features, found.damaged) == (6, 2, ())


def test_a_flipped_byte_is_found_and_repaired(cache):
    flip_a_byte(cache, 5 + ord("t"))  # "three"
    (damage,) = (found := verify(cache)).damaged
    assert not found.sound
    assert (damage.fingerprint, damage.reason) == (OLD, "the checksum differs")
    assert left(cache)[OLD] == 3
    repaired = verify(cache, repair=True)
    assert repaired.sound
    assert repaired.removed == 1
    assert left(cache)[OLD] == 2
    assert verify(cache).damaged == ()


def test_a_value_of_another_length_than_its_feature_has_is_found(cache):
    cache.put_many(NEW, {"short": np.ones(5, np.float32)})
    (damage,) = verify(cache, {NEW: lambda data: len(data) == 32}).damaged
    assert damage.reason == "20 bytes are no value of its feature"


def test_a_key_that_is_no_hash_is_found(cache):
    with cache.connect() as connection:
        connection.execute("UPDATE entries SET key = x'00' WHERE fingerprint = ?", (SIDE,))
    (damage,) = verify(cache).damaged
    assert damage.reason == "the key has 1 bytes, expected 32"


def test_a_file_whose_structure_is_damaged_is_told(cache):
    put(cache, SIDE, *(f"text {number}" for number in range(2000)))
    cache.close()
    connection = sqlite3.connect(cache.path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entries_by_use'").fetchone()
    connection.close()
    data = bytearray(cache.path.read_bytes())
    start = (root - 1) * 16384
    data[start + 16000 : start + 16384] = bytes(384)
    cache.path.write_bytes(data)
    found = verify(cache)
    assert found.structure
    assert not found.sound


def test_a_value_that_was_computed_again_meanwhile_stays(cache):
    key = cache.seal.name(OLD, "one")
    with cache.connect() as connection:
        assert not upkeep._remove(connection, key, b"what it was before")
    assert left(cache)[OLD] == 3


def test_the_form_of_values_is_known_from_features_and_their_artifacts(tiny_folder):
    feature = EmbeddingFeature(
        name="item_text_embedding", entity="item", text="{title}", model="tiny", pooling="mean", normalize=True,
        prefix="", metric="cosine", max_tokens=16, dims=8,
    )  # fmt: skip
    store = ArtifactStore([tiny_folder])
    bound = bind(feature, store)
    fits = encodings_of([bound], store)[bound.encoding_fingerprint]
    assert fits is not None
    assert fits(bytes(32))
    assert not fits(bytes(31))
    assert encodings_of([bound], ArtifactStore([])) == {bound.encoding_fingerprint: None}


def test_what_a_model_wrote_must_be_readable():
    from llmrec_plugin.pipeline.columns import Written
    from llmrec_plugin.runtime.writer import Outcome

    assert upkeep._is_outcome(Outcome(Written(("drama",), (3,))).to_bytes())
    assert upkeep._is_outcome(Outcome(None, "no label").to_bytes())
    assert not upkeep._is_outcome(b'+["drama"')
    assert not upkeep._is_outcome(b"")


# --- the commands


def run(*words):
    return CliRunner().invoke(main, ["cache", *words])


def test_the_command_shows_before_it_removes(cache):
    cache.close()
    shown = json.loads(run("prune", "--max-size", f"{3 * BYTES}", "--dry-run", "--json").stdout)
    assert [(item["fingerprint"], item["entries"]) for item in shown["removed"]] == [(OLD, 3)]
    assert "3 values, 0.0 MiB would be removed." in run("prune", "--max-size", f"{3 * BYTES}", "--dry-run").stdout
    assert left(cache)[OLD] == 3
    assert "3 values, 0.0 MiB removed." in run("prune", "--older-than", "1d").stdout
    assert OLD not in left(cache)


def test_pruning_without_a_reason_is_wrong_usage(cache):
    assert run("prune").exit_code == 2
    assert "needs --repo" in run("prune", "--unused").stderr
    assert len(left(cache)) == 3


def test_the_exit_code_of_verify_tells_whether_damage_is_left(cache):
    cache.close()
    assert run("verify").exit_code == 0
    flip_a_byte(cache, 3 + ord("o"))  # the first "one"
    assert run("verify").exit_code == 1
    done = run("verify", "--repair", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["removed"] == 1
    assert run("verify").exit_code == 0
