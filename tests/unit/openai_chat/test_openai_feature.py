"""A feature whose model an endpoint has, from rows to values."""

import json

import pytest
from endpoint import Reply
from samples import written

from llmrec_plugin import Choice, Prompt, Slot
from llmrec_plugin.binding import bind
from llmrec_plugin.pipeline.columns import Written

PROMPT = Prompt(name="words", version=1, user="Repeat this word: {{title}}\nThe word:", slots=(Slot(name="title"),))


@pytest.fixture
def compute(server, export, new_runner, tmp_path, monkeypatch):
    """Computes rows as a new process would."""
    export()
    monkeypatch.setenv("LLMREC_OPENAI_URL", server.url)
    monkeypatch.setenv("LLMREC_OPENAI_RETRIES", "0")
    monkeypatch.setenv("LLMREC_OPENAI_CONCURRENCY", "1")
    monkeypatch.setenv("LLMREC_BATCH_FOLDER", str(tmp_path / "batches"))

    def computed(titles, generator="openai", **changes):
        runner = new_runner(artifact_folders=(tmp_path / "artifacts",), generator=generator)
        feature = written(model="ours", prompt=PROMPT, text=None, status=True, **changes)
        found = runner.compute(bind(feature, runner.store), {"title": titles}, "batch")
        runner.drain()
        values = [value.value if isinstance(value, Written) else value for value in found.values]
        return list(zip(values, found.statuses, strict=True))

    return computed


def test_equal_rows_are_asked_once_and_answers_are_kept(compute, server):
    server.write = title_of
    assert compute(["red", "blue", None, "red"]) == [("RED", "ok"), ("BLUE", "ok"), (None, "empty"), ("RED", "ok")]
    assert len(server.requests) == 2
    assert compute(["red", "green"]) == [("RED", "cached"), ("GREEN", "ok")]
    assert len(server.requests) == 3


def test_a_row_that_was_not_answered_is_asked_for_again(compute, server):
    server.write = title_of
    server.replies = [Reply(500, "busy")]
    assert compute(["red", "blue"]) == [(None, "invalid"), ("BLUE", "ok")]
    assert compute(["red", "blue"]) == [("RED", "ok"), ("BLUE", "cached")]


def test_an_answer_that_is_no_value_is_not_asked_for_again(compute, server):
    server.write = title_of
    choice = Choice(options=("red", "blue"))
    assert compute(["red", "green"], output=choice) == [("red", "ok"), (None, "invalid")]
    assert compute(["red", "green"], output=choice) == [("red", "cached"), (None, "invalid")]
    assert len(server.requests) == 2


def test_a_batch_of_files_takes_two_runs(compute, server, tmp_path):
    assert compute(["red"], "batch-file") == [(None, "invalid")]
    (requests,) = (tmp_path / "batches" / "ours").glob("requests-*.jsonl")
    line = json.loads(requests.read_text())
    body = {"model": "writer", "choices": [{"message": {"content": "Red"}, "finish_reason": "stop"}]}
    response = {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}}
    requests.with_name("responses.jsonl").write_text(json.dumps(response) + "\n")
    assert compute(["red"], "batch-file") == [("Red", "ok")]
    assert server.requests == []


def title_of(prompt):
    return prompt.partition("<title>")[2].partition("</title>")[0]
