"""Faults of disk, files, clock, memory and processes: what is served is right or an error, and nothing is lost.

docs/reliability.md lists them all, those that other tests are for among them.
"""

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import samples
from tiny import GOLDEN_TEXTS, export_tiny

from llmrec_plugin.artifacts import ArtifactStore, sha256_file
from llmrec_plugin.binding import bind, from_values, to_values
from llmrec_plugin.errors import (
    ArtifactCorruptError,
    ArtifactNotFoundError,
    FingerprintMismatchError,
    ParityError,
    ProviderError,
)
from llmrec_plugin.generation import Request, Segment
from llmrec_plugin.manifests import GRAPH, MANIFEST, TOKENIZER
from llmrec_plugin.runtime import cache as cache_module
from llmrec_plugin.runtime.cache import ValueCache
from llmrec_plugin.runtime.generation import session as generation
from llmrec_plugin.runtime.memory import is_out_of_memory, run_halving
from llmrec_plugin.runtime.runner import Runner
from llmrec_plugin.runtime.session import OnnxSession
from llmrec_plugin.specs import Decoding
from llmrec_plugin.testing.tiny import add_tiny_generator

MODES = ("batch", "on_demand")
TITLES = ["red web server", "a fast python library", "blue", "font " * 30, "big game", "mail chat", "old editor"]
ORT_SAYS = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. "
    "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 160000000000"
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The vectors of TITLES, computed where nothing is wrong."""
    folder = tmp_path_factory.mktemp("sound")
    runner = Runner(samples.settings(folder))
    export_tiny(runner.store)
    return compute(runner).values


@pytest.fixture
def runner(new_runner):
    return new_runner()


def compute(runner, mode="batch", titles=TITLES, feature=None):
    bound = feature or bind(samples.embedding(), runner.store)
    return runner.compute(bound, {"title": titles}, mode)


def check_served(computed, expected):
    assert set(computed.statuses) == {"ok"}
    np.testing.assert_allclose(np.stack(computed.values), np.stack(expected), atol=1e-6)


def cached(runner, titles=TITLES):
    bound = bind(samples.embedding(), runner.store)
    return runner.cache.known(bound.encoding_fingerprint, [title.strip() for title in titles])


# --- the disk


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_costs_the_cache_and_no_value(runner, expected, caplog, mode):
    """SQLite is kept to the pages that it has: the error is the one that a full disk gives."""
    compute(runner, titles=["red"])
    with runner.cache._databases["write"].connect() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    many = [f"{title} {number}" for number in range(60) for title in TITLES]
    computed = compute(runner, mode, titles=TITLES + many)
    runner.drain()
    assert set(computed.statuses) == {"ok"}
    np.testing.assert_allclose(np.stack(computed.values[: len(TITLES)]), np.stack(expected), atol=1e-6)
    assert "database or disk is full" in caplog.text
    assert caplog.text.count("Cannot write the cache") == 1  # told once
    with runner.cache._databases["write"].connect() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.execute("PRAGMA max_page_count = 1000000")
    check_served(compute(runner, mode), expected)
    compute(runner, mode, titles=["there is room again"])
    runner.drain()
    assert len(cached(runner, ["there is room again"])) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_that_cannot_be_written_is_still_read(runner, expected, mode):
    compute(runner, titles=TITLES[:3])
    with runner.cache._databases["write"].connect() as connection:
        connection.execute("PRAGMA query_only = 1")
    computed = compute(runner, mode)
    runner.drain()
    check_served(computed, expected)
    assert computed.report.cached == 3
    assert len(cached(runner)) == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_cache_folder_that_cannot_be_made_costs_the_cache_and_no_value(tmp_path, tiny_folder, expected, mode, caplog):
    (tmp_path / "file").write_text("")
    settings = samples.settings(tmp_path, artifact_folders=(tiny_folder,), cache_folder=tmp_path / "file" / "cache")
    runner = Runner(settings)
    check_served(compute(runner, mode), expected)
    runner.drain()
    assert "Cannot read the cache" in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_a_damaged_entry_is_computed_again(new_runner, expected, mode):
    first = new_runner()
    compute(first)
    first.cache.close()
    with sqlite3.connect(first.cache.path) as connection:
        connection.execute("UPDATE entries SET value = substr(value, 1, 7) || x'ff' || substr(value, 9)")
    connection.close()
    computed = compute(new_runner(), mode)
    check_served(computed, expected)
    assert computed.report.cached == 0


def test_a_model_whose_export_finds_no_room_leaves_the_old_one_in_place(tmp_path, monkeypatch):
    store = ArtifactStore([tmp_path])
    old = export_tiny(store)

    def half(source, target):
        Path(target).mkdir()
        shutil.copy(Path(source) / MANIFEST, target)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "move", half)
        with pytest.raises(OSError, match="No space left"):
            export_tiny(store, seed=1)
    assert store.current("tiny") == old
    old.verify()
    new = export_tiny(store, seed=1)  # what was half written is replaced
    new.verify()
    assert store.current("tiny") == new != old


# --- files


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", ["truncated", "empty", "swapped", "gone"])
@pytest.mark.parametrize("name", [GRAPH, TOKENIZER])
def test_an_artifact_with_a_fault_serves_nothing(tmp_path, mode, fault, name):
    runner = Runner(samples.settings(tmp_path))
    artifact = export_tiny(runner.store)
    other = export_tiny(ArtifactStore([tmp_path / "other"]), seed=1)
    bound = bind(samples.embedding(), runner.store)
    path = artifact.path(name)
    if fault == "gone":
        path.unlink()
    elif fault == "swapped":
        shutil.copy(other.path(GRAPH), path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if fault == "empty" else 100])
    with pytest.raises(ArtifactCorruptError, match=rf"{name}.*expected sha256.*`llmrec export tiny` again"):
        compute(runner, mode, feature=bound)
    runner.drain()
    assert runner.cache.size() == (0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_tokenizer_serves_nothing_though_its_hash_is_right(tmp_path, mode):
    """As an export that went wrong leaves it: the manifest is whole and the words have each other's ids."""
    runner = Runner(samples.settings(tmp_path))
    artifact = export_tiny(runner.store)
    content = json.loads(artifact.path(TOKENIZER).read_text())
    words = content["model"]["vocab"]
    ids = sorted(words.values())
    content["model"]["vocab"] = {word: number if number < 4 else ids[-1] + 4 - number for word, number in words.items()}
    artifact.path(TOKENIZER).write_text(json.dumps(content))
    values = json.loads((artifact.folder / MANIFEST).read_text())
    values["files"][TOKENIZER] = sha256_file(artifact.path(TOKENIZER))
    (artifact.folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(ArtifactCorruptError, match="The manifest was edited"):
        compute(runner, mode)
    wrong = ArtifactStore([tmp_path / "wrong"]).add(artifact.folder)  # under an id of its own
    other = Runner(samples.settings(tmp_path, artifact_folders=(wrong.folder.parents[1],)))
    with pytest.raises(ParityError, match=repr(GOLDEN_TEXTS[0])):
        compute(other, mode)
    other.drain()
    assert other.cache.size() == (0, 0)


def test_a_registry_that_is_rolled_back_gets_the_old_models_values(tmp_path):
    runner = Runner(samples.settings(tmp_path))
    export_tiny(runner.store)
    published = json.dumps(to_values(bind(samples.embedding(), runner.store)))
    old = compute(runner)
    export_tiny(runner.store, seed=1)
    new = compute(runner)
    assert not np.allclose(old.values[0], new.values[0])
    again = runner.compute(from_values(json.loads(published)), {"title": TITLES}, "on_demand")
    assert again.report.cached == len(TITLES)
    for one, other in zip(again.values, old.values, strict=True):
        np.testing.assert_array_equal(one, other)
    shutil.rmtree(runner.store.current("tiny").folder)
    with pytest.raises(ArtifactNotFoundError):
        bind(samples.embedding(), runner.store)
    later = Runner(samples.settings(tmp_path))
    check_served(later.compute(from_values(json.loads(published)), {"title": TITLES}, "batch"), old.values)


def test_a_declaration_that_was_changed_in_the_registry_is_refused(runner):
    values = to_values(bind(samples.embedding(), runner.store))
    for change in ({"feature": {**values["feature"], "text": "{other}"}}, {"artifact": "f" * 64}):
        with pytest.raises(FingerprintMismatchError):
            from_values({**values, **change})


# --- the clock


@pytest.mark.parametrize("jump", [-10 * 365 * 86_400, 10 * 365 * 86_400, -1_700_000_000])
def test_a_clock_that_jumps_changes_no_value_and_keeps_the_bound(tmp_path, tiny_folder, expected, monkeypatch, jump):
    settings = samples.settings(tmp_path, artifact_folders=(tiny_folder,))
    runner = Runner(settings, ValueCache(settings.cache_folder, 100 * 36))
    check_served(compute(runner, titles=TITLES), expected)
    now = time.time()
    monkeypatch.setattr(cache_module, "time", SimpleNamespace(time=lambda: now + jump))
    monkeypatch.setattr(time, "time", lambda: now + jump)
    for mode in MODES:
        computed = compute(runner, mode)
        check_served(computed, expected)
        assert computed.report.cached == len(TITLES)
        assert computed.report.seconds >= 0
    bound = bind(samples.query(deadline_ms=10_000), runner.store)
    assert runner.compute(bound, {"query": ["never seen"]}, "on_demand").statuses == ["ok"]  # deadlines do not use it
    compute(runner, titles=[f"title {number}" for number in range(300)])
    runner.drain()
    entries, size = runner.cache.size()
    assert 0 < entries <= 100
    assert size <= 100 * 36


# --- memory


def short_of_memory(monkeypatch, most, error=None):
    """Lets the engine take batches of so many rows; gives the sizes that were tried."""
    tried = []
    run = OnnxSession.run

    def limited(self, batch):
        tried.append(len(batch.ids))
        if len(batch.ids) > most:
            raise error or RuntimeError(ORT_SAYS)
        return run(self, batch)

    monkeypatch.setattr(OnnxSession, "run", limited)
    return tried


@pytest.mark.parametrize("error", [RuntimeError(ORT_SAYS), MemoryError(), RuntimeError("CUDA error: out of memory")])
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_without_memory_is_halved_until_it_fits(runner, expected, monkeypatch, caplog, mode, error):
    compute(runner, mode, titles=["loads the model"])
    tried = short_of_memory(monkeypatch, 2, error)
    check_served(compute(runner, mode), expected)
    runner.drain()
    assert max(tried) > 2
    assert [rows for rows in tried if rows <= 2]
    assert "out of memory with a batch of" in caplog.text
    assert len(cached(runner)) == len(TITLES)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_memory_is_an_error_that_says_what_to_do(runner, monkeypatch, mode):
    compute(runner, mode, titles=["loads the model"])
    short_of_memory(monkeypatch, 0)
    with pytest.raises(ProviderError, match=r"Model 'tiny': out of memory with a batch of one row .*max_tokens"):
        compute(runner, mode)
    monkeypatch.undo()
    assert set(compute(runner, mode).statuses) == {"ok"}  # the session is still good
    runner.drain()


@pytest.mark.parametrize("most", [1, 3])
def test_prompts_without_memory_are_halved_and_each_is_told_once(tmp_path, monkeypatch, most):
    artifact = add_tiny_generator(ArtifactStore([tmp_path]))
    requests = [Request((Segment(title, data=True),)) for title in TITLES]
    decoding = Decoding(max_new_tokens=6)
    sound = generation.open_generator(artifact, device="cpu", threads=1)
    expected = sound.generate(requests, decoding)
    scores = sound.score(requests, ["yes", "no"])
    opened, tried = generation._open, []

    class Limited:
        def __init__(self, *arguments):
            self.session = opened(*arguments)
            self.get_inputs, self.get_outputs = self.session.get_inputs, self.session.get_outputs
            self.get_providers = self.session.get_providers

        def run(self, names, feeds):
            tried.append(len(feeds["input_ids"]))
            if tried[-1] > most and armed:
                raise RuntimeError(ORT_SAYS)
            return self.session.run(names, feeds)

    armed = False
    monkeypatch.setattr(generation, "_open", Limited)
    short = generation.open_generator(artifact, device="cpu", threads=1)
    armed = True
    told = []
    assert short.generate(requests, decoding, done=lambda row, completion: told.append((row, completion))) == expected
    assert sorted(row for row, _ in told) == list(range(len(requests)))
    assert dict(told) == dict(enumerate(expected))
    np.testing.assert_allclose(short.score(requests, ["yes", "no"]), scores, atol=1e-5)
    assert max(tried) > most


def test_another_error_is_not_taken_for_want_of_memory():
    calls = []

    def fail(items):
        calls.append(list(items))
        raise RuntimeError("invalid argument")

    with pytest.raises(RuntimeError, match="invalid argument"):
        run_halving(fail, range(8), "Model 'x'")
    assert calls == [list(range(8))]
    assert not is_out_of_memory(KeyError("memory of a key"))


def test_every_item_is_run_once_that_succeeds():
    done = []

    def run(items):
        if len(items) > 3:
            raise MemoryError
        done.extend(items)

    run_halving(run, range(100), "Model 'x'")
    assert done == list(range(100))


# --- the engine


@pytest.mark.parametrize("mode", MODES)
def test_an_engine_that_fails_in_mid_run_loses_what_was_in_hand_and_nothing_else(runner, expected, monkeypatch, mode):
    compute(runner, mode, titles=TITLES[:2])
    run = OnnxSession.run
    failing = [True]

    def fail(self, batch):
        if failing[0]:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access")
        return run(self, batch)

    monkeypatch.setattr(OnnxSession, "run", fail)
    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        compute(runner, mode)
    runner.drain()
    assert cached(runner) == set(TITLES[:2])
    check_served(compute(runner, mode, titles=TITLES[:2]), expected[:2])  # what is cached needs no engine
    failing[0] = False
    check_served(compute(runner, mode), expected)
    runner.drain()


def test_a_text_that_the_engine_fails_on_fails_no_other_request(runner, expected, monkeypatch):
    """Requests in one batch: the poisoned one gets the error, the others their vectors."""
    compute(runner, "on_demand", titles=["loads the model"])
    run = OnnxSession.run

    def fail(self, batch):
        if (batch.ids == poison).any():
            raise RuntimeError("poison")
        time.sleep(0.02)  # so that others wait and share a batch
        return run(self, batch)

    tokenizer = runner.models.encoder(bind(samples.embedding(), runner.store), "online")._tokenizer(16)
    poison = tokenizer.encode("kernel").ids[1]
    monkeypatch.setattr(OnnxSession, "run", fail)
    titles = [*TITLES, "kernel driver"]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(compute, runner, "on_demand", [title]) for title in titles]
    for answer, vector in zip(answers, expected, strict=False):
        check_served(answer.result(), [vector])
    with pytest.raises(RuntimeError, match="poison"):
        answers[-1].result()
    runner.drain()


# --- processes

WRITER = """
import os, sys
import numpy as np
from pathlib import Path
from llmrec_plugin.runtime.cache import ValueCache

for round_ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        cache = ValueCache(Path(sys.argv[1]), 2**30)
        number = 0
        while True:
            texts = [f"{round_} {number} {part}" for part in range(20)]
            cache.put_many("f", {text: np.full(64, hash_ % 977, np.float32) for hash_, text in
                                 ((sum(map(ord, text)), text) for text in texts)})
            os.write(1, f"{round_} {number}\\n".encode())  # what is told is on disk
            number += 1
    os.write(1, f"child {child}\\n".encode())
    sys.stdin.readline()
    os.waitpid(child, 0)
"""


def test_a_process_killed_in_mid_write_leaves_what_it_had_told_and_no_wrong_value(tmp_path):
    """kill -9 at many moments of a run that does nothing but write."""
    rounds = 8
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path, str(rounds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    told = []
    try:
        for number in range(rounds):
            child, lines = None, 0
            while child is None or lines < number + 1:
                words = process.stdout.readline().split()
                if words[0] == "child":
                    child = int(words[1])
                else:
                    told.append(f"{words[0]} {words[1]}")
                    lines += 1
            time.sleep(0.0007 * number)
            os.kill(child, signal.SIGKILL)
            process.stdin.write("\n")
            process.stdin.flush()
        process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    cache = ValueCache(tmp_path, 2**30)
    texts = [f"{batch} {part}" for batch in told for part in range(20)]
    found = cache.get_many("f", texts)
    assert len(told) >= rounds
    assert found.keys() == set(texts)
    for text, vector in found.items():
        np.testing.assert_array_equal(vector, np.full(64, sum(map(ord, text)) % 977, np.float32))
    with cache._databases["read"].connect() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        entries = connection.execute("SELECT count(*) FROM entries").fetchone()[0]
    assert entries % 20 == 0  # each write is there whole, or not at all
    assert cache.size()[0] == entries
    cache.close()
