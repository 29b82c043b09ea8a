"""Rows as values: order, duplicates, cache, failures."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from samples import embedding, history, query, settings
from tiny import WORDS, export_tiny

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundFeature, bind
from llmrec_plugin.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactNotFoundError, MissingColumnError
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.runtime import encoder as encoder_module
from llmrec_plugin.runtime import models as module
from llmrec_plugin.runtime.calibration import Opened
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.runner import Runner, runner_for

PATIENCE = 20  # seconds after which a test that waits in vain fails
TITLES = [f"{a} {b} {c}" for a in WORDS[:7] for b in WORDS[7:14] for c in WORDS[14:20]]


def embed(runner, feature, rows, mode="batch", column="title"):
    bound = feature if isinstance(feature, BoundFeature) else bind(feature, runner.store)
    embedded = runner.compute(bound, {column: rows}, mode)
    runner.drain()
    return embedded.values, embedded.report


def check_same(got, expected):
    assert [vector is None for vector in got] == [vector is None for vector in expected]
    for one, other in zip(got, expected, strict=True):
        if one is not None:
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
            assert one @ other >= 0.9999 * np.linalg.norm(one) * np.linalg.norm(other)


@pytest.fixture
def runner(new_runner):
    return new_runner()


@pytest.fixture
def no_model(monkeypatch):
    """Lets no model be loaded from now on."""

    def refuse():
        monkeypatch.setattr(module, "Encoder", lambda *_: pytest.fail("a model was loaded"))

    return refuse


# --- values


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory):
    """The vectors of TITLES, each computed alone."""
    encoder = Encoder(tiny, settings(tmp_path_factory.mktemp("unused")))
    return [encoder.encode([title])[0][0] for title in TITLES]


@pytest.mark.parametrize("rows", [1, 7, 32, 256])
@pytest.mark.parametrize("mode", ["batch", "on_demand"])
def test_the_number_of_rows_per_call_does_not_change_a_value(runner, expected, rows, mode):
    count = 40 if rows == 1 else len(TITLES)
    values = []
    for start in range(0, count, rows):
        values += embed(runner, embedding(), TITLES[start : min(start + rows, count)], mode)[0]
    check_same(values, expected[:count])


def test_the_size_of_a_chunk_does_not_change_a_value(runner, expected, monkeypatch):
    monkeypatch.setattr(encoder_module, "TEXTS_PER_CALL", 10)
    values, report = embed(runner, embedding(), TITLES)
    check_same(values, expected)
    assert report.computed == len(TITLES)


def test_values_from_the_cache_are_the_computed_ones_to_the_last_bit(runner):
    first, _ = embed(runner, embedding(), TITLES[:50])
    second, report = embed(runner, embedding(), TITLES[:50])
    assert report.computed == 0
    np.testing.assert_array_equal(first, second)


def test_values_come_in_the_order_of_the_rows(runner, expected):
    order = np.random.default_rng(0).permutation(len(TITLES))
    embed(runner, embedding(), TITLES[::3])  # some are cached, some are not
    values, _ = embed(runner, embedding(), [TITLES[i] for i in order])
    check_same(values, [expected[i] for i in order])


def test_the_prefix_is_read_by_the_model_and_keeps_values_apart(runner):
    plain, _ = embed(runner, embedding(), ["red server"])
    prefixed, report = embed(runner, embedding(prefix="fast "), ["red server"])
    spelled, _ = embed(runner, embedding(), ["fast red server"])
    assert report.computed == 1
    assert not np.allclose(plain[0], prefixed[0], atol=1e-3)
    check_same(prefixed, spelled)


def test_a_text_is_read_up_to_the_length_that_is_declared(runner):
    cut, report = embed(runner, embedding(max_tokens=4), ["red blue fast old"])
    assert report.tokens == 4  # two words, [CLS] and [SEP]
    check_same(cut, embed(runner, embedding(), ["red blue"])[0])


def test_a_reduced_vector_is_the_normalized_beginning(runner, expected):
    values, _ = embed(runner, embedding(dims=3, reduction="prefix"), TITLES[:5])
    check_same(values, [vector[:3] / np.linalg.norm(vector[:3]) for vector in expected[:5]])


def test_a_history_is_the_weighted_mean_of_its_events(runner):
    red, blue = embed(runner, embedding(), ["red", "blue"])[0]
    values, report = embed(runner, history(half_life=1.0), [["red", "blue"], ["blue"], []], column="events")
    mean = 2 / 3 * red + 1 / 3 * blue
    check_same(values, [mean / np.linalg.norm(mean), blue, None])
    assert (report.texts, report.cached, report.empty) == (2, 2, 1)


def test_a_concatenated_history_is_one_text(runner):
    values, report = embed(
        runner, history(combine="concat", separator=" "), [["red", "blue", "fast", "old"]], column="events"
    )
    check_same(values, embed(runner, embedding(), ["red blue fast"])[0])
    assert report.texts == 1


# --- what is computed, and what is not


def test_a_text_is_computed_once_however_many_rows_hold_it(runner):
    values, report = embed(runner, embedding(), ["red", "blue", " red ", "red", "blue"])
    assert (report.rows, report.texts, report.cached, report.computed) == (5, 2, 0, 2)
    assert report.tokens == 6  # one word each, and [CLS] and [SEP]
    np.testing.assert_array_equal(values[0], values[2])
    np.testing.assert_array_equal(values[1], values[4])


def test_only_new_texts_are_computed_in_later_runs_of_any_mode(new_runner):
    assert embed(new_runner(), embedding(), ["red", "blue"], "batch")[1].computed == 2
    _, report = embed(new_runner(), embedding(), ["blue", "red", "green"], "on_demand")
    assert (report.cached, report.computed) == (2, 1)
    assert embed(new_runner(), embedding(), ["green", "blue"], "historical")[1].computed == 0


def test_no_model_is_loaded_when_the_cache_has_all_texts(new_runner, no_model):
    before, _ = embed(new_runner(), embedding(), ["red", "blue"])
    no_model()
    after, report = embed(new_runner(), embedding(), ["blue", None, "red"])
    assert (report.computed, report.tokens) == (0, 0)
    check_same(after, [before[1], None, before[0]])


@pytest.mark.parametrize("rows", [[], [None], ["", float("nan")], [b"unreadable"]], ids=repr)
def test_no_model_is_loaded_when_there_is_no_text(runner, no_model, rows):
    no_model()
    values, report = embed(runner, embedding(), rows)
    assert values == [None] * len(rows)
    assert report.texts == 0


def test_a_model_is_loaded_once_for_several_features(runner, monkeypatch):
    loaded = Counter()
    load = module.Encoder
    monkeypatch.setattr(
        module, "Encoder", lambda artifact, *rest: loaded.update([artifact.id]) or load(artifact, *rest)
    )
    for feature in (
        embedding(),
        embedding(prefix="q "),
        embedding(max_tokens=4),
        embedding(dims=2, reduction="prefix"),
    ):
        embed(runner, feature, ["red"])
    assert list(loaded.values()) == [1]


def test_a_new_model_of_the_same_name_does_not_reuse_values(tmp_path):
    runner = Runner(settings(tmp_path))
    old = export_tiny(runner.store, seed=0)
    before, _ = embed(runner, embedding(), ["red", "blue"])
    export_tiny(runner.store, seed=1)
    after, report = embed(runner, embedding(), ["red", "blue"])
    assert (report.cached, report.computed) == (0, 2)
    assert not np.allclose(before, after, atol=1e-3)
    again, report = embed(runner, BoundFeature(embedding(), old.id), ["red", "blue"])
    assert report.cached == 2
    check_same(again, before)


# --- rows without a value


@pytest.mark.parametrize(("on_empty", "empty"), [("null", None), ("zeros", np.zeros(8, dtype=np.float32))])
def test_a_row_without_text_gives_what_is_declared(runner, on_empty, empty):
    values, report = embed(runner, embedding(on_empty=on_empty), ["red", "", None, "blue"])
    check_same(values[::3], embed(runner, embedding(), ["red", "blue"])[0])
    for value in values[1:3]:
        np.testing.assert_array_equal(value, empty)
    assert (report.empty, report.invalid) == (2, 0)


def test_a_vector_that_is_not_finite_is_null_and_never_cached(runner, caplog, monkeypatch):
    encode = Encoder.encode

    def spoil(self, texts, **options):
        vectors, tokens = encode(self, texts, **options)
        vectors[[text == "blue" for text in texts]] = np.nan
        return vectors, tokens

    monkeypatch.setattr(Encoder, "encode", spoil)
    values, report = embed(runner, embedding(), ["red", "blue", "green"])
    assert [value is None for value in values] == [False, True, False]
    assert report.invalid == 1
    assert "row 1: the model gave a vector that is not finite" in caplog.text
    monkeypatch.undo()
    values, report = embed(runner, embedding(), ["red", "blue", "green"])
    assert values[1] is not None
    assert (report.cached, report.computed) == (2, 1)


@pytest.mark.parametrize("on_empty", ["null", "zeros"])
def test_a_row_that_cannot_be_read_is_null_and_its_neighbours_are_not_touched(runner, caplog, on_empty):
    values, report = embed(runner, embedding(on_empty=on_empty), ["red", b"bytes", "blue", {"a": 1}])
    assert values[1] is values[3] is None
    check_same(values[::2], embed(runner, embedding(), ["red", "blue"])[0])
    assert (report.invalid, report.empty) == (2, 0)
    assert "item_title_embedding: 2 of 4 rows could not be read" in caplog.text
    assert "row 1: expected text" in caplog.text


def test_a_missing_column_is_an_error_before_any_work(runner, no_model):
    no_model()
    with pytest.raises(MissingColumnError, match="'title'"):
        runner.compute(bind(embedding(), runner.store), {"name": ["red"]}, "batch")


# --- models that cannot be used


def test_a_model_that_is_not_on_this_machine_is_an_error(runner):
    with pytest.raises(ArtifactNotFoundError, match="ffffffffffffffff"):
        embed(runner, BoundFeature(embedding(), "f" * 64), ["red"])


def test_a_damaged_model_is_an_error(tmp_path):
    runner = Runner(settings(tmp_path))
    export_tiny(runner.store).path(GRAPH).write_bytes(b"damaged")
    with pytest.raises(ArtifactCorruptError, match=GRAPH):
        embed(runner, embedding(), ["red"])


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_feature_that_the_model_cannot_compute_is_an_error(runner, tiny, loaded_before):
    if loaded_before:
        embed(runner, embedding(), ["red"])
    with pytest.raises(ArtifactMismatchError, match="pooling='cls'"):
        embed(runner, BoundFeature(embedding(pooling="cls", prefix="new "), tiny.id), ["red"])


# --- reports


def test_runs_over_stored_rows_are_recorded_and_requests_are_not(runner):
    _, batch = embed(runner, embedding(), ["red", None, b"x"], "batch")
    _, historical = embed(runner, embedding(), ["red"], "historical")
    embed(runner, embedding(), ["red"], "on_demand")
    assert runner.cache.runs() == [batch, historical]
    assert (batch.feature, batch.mode, batch.rows, batch.empty, batch.invalid) == (
        "item_title_embedding",
        "batch",
        3,
        1,
        1,
    )
    assert batch.fingerprint == bind(embedding(), runner.store).fingerprint


@pytest.mark.parametrize(
    ("mode", "progress", "told"), [("batch", True, True), ("batch", False, False), ("on_demand", True, False)]
)
def test_a_summary_is_printed_for_batch_runs_if_asked_for(new_runner, capsys, mode, progress, told):
    embed(new_runner(progress=progress), embedding(), ["red", "blue"], mode)
    output = capsys.readouterr()
    assert output.out == ""
    assert ("2 rows, 2 distinct texts: 0 cached, 2 computed" in output.err) == told
    assert bool(output.err) == told


# --- requests


@pytest.fixture
def gate(monkeypatch):
    """Holds every inference of a request until it is set; the golden texts pass."""
    opened = threading.Event()
    encode = Encoder.encode

    def wait(self, texts, **options):
        assert "max_tokens" not in options or opened.wait(PATIENCE)
        return encode(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode", wait)
    yield opened
    opened.set()


@pytest.mark.parametrize(("on_deadline", "value"), [("null", None), ("zeros", np.zeros(8, dtype=np.float32))])
def test_a_row_that_is_late_falls_back_and_its_vector_is_there_next_time(runner, gate, on_deadline, value):
    gate.set()
    (known,), _ = embed(runner, embedding(), ["red"], "on_demand")
    gate.clear()
    feature = embedding(deadline_ms=20, on_deadline=on_deadline)
    bound = bind(feature, runner.store)
    values, statuses, report, *_ = runner.compute(bound, {"title": ["red", "blue", None, b"x", "blue"]}, "on_demand")
    assert statuses == ["ok", "fallback", "empty", "invalid", "fallback"]
    np.testing.assert_array_equal(values[0], known)
    for late in (values[1], values[4]):
        np.testing.assert_array_equal(late, value)
    assert (report.fallback, report.texts, report.cached, report.computed) == (2, 2, 1, 0)
    assert "2 fallback" in str(report)
    gate.set()
    runner.drain()
    values, statuses, report, *_ = runner.compute(bound, {"title": ["red", "blue"]}, "on_demand")
    assert (statuses, report.cached, report.fallback) == (["ok", "ok"], 2, 0)


def test_a_history_falls_back_when_one_of_its_texts_is_late(runner, gate):
    gate.set()
    embed(runner, history(), [["red"]], "on_demand", column="events")
    gate.clear()
    bound = bind(history(deadline_ms=20), runner.store)
    statuses = runner.compute(bound, {"events": [["red"], ["red", "blue"], []]}, "on_demand").statuses
    assert statuses == ["ok", "fallback", "empty"]


@pytest.mark.parametrize("mode", ["batch", "historical"])
def test_stored_rows_wait_for_ever(runner, gate, mode):
    threading.Timer(0.1, gate.set).start()
    bound = bind(embedding(deadline_ms=1), runner.store)
    assert runner.compute(bound, {"title": ["red"]}, mode).statuses == ["ok"]


def test_the_deadline_counts_from_the_call_and_covers_loading(runner, monkeypatch):
    loading = threading.Event()
    load = module.Encoder

    def slowly(*arguments):
        assert loading.wait(PATIENCE)
        return load(*arguments)

    monkeypatch.setattr(module, "Encoder", slowly)
    bound = bind(embedding(deadline_ms=20), runner.store)
    assert runner.compute(bound, {"title": ["red"]}, "on_demand").statuses == ["fallback"]
    loading.set()
    runner.drain()
    long_ago = time.monotonic() - 3600
    assert runner.compute(bound, {"title": ["red"]}, "on_demand", called=long_ago).statuses == ["ok"]  # cached
    assert runner.compute(bound, {"title": ["blue"]}, "on_demand", called=long_ago).statuses == ["fallback"]


def test_a_deadline_hides_no_error(new_runner, tiny, tmp_path):
    bound = BoundFeature(embedding(deadline_ms=1), tiny.id)
    with pytest.raises(ArtifactNotFoundError):
        new_runner(artifact_folders=(tmp_path / "nowhere",)).compute(bound, {"title": ["red"]}, "on_demand")


def test_a_late_vector_reaches_other_processes_through_the_cache(new_runner, gate):
    runner = new_runner()
    bound = bind(embedding(deadline_ms=1), runner.store)
    assert runner.compute(bound, {"title": ["red"]}, "on_demand").statuses == ["fallback"]
    gate.set()
    runner.drain()
    _, report = embed(new_runner(), embedding(), ["red"])
    assert (report.cached, report.computed) == (1, 0)


def test_many_requests_give_the_values_of_a_batch_and_encode_each_text_once(runner, expected, monkeypatch):
    encoded = Counter()
    encode = Encoder.encode

    def count(self, texts, **options):
        encoded.update(texts if "max_tokens" in options else ())
        return encode(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode", count)
    bound = bind(embedding(), runner.store)

    def request(seed):
        chosen = np.random.default_rng(seed).integers(0, len(TITLES), 5)
        values, statuses, *_ = runner.compute(bound, {"title": [TITLES[i] for i in chosen]}, "on_demand")
        assert statuses == ["ok"] * 5
        check_same(values, [expected[i] for i in chosen])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(request, range(300)))
    assert set(encoded.values()) == {1}
    totals = runner.requests.of("item_title_embedding")
    assert (totals.requests, totals.rows, totals.fallback) == (300, 1500, 0)


def test_features_that_encode_alike_share_batches_and_each_is_checked_against_the_model(runner, tiny):
    embed(runner, embedding(), ["red"], "on_demand")
    _, report = embed(runner, query(), ["red"], "on_demand", column="query")
    assert report.cached == 1
    assert len(runner._batchers) == 1
    with pytest.raises(ArtifactMismatchError, match="pooling"):
        embed(runner, BoundFeature(embedding(pooling="cls"), tiny.id), ["blue"], "on_demand")


def test_fallbacks_are_counted_and_one_warning_a_minute_tells_of_them(runner, gate, caplog):
    bound = bind(embedding(deadline_ms=1), runner.store)
    for titles in (["red", "blue"], ["green"]):
        runner.compute(bound, {"title": titles}, "on_demand")
    totals = runner.requests.of("item_title_embedding")
    assert (totals.requests, totals.rows, totals.fallback) == (2, 3, 3)
    warnings = [record.getMessage() for record in caplog.records if "fell back" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("item_title_embedding: 2 of 2 rows missed their deadline")


def test_a_runner_that_was_loaded_loads_nothing_for_a_request(runner, no_model):
    bound = bind(embedding(), runner.store)
    runner.load(bound)
    no_model()
    _, report = embed(runner, embedding(), ["red"], "on_demand")
    assert report.computed == 1


def test_requests_for_a_loaded_model_do_not_wait_while_another_is_loaded(new_runner, tmp_path, monkeypatch):
    store = ArtifactStore([tmp_path / "artifacts"])
    export_tiny(store)
    export_tiny(store, name="other", seed=1)
    runner = new_runner(artifact_folders=(tmp_path / "artifacts",))
    embed(runner, embedding(), ["red"], "on_demand")
    begun, go_on = threading.Event(), threading.Event()
    load = module.Encoder

    def slowly(*arguments):
        begun.set()
        assert go_on.wait(PATIENCE)
        return load(*arguments)

    monkeypatch.setattr(module, "Encoder", slowly)
    with ThreadPoolExecutor(1) as pool:
        other = bind(embedding(model="other"), runner.store)
        loading = pool.submit(runner.compute, other, {"title": ["red"]}, "on_demand")
        assert begun.wait(PATIENCE)
        bound = bind(embedding(), runner.store)
        assert runner.compute(bound, {"title": ["blue"]}, "on_demand").statuses == ["ok"]
        go_on.set()
        assert loading.result(PATIENCE).statuses == ["ok"]


@pytest.mark.parametrize("deadline_ms", [None, 1000 * PATIENCE])
def test_no_lock_that_another_request_needs_is_held_during_inference(new_runner, tmp_path, monkeypatch, deadline_ms):
    """While the session runs for one request, all others are answered that need no inference of the same session."""
    store = ArtifactStore([tmp_path / "artifacts"])
    export_tiny(store)
    export_tiny(store, name="other", seed=1)
    runner = new_runner(artifact_folders=(tmp_path / "artifacts",))
    feature, other = embedding(deadline_ms=deadline_ms), bind(embedding(model="other"), store)
    bound = bind(feature, store)
    for known in (bound, other):
        embed(runner, known, ["red"], "on_demand")
    encoder = runner.models.encoder(bound, "online")
    session, placement = encoder._opened
    inside, go_on = threading.Event(), threading.Event()

    class Held:
        def run(self, batch):
            inside.set()
            assert go_on.wait(PATIENCE)
            return session.run(batch)

    monkeypatch.setattr(encoder, "_opened", Opened(Held(), placement))
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(runner.compute, bound, {"title": ["blue"]}, "on_demand")
        assert inside.wait(PATIENCE)

        def status(asked, title, mode="on_demand"):
            return pool.submit(runner.compute, asked, {"title": [title]}, mode).result(PATIENCE).statuses

        assert status(bound, "red") == ["ok"]  # at hand, in memory or in the cache
        assert status(bound, None) == ["empty"]
        assert status(other, "green") == ["ok"]  # another session
        assert status(bound, "old", "batch") == ["ok"]
        assert status(bind(embedding(deadline_ms=1), store), "late") == ["fallback"]
        assert runner.requests.of(feature.name).requests > 0
        assert not held.done()
        go_on.set()
        assert held.result(PATIENCE).statuses == ["ok"]


# --- trouble


def test_values_are_computed_when_the_cache_cannot_be_written(new_runner, tmp_path, caplog, expected):
    (tmp_path / "file").write_text("no folder")
    runner = new_runner(cache_folder=tmp_path / "file" / "cache")
    for _ in range(2):
        values, report = embed(runner, embedding(), TITLES[:5])
        check_same(values, expected[:5])
        assert report.computed == 5
    assert [record.levelno for record in caplog.records if record.levelno >= logging.WARNING] == [logging.WARNING]


def test_a_cache_too_small_for_the_run_changes_no_value(new_runner, expected):
    runner = new_runner(cache_max_bytes=100)
    check_same(embed(runner, embedding(), TITLES)[0], expected)


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from llmrec_plugin.binding import bind
from llmrec_plugin.runtime import encoder
from llmrec_plugin.runtime import models as module
from llmrec_plugin.runtime.runner import Runner
from samples import embedding, settings

encoder.TEXTS_PER_CALL = 4

class Dying(module.Encoder):
    chunks = 0
    def encode(self, texts, **options):
        if "max_tokens" in options:  # a chunk, not the golden texts
            self.chunks += 1
            if self.chunks == 3:
                os._exit(9)
        return super().encode(texts, **options)

module.Encoder = Dying
runner = Runner(settings(Path(sys.argv[1]), artifact_folders=(Path(sys.argv[2]),)))
runner.compute(bind(embedding(), runner.store), {"title": sys.argv[4].split(",")}, "batch")
"""


def test_a_process_that_is_killed_loses_only_the_chunk_in_hand(new_runner, tmp_path, tiny_folder, expected, request):
    command = [
        sys.executable,
        "-c",
        KILLED,
        tmp_path,
        tiny_folder,
        request.config.rootpath / "tests",
        ",".join(TITLES[:20]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 9, done.stderr
    values, report = embed(new_runner(), embedding(), TITLES[:20])
    assert (report.cached, report.computed) == (8, 12)
    check_same(values, expected[:20])


INHERITED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from llmrec_plugin.binding import bind
from llmrec_plugin.runtime.runner import runner_for
from samples import query, settings

ours = settings(Path(sys.argv[1]), artifact_folders=(Path(sys.argv[2]),))

def work(mode, text):
    runner = runner_for(ours)
    values, statuses, *_ = runner.compute(bind(query(), runner.store), {"query": [text]}, mode)
    assert statuses == ["ok"], statuses

work("batch", "red")
work("on_demand", "blue")
child = os.fork()
if child == 0:
    work("batch", "fast")
    work("on_demand", "slow")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
work("on_demand", "new")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_serves_and_does_not_wait_for_threads_it_does_not_have(tmp_path, tiny_folder, request):
    """Neither the inherited session nor the thread of the inherited batcher may be touched."""
    command = [sys.executable, "-c", INHERITED, tmp_path, tiny_folder, request.config.rootpath / "tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


FORKING = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import numpy as np
from llmrec_plugin.binding import bind
from llmrec_plugin.runtime.runner import runner_for
from samples import embedding, settings

ours = settings(Path(sys.argv[1]), artifact_folders=(Path(sys.argv[2]),))
bound = bind(embedding(), runner_for(ours).store)
def work(*titles):
    for mode in ("on_demand", "batch"):
        rows = {"title": [f"{title} {mode}" for title in titles]}
        values, _, report, *_ = runner_for(ours).compute(bound, rows, mode)
        assert report.computed == len(titles), report
        assert all(np.isfinite(value).all() for value in values)
work("red", "blue")
before = runner_for(ours)
child = os.fork()
if child == 0:
    assert runner_for(ours) is not before
    work("fast", "slow")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert runner_for(ours) is before
work("new", "old")
"""


def test_a_forked_child_has_sessions_of_its_own(tmp_path, tiny_folder, request):
    command = [sys.executable, "-c", FORKING, tmp_path, tiny_folder, request.config.rootpath / "tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_has_one_runner_for_the_same_settings(tmp_path):
    assert runner_for(settings(tmp_path)) is runner_for(settings(tmp_path))
    assert runner_for(settings(tmp_path)) is not runner_for(settings(tmp_path, threads=1))
