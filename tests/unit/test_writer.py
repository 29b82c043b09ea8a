"""Rows -> what a model writes: statuses, cache, failures, deadlines; the engine is a stand-in."""

import json
import threading
import time
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from samples import labelled, written
from tiny import WORDS, add_generator, export_tiny

from llmrec_plugin import transform
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundFeature, bind, to_values
from llmrec_plugin.errors import ArtifactMismatchError, DeclarationError, EngineError
from llmrec_plugin.generation import Completion
from llmrec_plugin.pipeline.columns import Written
from llmrec_plugin.runtime import writer as module
from llmrec_plugin.runtime.cache import RunReport
from llmrec_plugin.specs import Choice, GeneratedEmbeddingFeature, Scores, ShortText, Tags

PATIENCE = 20
LABELS = ("red", "green", "blue", "fast", "slow")


class Engine:
    """Answers with the title in upper case; titles say what else happens."""

    provider = "test"

    def __init__(self):
        self.prompts = Counter()
        self.open = threading.Event()
        self.open.set()

    def generate(self, requests, decoding, output=None, *, done=None):
        assert self.open.wait(PATIENCE)
        return [self._answer(request, "" if isinstance(output, Choice) else "\nand so on") for request in requests]

    def score(self, requests, answers):
        rows = [[float(len(answer) * len(_title(request))) for answer in answers] for request in requests]
        scores = np.array(rows, dtype=np.float32)
        scores[["nan" in _title(request) for request in requests]] = np.nan
        return scores

    def _answer(self, request, more):
        title = _title(request)
        self.prompts[title] += 1
        if "down" in title:
            return Completion("", "error", error="HTTP 503", lasting=False)
        if "nan" in title:
            return Completion("", "error", error="not finite")
        return Completion("" if "mute" in title else f" {title.upper()}{more}", "stop")


def _title(request):
    return (
        next(segment.text for segment in request.user if segment.data).removeprefix("<title>").removesuffix("</title>")
    )


@pytest.fixture
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(module, "open_session", lambda artifact, settings: engine)
    return engine


@pytest.fixture
def runner(engine, new_runner, tmp_path):
    store = ArtifactStore([tmp_path / "own"])
    add_generator(store)
    export_tiny(store, name="labels", labels=LABELS)
    export_tiny(store)
    return new_runner(artifact_folders=(tmp_path / "own",))


def compute(runner, feature, titles, mode="batch"):
    computed = runner.compute(bind(feature, runner.store), {"title": titles}, mode)
    runner.drain()
    return computed


def plain(computed):
    return [value.value if isinstance(value, Written) else value for value in computed.values]


def test_each_row_has_its_value_and_status(runner, engine):
    computed = compute(runner, written(), ["red", None, "blue", "red", b"\x00", "mute", " "])
    assert plain(computed) == ["RED", None, "BLUE", "RED", None, None, None]
    assert computed.statuses == ["ok", "empty", "ok", "ok", "invalid", "invalid", "empty"]
    assert set(computed.invalid) == {4, 5}
    assert engine.prompts == {"red": 1, "blue": 1, "mute": 1}
    report = computed.report
    assert (report.rows, report.empty, report.invalid, report.texts, report.computed) == (7, 2, 2, 3, 3)


@pytest.mark.parametrize("mode", ["batch", "on_demand", "historical", "push"])
def test_nothing_is_written_twice(runner, engine, new_runner, mode, tmp_path):
    compute(runner, written(), ["red", "mute"])
    again = compute(new_runner(artifact_folders=(tmp_path / "own",)), written(), ["red", "mute", "blue"], mode)
    assert plain(again) == ["RED", None, "BLUE"]
    assert again.statuses == ["cached", "invalid", "ok"]
    assert engine.prompts == {"red": 1, "mute": 1, "blue": 1}


def test_every_mode_gives_the_same_value(runner, new_runner, tmp_path):
    titles = [f"{a} {b}" for a in WORDS[:5] for b in WORDS[5:9]]
    found = []
    for number, mode in enumerate(["batch", "on_demand", "historical"]):
        other = new_runner(artifact_folders=(tmp_path / "own",), cache_folder=tmp_path / f"cache{number}")
        found.append(plain(compute(other, labelled(output=Tags(min_score=0.5)), titles, mode)))
    assert found[0] == found[1] == found[2]
    assert len({len(tags) for tags in found[0]}) > 1


def test_a_fallback_stands_for_what_is_invalid(runner):
    computed = compute(runner, written(fallback="n/a"), ["red", "mute", None, "nan"])
    assert plain(computed) == ["RED", "n/a", None, "n/a"]
    assert computed.statuses == ["ok", "fallback", "empty", "fallback"]
    assert not computed.invalid
    report = RunReport.begin("f", "p", "batch").plus(computed.report).plus(computed.report)
    assert (report.fallback, report.invalid) == (4, 0)


def test_no_answer_is_asked_for_again(runner, engine):
    for _ in range(2):
        computed = compute(runner, written(), ["red", "down"])
        assert plain(computed) == ["RED", None]
        assert computed.unanswered == {1: "HTTP 503"}
    assert engine.prompts == {"red": 1, "down": 2}


def test_a_late_row_falls_back_and_is_there_the_next_time(runner, engine):
    feature = written(deadline_ms=50, fallback="n/a")
    engine.open.clear()
    computed = runner.compute(bind(feature, runner.store), {"title": ["red"]}, "on_demand")
    assert (plain(computed), computed.statuses) == (["n/a"], ["fallback"])
    engine.open.set()
    runner.drain()
    computed = compute(runner, feature, ["red"], "on_demand")
    assert (plain(computed), computed.statuses) == (["RED"], ["cached"])
    assert engine.prompts == {"red": 1}


def test_requests_that_want_the_same_share_one_answer(runner, engine):
    engine.open.clear()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(compute(runner, written(), ["red"], "on_demand")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    engine.open.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [plain(computed) for computed in found] == [["RED"]] * 4
    assert engine.prompts == {"red": 1}


def test_scores_are_shares_of_the_answers(runner):
    feature = written(output=Scores(answers=("a", "bb")))
    computed = compute(runner, feature, ["red", "nan"])
    assert computed.values[0].value == pytest.approx([1 / (1 + np.exp(3)), 1 / (1 + np.exp(-3))])
    assert computed.values[1] is None
    one = compute(runner, written(output=Scores(answers=("a", "bb"), of="bb")), ["red"])
    assert one.values[0].value == computed.values[0].value[1]


def test_labels_are_those_above_their_threshold(runner, tmp_path):
    store = ArtifactStore([tmp_path / "own"])
    export_tiny(store, name="labels", labels=LABELS, thresholds=(0.6, 0.5, 0.4, 0.3, 0.2))
    bound = bind(labelled(output=Tags(max_items=3)), store)
    [value] = runner.compute(bound, {"title": ["fast red server"]}, "batch").values
    logits, _ = runner.models.encoder_of(store.current("labels"), "batch").encode(["fast red server"])
    scores = 1 / (1 + np.exp(-logits[0].astype(float)))
    expected = [i for i in np.argsort(-scores) if scores[i] >= (0.6, 0.5, 0.4, 0.3, 0.2)[i]][:3]
    assert value.value == tuple(LABELS[i] for i in expected)
    assert value.ids == tuple(expected)
    assert value.scores == pytest.approx(scores[expected], abs=1e-6)


def test_a_vocabulary_keeps_some_labels(runner):
    computed = compute(runner, labelled(output=Tags(vocabulary=("slow", "blue"), min_score=0)), ["red"])
    [value] = computed.values
    assert sorted(value.value) == ["blue", "slow"]
    assert [("slow", "blue")[i] for i in value.ids] == list(value.value)


def test_the_text_is_written_once_for_its_embedding(runner, engine):
    encoder = {"pooling": "mean", "normalize": True, "prefix": "", "metric": "cosine", "max_tokens": 16, "dims": 8}
    feature = GeneratedEmbeddingFeature(name="v", entity="item", model="tiny", of=written(), **encoder)
    compute(runner, written(), ["red"])
    computed = compute(runner, feature, ["red", "blue", None, "mute", "down"])
    assert engine.prompts == {"red": 1, "blue": 1, "mute": 1, "down": 1}
    assert computed.statuses == ["ok", "ok", "empty", "invalid", "invalid"]
    assert computed.unanswered == {4: "HTTP 503"}
    own, _ = runner.models.encoder(BoundFeature(feature, runner.store.current_id("tiny")), "batch").encode(
        ["RED", "BLUE"]
    )
    np.testing.assert_allclose(np.stack(computed.values[:2]), own, atol=1e-6)


def test_a_model_must_fit_its_feature(runner):
    with pytest.raises(ArtifactMismatchError, match="has no label 'pink'"):
        bind(labelled(output=Tags(vocabulary=("pink",))), runner.store)
    with pytest.raises(ArtifactMismatchError, match="scores labels: declare output=Tags"):
        bind(labelled(output=ShortText()), runner.store)
    with pytest.raises(ArtifactMismatchError, match="is an encoder and writes nothing"):
        bind(labelled(model="tiny"), runner.store)
    with pytest.raises(DeclarationError, match="need a vocabulary and"):
        bind(written(output=Tags()), runner.store)
    with pytest.raises(DeclarationError, match="have no scores"):
        bind(written(output=Tags(vocabulary=("a",), scores=True)), runner.store)


def test_a_choice_that_is_none_is_invalid_with_the_reason(runner):
    computed = compute(runner, written(output=Choice(options=("RED", "BLUE"))), ["red", "green"])
    assert plain(computed) == ["RED", None]
    assert "expected one of 2 options" in computed.invalid[1]


def test_rows_without_an_answer_are_left_out_for_engines_of_others(runner, monkeypatch):
    monkeypatch.setattr(transform, "runner_for", lambda _: runner)
    bound = bind(written(status=True), runner.store)
    payload = json.dumps({"bound": to_values(bound), "keep": ["item", "at"]})
    view = transform.Transform("batch", "item_title_summary", payload)
    frame = pd.DataFrame({"item": ["a", "b", "c"], "at": [1, 2, 3], "title": ["red", "down", "blue"]})
    expected = {"item": ["a", "c"], "item_title_summary": ["RED", "BLUE"], "item_title_summary_status": ["ok", "ok"]}
    result = view(frame)
    assert {name: result[name].tolist() for name in expected} == expected
    batch = view.transform_batch(pa.RecordBatch.from_pandas(frame))
    assert batch.column("item_title_summary").to_pylist() == ["RED", "BLUE"]
    with pytest.raises(EngineError, match="1 of 3 rows got no answer"):
        view.transform_frame(frame, "historical")
