"""What goes wrong between two machines costs its own row at most, and never shows the key."""

import dataclasses
import socket

import pytest
from endpoint import HTML, KEY, Reply
from openai_requests import request

from llmrec_plugin import Decoding
from llmrec_plugin.systems.openai_chat.limits import REST, TRIP

GREEDY = Decoding(max_new_tokens=8)


def ask(opened, *texts):
    return opened.generate([request(text) for text in texts], GREEDY)


def check_failed(completion, message):
    assert (completion.text, completion.finish, completion.lasting) == ("", "error", False)
    assert message in completion.error


@pytest.mark.parametrize(
    "trouble",
    [Reply(500), Reply(502, HTML), Reply(408), Reply(hang_up="before"), Reply(body="x" * 99, hang_up="within")],
    ids=["500", "502", "408", "closed", "cut off"],
)
def test_trouble_that_passes_costs_pauses_that_double(session, server, time, trouble):
    server.replies = [trouble] * 3
    assert ask(session(), "x")[0].text == "X"
    assert time.sleeps == [0.5, 1.0, 2.0]


def test_after_too_many_requests_it_waits_as_long_as_it_is_asked_to(session, server, time):
    server.replies = [Reply(429, headers={"Retry-After": "7"})]
    assert ask(session(), "x")[0].text == "X"
    assert time.sleeps == [7.0]


def test_trouble_that_stays_fails_its_row_and_no_other(session, server):
    server.replies = [Reply(500, {"error": "out of memory"})] * 3
    failed, answered = ask(session(RETRIES=2), "x", "y")
    check_failed(failed, "gave no completion in 3 attempts")
    assert "out of memory" in failed.error
    assert "LLMREC_OPENAI_RETRIES" in failed.error
    assert answered.text == "Y"


def test_an_address_where_nobody_listens_fails_its_rows(session):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (failed,) = ask(session(URL=f"http://127.0.0.1:{port}", RETRIES=1), "x")
    check_failed(failed, "ConnectionRefusedError")


def test_a_late_answer_is_not_waited_for(session, server):
    server.delay = 0.3
    opened = session(TIMEOUT=0.05, RETRIES=0)
    (failed,) = ask(opened, "x")
    check_failed(failed, "TimeoutError")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(body="{", kind="application/json"), "expected a JSON object with choices, got application/json '{'"),
        (Reply(body=HTML), "expected a JSON object with choices, got text/html"),
        (Reply(body=[1]), "expected a JSON object with choices"),
        (Reply(body={"error": {"message": "overloaded"}}), "overloaded"),
        (Reply(body={"choices": []}), "expected choices with one completion"),
        (Reply(body={"choices": {}}), "expected choices with one completion"),
        (Reply(body={"choices": [3]}), "expected choices with one completion"),
        (Reply(body={"choices": [{}]}), "expected a completion's text"),
        (Reply(body={"choices": [{"message": {"content": None}}]}), "expected a completion's text"),
        (Reply(body={"choices": [{"message": {"content": 3}}]}), "expected a completion's text"),
        (Reply(body={"model": "other", "choices": [{"message": {"content": "X"}}]}), "got one by 'other'"),
    ],
)
def test_an_answer_that_is_none_fails_its_row_and_no_other(session, server, reply, message):
    server.replies = [reply]
    failed, answered = ask(session(), "x", "y")
    check_failed(failed, message)
    assert answered.text == "Y"


@pytest.mark.parametrize("name", ["writer", "writer-1", "writer:1", "1", None])
def test_an_answer_names_the_model_its_version_or_both(session, server, name):
    server.name = name
    assert ask(session(), "x")[0].text == "X"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_is_about_its_own_row(session, server, time, status):
    server.replies = [Reply(status, {"error": "too long"})] * (TRIP + 1)
    *failed, answered = ask(session(), *"x" * (TRIP + 1), "y")
    for completion in failed:
        check_failed(completion, f"refused a request: {status} ")
    assert answered.text == "Y"
    assert time.sleeps == []


def test_an_endpoint_that_does_not_answer_is_left_alone_for_a_while(session, server, time):
    server.replies = [Reply(401, {"error": "no"})] * TRIP
    opened = session()
    failed = ask(opened, *"x" * (TRIP + 3))
    assert len(server.requests) == TRIP
    check_failed(failed[TRIP - 1], "Set LLMREC_OPENAI_KEY")
    check_failed(failed[TRIP], f"not asked for another {REST:.0f} s, since {TRIP} requests in a row failed")
    time.time += REST
    assert [item.text for item in ask(opened, "x", "y")] == ["X", "Y"]


def test_no_more_requests_are_made_than_a_minute_allows(session, server, time):
    ask(session(PER_MINUTE=30), *"abc")
    assert time.sleeps == [2.0, 2.0]


def test_further_attempts_wait_for_their_turn(session, server, time):
    server.replies = [Reply(500)]
    ask(session(PER_MINUTE=6), "a")
    assert time.sleeps == [10.0]


def test_tokens_are_counted_and_bounded(session, server):
    opened = session(TOKEN_LIMIT=29)  # "Repeat: x" and the answer are 10 by the server's count
    found = ask(opened, *"abcd")
    assert [item.text for item in found] == ["A", "B", "", ""]
    check_failed(found[2], "LLMREC_OPENAI_TOKEN_LIMIT=29 is reached: 20 tokens were used")
    assert len(server.requests) == 2


def test_tokens_are_estimated_where_the_server_does_not_count(session, server):
    server.change = lambda answer: {name: value for name, value in answer.items() if name != "usage"}
    found = ask(session(TOKEN_LIMIT=25), *"abc")  # 2 of the prompt and 8 of the answer
    assert [item.finish for item in found] == ["stop", "stop", "error"]


# --- the key


@pytest.mark.parametrize(
    "reply",
    [
        Reply(401, {"error": f"no such key: {KEY}"}),
        Reply(400, {"authorization": f"Bearer {KEY}"}),
        Reply(500, f"{KEY} {KEY}"),
        Reply(hang_up="before"),
        Reply(200, f"<html>{KEY}</html>"),
        Reply(200, {"model": KEY, "choices": []}),
    ],
    ids=["refused", "quoted", "failed", "closed", "echoed", "named"],
)
def test_the_key_is_in_no_error_log_or_repr(session, server, caplog, reply):
    caplog.set_level("DEBUG")
    server.replies = [reply] * 9
    opened = session(KEY=KEY, RETRIES=1)
    (failed,) = ask(opened, "x")
    assert server.requests[-1]["authorization"] == f"Bearer {KEY}"
    check_failed(failed, "LLMREC" if reply.status != 200 or reply.hang_up else "expected")
    everything = failed.error + caplog.text + repr(opened._settings) + opened.provider + repr(vars(opened))
    assert KEY not in everything


def test_an_error_that_nobody_thought_of_fails_its_row(session, server, monkeypatch):
    opened = session()
    monkeypatch.setattr(opened._transport, "post", lambda *_, **__: dataclasses.replace(None))
    (failed,) = ask(opened, "x")
    check_failed(failed, "TypeError")
