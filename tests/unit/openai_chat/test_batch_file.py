"""Requests go to files, answers come from files."""

import json
import os

import pytest
from openai_requests import request

from llmrec_plugin import Decoding
from llmrec_plugin.errors import ProviderError
from llmrec_plugin.systems.openai_chat import batch
from llmrec_plugin.systems.openai_chat.batch import open_batch

GREEDY = Decoding(max_new_tokens=8)


@pytest.fixture
def opened(export, tmp_path, monkeypatch):
    """Opens the session anew, as another run would; variables without their prefix."""
    monkeypatch.setenv("LLMREC_BATCH_FOLDER", str(tmp_path / "batches"))
    return lambda **model: open_batch(export(**model), device="auto", threads=None)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "batches" / "ours"


def ask(session, *texts, decoding=GREEDY):
    return session.generate([request(text) for text in texts], decoding)


def written(folder):
    """All lines of requests, by the files' order of writing."""
    paths = sorted(folder.glob("requests-*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def answer(line, text, **changes):
    """A batch service's answer to a line of a request."""
    content = {"role": "assistant", "content": text}
    body = {"model": "writer", "choices": [{"message": content, "finish_reason": "stop"}]}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": line["custom_id"], "response": response, "error": None} | changes


def put(folder, lines, name="responses.jsonl", later=0):
    path = folder / name
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    if later:
        now = path.stat().st_mtime_ns + later
        os.utime(path, ns=(now, now))


def test_what_is_not_answered_is_written_and_answered_by_the_next_run(opened, folder):
    waiting = ask(opened(), "a", "b", "a")
    assert {(item.finish, item.lasting, item.text) for item in waiting} == {("error", False, "")}
    assert "waiting for the batch: send" in waiting[0].error
    lines = written(folder)
    assert len(lines) == 2  # equal requests are one
    assert {line["method"] for line in lines} == {"POST"}
    assert {line["url"] for line in lines} == {"/v1/chat/completions"}
    assert lines[0]["body"]["messages"] == [{"role": "user", "content": "Repeat: a"}]
    assert len({line["custom_id"] for line in lines}) == 2

    put(folder, [answer(lines[1], "B"), answer(lines[0], "A")])
    assert [item.text for item in ask(opened(), "a", "b", "a")] == ["A", "B", "A"]
    assert written(folder) == lines


def test_what_waits_is_not_written_again(opened, folder):
    session = opened()
    ask(session, "a")
    ask(session, "a", "b")
    ask(opened(), "a", "b")
    assert len(written(folder)) == 2
    assert len(list(folder.iterdir())) == 1  # one file, and no temporary ones


def test_answers_that_come_while_a_run_goes_on_are_seen(opened, folder):
    session = opened()
    ask(session, "a")
    put(folder, [answer(written(folder)[0], "A")], name="responses-1.jsonl")
    assert ask(session, "a")[0].text == "A"


def test_a_file_that_is_long_enough_is_followed_by_another(opened, folder, monkeypatch):
    monkeypatch.setattr(batch, "LARGEST_FILE", 600)
    session = opened()
    for text in "abcdef":
        ask(session, text)
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert len(sizes) > 1
    assert max(sizes) <= 600
    assert len(written(folder)) == 6


def test_other_decoding_or_another_version_is_another_request(opened, folder):
    ask(opened(), "a")
    put(folder, [answer(written(folder)[0], "A")])
    assert ask(opened(), "a", decoding=Decoding(max_new_tokens=9))[0].finish == "error"
    assert ask(opened(source="endpoint:writer@2"), "a")[0].finish == "error"
    assert ask(opened(), "a")[0].text == "A"
    assert len(written(folder)) == 3


def test_what_the_service_did_not_answer_is_asked_again_once(opened, folder):
    ask(opened(), "a")
    (line,) = written(folder)
    failure = {"response": {"status_code": 500, "body": {"error": "busy"}}}
    put(folder, [answer(line, "", **failure)], name="responses-errors.jsonl", later=10**9)
    (found,) = ask(opened(), "a")
    assert "the batch did not answer it (status 500" in found.error
    assert len(written(folder)) == 2
    for path in folder.glob("requests-*"):
        os.utime(path, ns=(path.stat().st_mtime_ns + 10**10,) * 2)
    ask(opened(), "a")
    assert len(written(folder)) == 2
    put(folder, [answer(line, "A")], name="responses-2.jsonl")
    assert ask(opened(), "a")[0].text == "A"


def test_the_first_answer_counts_and_any_before_a_failure(opened, folder):
    ask(opened(), "a")
    (line,) = written(folder)
    failed = answer(line, "", response=None, error={"code": "expired"})
    put(folder, [failed, answer(line, "A"), answer(line, "B"), failed])
    assert ask(opened(), "a")[0].text == "A"


def test_broken_lines_are_passed_over_and_reported(opened, folder, caplog):
    ask(opened(), "a", "b")
    first, second = written(folder)
    whole = json.dumps(answer(second, "B"))
    put(folder, [answer(first, "A"), "\n", "no JSON\n", "[1]\n", '{"custom_id": 3}\n', whole[: len(whole) // 2]])
    found = ask(opened(), "a", "b")
    assert [item.text for item in found] == ["A", ""]
    assert "4 lines are no JSON with a custom_id, the first is line 3" in caplog.text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "other", "choices": [{"message": {"content": "A"}}]}, "got one by 'other'"),
        ({"choices": []}, "expected choices"),
        (None, "expected a JSON object"),
        ("x", "expected a JSON object"),
    ],
)
def test_an_answer_that_is_none_of_this_model_is_not_used(opened, folder, body, message):
    ask(opened(), "a")
    put(folder, [answer(written(folder)[0], "A", response={"status_code": 200, "body": body})])
    (found,) = ask(opened(), "a")
    assert (found.finish, found.lasting) == ("error", False)
    assert message in found.error


def test_a_model_without_chat_asks_for_plain_completions(opened, folder):
    ask(opened(chat=False), "a")
    (line,) = written(folder)
    assert (line["url"], line["body"]["prompt"]) == ("/v1/completions", "Repeat: a")


def test_completions_are_told_as_they_are_given(opened):
    told = []
    opened().generate([request("a")], GREEDY, done=lambda number, completion: told.append((number, completion.finish)))
    assert told == [(0, "error")]


def test_it_gives_no_scores(opened):
    with pytest.raises(ProviderError, match=r"gives no scores\. Declare a Choice"):
        opened().score([request("a")], ("yes", "no"))


def test_nothing_is_written_for_no_requests(opened, folder):
    assert ask(opened()) == []
    assert not folder.exists()
