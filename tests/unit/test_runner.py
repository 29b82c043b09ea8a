"""Rows as values: order, duplicates, cache, failures."""

import logging
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from samples import embedding, history, settings
from tiny import WORDS, export_tiny

from llmrec_plugin.artifacts import GRAPH
from llmrec_plugin.binding import BoundFeature, bind
from llmrec_plugin.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactNotFoundError, MissingColumnError
from llmrec_plugin.runtime import runner as module
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.runner import Runner, runner_for

TITLES = [f"{a} {b} {c}" for a in WORDS[:7] for b in WORDS[7:14] for c in WORDS[14:20]]


def embed(runner, feature, rows, mode="batch", column="title"):
    bound = feature if isinstance(feature, BoundFeature) else bind(feature, runner.store)
    values, _, report = runner.embed(bound, {column: rows}, mode)
    runner.drain()
    return values, report


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
    monkeypatch.setattr(module, "TEXTS_PER_CHUNK", 10)
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
        runner.embed(bind(embedding(), runner.store), {"name": ["red"]}, "batch")


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
from llmrec_plugin.runtime import runner as module
from llmrec_plugin.runtime.runner import Runner
from samples import embedding, settings

module.TEXTS_PER_CHUNK = 4

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
runner.embed(bind(embedding(), runner.store), {"title": sys.argv[4].split(",")}, "batch")
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
        values, _, report = runner_for(ours).embed(bound, {"title": [f"{title} {mode}" for title in titles]}, mode)
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
