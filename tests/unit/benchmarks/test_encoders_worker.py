"""The two sides of the protocol, and a run that outlives its engines."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.encoders.client import Worker, WorkerError
from benchmarks.encoders.corpus import Corpus
from benchmarks.encoders.engines import Engine
from benchmarks.encoders.models import Model
from benchmarks.encoders.run import Pass, Plan, Run

TEXTS = ["alpha", "beta", "gamma", "delta"]
ENVIRON = {"PYTHONPATH": str(Path(__file__).parent)}


@pytest.fixture
def start(tmp_path):
    """Starts the fake engine; every process ends with the test."""
    started = []

    def start(timeout=60.0, **options):
        command = [sys.executable, "-m", "benchmarks.encoders.worker", "fake_engine", json.dumps(options)]
        started.append(Worker(command, tmp_path / "log", ENVIRON, timeout))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def loaded(start, tmp_path):
    """Starts a fake engine that holds `TEXTS` under the name "some"."""
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(TEXTS))

    def begin(**options):
        worker = start(**options)
        assert worker.ask("texts", name="some", path=str(path)) == {}
        return worker

    return begin


def test_a_worker_says_what_it_loaded(start):
    worker = start()
    assert worker.ready["versions"] == {"numpy": np.__version__}
    assert 0 <= worker.ready["import_s"] <= worker.ready["first_s"] <= worker.first_result_s


def test_vectors_come_in_the_order_of_the_texts(loaded, tmp_path):
    worker = loaded(dims=5)
    worker.ask("vectors", name="some", path=str(tmp_path / "vectors.npy"))
    vectors = np.load(tmp_path / "vectors.npy")
    assert vectors.dtype == np.float32
    assert ["".join(map(chr, vector.astype(int))).strip() for vector in vectors] == TEXTS


def test_answers_are_not_disturbed_by_what_a_library_prints(loaded, tmp_path):
    worker = loaded()
    assert set(worker.ask("encode", name="some", count=2)) == {"seconds", "cpu_seconds"}
    assert len(worker.ask("single", name="some", start=1, stop=4)["milliseconds"]) == 3
    assert "libraries print" in (tmp_path / "log").read_text()


def test_usage_counts_memory_and_the_time_between_commands(loaded):
    usage = loaded().ask("usage")
    assert usage["peak_rss_mb"] > 5
    assert usage["idle_seconds"] > 0
    assert usage["idle_cpu_seconds"] >= 0


def test_an_engine_that_does_not_load_gives_its_reason(start):
    with pytest.raises(WorkerError, match="ImportError: no such library"):
        start(missing=True)


def test_a_command_that_fails_gives_its_reason_and_the_process_lives(loaded):
    worker = loaded()
    with pytest.raises(WorkerError, match="KeyError: 'others'"):
        worker.ask("encode", name="others", count=1)
    assert worker.ask("encode", name="some", count=1)["seconds"] >= 0


def test_a_process_that_ends_gives_its_last_words(loaded):
    worker = loaded(fail_after=1, misbehavior="exit")  # the first call is the worker's own
    with pytest.raises(WorkerError, match="ended with 3: the last words"):
        worker.ask("encode", name="some", count=1)
    with pytest.raises(WorkerError, match="ended with 3"):
        worker.ask("usage")


def test_a_process_that_does_not_answer_is_given_up(loaded):
    worker = loaded(fail_after=1, misbehavior="sleep", timeout=5.0)
    with pytest.raises(WorkerError, match="no answer in 5 s"):
        worker.ask("encode", name="some", count=1)


def fake(name, **options):
    return Engine(
        name=name,
        label=name,
        adapter="fake_engine",
        environment=None,
        options=options,
        environ=ENVIRON,
        ours=name == "us",
    )


def test_a_run_goes_on_without_the_engines_that_fail(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ENVIRON["PYTHONPATH"])
    texts = [letter * 3 + "rest" for letter in "abcdefghijklmnopqrst"]
    corpus = Corpus("mixed", texts, np.full(20, 3))
    config = {"hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 1}
    here = dict.fromkeys(("folder", "onnx", "graph", "tokenizer"), tmp_path)
    plan = Plan(
        engines=[
            fake("us"),
            fake("peer"),
            fake("coarse", noise=40),
            fake("late", fail_after=3),
            fake("none", missing=True),
        ],
        passes=[Pass(corpus, 10), Pass(corpus, 10, 1)],
        short=Corpus("short", texts, corpus.lengths),
        repeats=3,
        starts=2,
        folder=tmp_path,
        reference=fake("reference"),
        baseline="peer",
        peaks="fake_engine",
    )
    *before, result = Run(plan, Model(name="fake", max_tokens=8, dims=8, config=config, **here))()

    failures = {name: about["failure"] for name, about in result["engines"].items() if about["failure"]}
    assert failures == {"late": "ValueError: no more", "none": "ImportError: no such library"}
    quiet, busy = result["passes"]
    assert [part["passes"] for part in before] == [[quiet]]
    assert (quiet["busy"], busy["busy"]) == (0, 1)
    assert (quiet["texts"], quiet["tokens"], quiet["compared"]) == (10, 30, 20)
    rows = {row["name"]: row for row in quiet["rows"]}
    assert set(rows) == {"us", "peer", "coarse"}
    assert quiet["best_exact_peer"] == "peer"
    assert rows["peer"]["against_plain"] == 1
    assert rows["us"]["cosine_min"] == pytest.approx(1)
    assert rows["us"]["overlap"] == 1
    assert rows["coarse"]["cosine_min"] < 0.999
    assert all(len(seconds) == 3 for seconds in quiet["seconds"].values())
    assert json.loads(json.dumps(result)) == result
