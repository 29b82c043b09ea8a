"""What goes wrong between two machines passes, or ends in an error that says what to do and never shows the key."""

import dataclasses
import email.utils
import socket
import ssl
import threading
import traceback

import pytest
from encoding import check_same
from endpoint import HTML, KEY, ONE, Reply

from llmrec_plugin.errors import RemoteError
from llmrec_plugin.systems.remote.configuration import load_remote_settings
from llmrec_plugin.systems.remote.session import RemoteSession
from llmrec_plugin.systems.remote.transport import LONGEST_PAUSE


def test_after_too_many_requests_it_waits_as_long_as_it_is_asked_to(session, server, time, reference):
    server.replies = [Reply(429, headers={"Retry-After": "7"})]
    check_same(session().run(ONE), reference.encode(ONE.texts)[0])
    assert time.sleeps == [7.0]


def test_a_date_is_a_time_to_wait_for(session, server, time):
    server.replies = [Reply(503, headers={"Retry-After": email.utils.formatdate(time.time + 9, usegmt=True)})]
    session().run(ONE)
    assert time.sleeps == [9.0]


@pytest.mark.parametrize("header", ["soon", "", "-3"])
def test_a_time_to_wait_that_means_nothing_is_not_heeded(session, server, time, header):
    server.replies = [Reply(429, headers={"Retry-After": header})]
    session().run(ONE)
    assert time.sleeps == [0.5]


@pytest.mark.parametrize(
    "trouble",
    [Reply(500), Reply(502, HTML), Reply(408), Reply(hang_up="before"), Reply(body="x" * 99, hang_up="within")],
    ids=["500", "502", "408", "closed", "cut off"],
)
def test_trouble_that_passes_costs_pauses_that_double(session, server, time, reference, trouble):
    server.replies = [trouble, trouble, trouble]
    check_same(session().run(ONE), reference.encode(ONE.texts)[0])
    assert time.sleeps == [0.5, 1.0, 2.0]


def test_trouble_that_stays_is_an_error_after_the_last_attempt(session, server, time):
    server.replies = [Reply(500, {"error": "out of memory"})] * 9
    with pytest.raises(
        RemoteError, match=r"no vectors in 7 attempts, .* 500 .*out of memory.*whether the endpoint is up"
    ):
        session(RETRIES=6).run(ONE)
    assert time.sleeps == [0.5, 1.0, 2.0, 4.0, LONGEST_PAUSE, LONGEST_PAUSE]
    assert len(server.requests) == 7


def test_chance_shortens_pauses_by_up_to_half(server, tiny, time):
    server.replies = [Reply(500)] * 2
    clock = dataclasses.replace(time.clock(), chance=lambda: 1.0)
    RemoteSession(tiny, load_remote_settings("tiny", {"LLMREC_REMOTE_URL": server.url}), clock).run(ONE)
    assert time.sleeps == [0.25, 0.5]


def test_nobody_waits_beyond_the_deadline(session, server, time):
    server.replies = [Reply(429, headers={"Retry-After": "600"})]
    with pytest.raises(RemoteError, match=r"in 1 attempts, .* 429 .* It asks to wait 600 s"):
        session(TIMEOUT=20, RETRIES=3).run(ONE)
    assert time.sleeps == []


def test_a_server_that_does_not_answer_is_given_up(session, server):
    server.gate = threading.Barrier(99)  # so many do not come
    with pytest.raises(RemoteError, match=r"in 2 attempts, the last time: TimeoutError: "):
        session(TIMEOUT=0.05, RETRIES=20).run(ONE)  # the pauses use up the 21 x 0.05 s
    server.gate.abort()


def test_a_server_that_trickles_is_given_up(server, tiny, time):
    server.replies = [Reply(body="x" * 900_000)]

    def now():
        time.time += 1.0  # each look at the clock is a second later
        return time.time

    named = {"LLMREC_REMOTE_URL": server.url, "LLMREC_REMOTE_TIMEOUT": "8", "LLMREC_REMOTE_RETRIES": "0"}
    slow = dataclasses.replace(time.clock(), now=now)
    with pytest.raises(RemoteError, match="TimeoutError: timed out"):
        RemoteSession(tiny, load_remote_settings("tiny", named), slow).run(ONE)


def test_an_address_where_nobody_listens_is_an_error(session):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RemoteError, match=r"no vectors in 3 attempts, the last time: ConnectionRefusedError"):
        session(url=f"http://127.0.0.1:{port}", RETRIES=2).run(ONE)


def test_a_connection_that_was_closed_while_idle_is_no_failed_attempt(session, server, time, reference):
    model = session()
    model.run(ONE)
    server.replies = [Reply(hang_up="before")]
    check_same(model.run(ONE), reference.encode(ONE.texts)[0])
    assert time.sleeps == []


def test_a_connection_that_the_server_closes_is_not_used_again(session, server, reference):
    model = session()
    server.replies = [Reply(500, headers={"Connection": "close"})]
    for _ in range(2):
        check_same(model.run(ONE), reference.encode(ONE.texts)[0])
    first, second, third = (request["connection"] for request in server.requests)
    assert first != second == third


@pytest.mark.parametrize(
    ("status", "advice"),
    [(400, "LLMREC_REMOTE_API"), (401, "LLMREC_REMOTE_KEY"), (404, "LLMREC_REMOTE_URL"), (413, "LLMREC_REMOTE_BATCH")],
)
def test_a_refusal_is_an_error_at_once_and_says_what_to_set(session, server, time, status, advice):
    server.replies = [Reply(status, {"error": "no"}), Reply(status, {"error": "no"})]
    with pytest.raises(RemoteError, match=rf"refused a request: {status} .*{advice}"):
        session().run(ONE)
    assert time.sleeps == []


def test_a_redirection_is_not_followed(session, server):
    server.replies = [Reply(307, headers={"Location": "http://example.invalid/"})]
    with pytest.raises(RemoteError, match="refused a request: 307"):
        session(KEY=KEY).run(ONE)
    assert len(server.requests) == 1


def test_a_text_that_is_too_long_for_the_server_is_not_taken_for_a_missing_format(session, server):
    server.replies = [Reply(400, {"error": "too long"}), Reply(400, {"error": "too long"})]
    model = session()
    with pytest.raises(RemoteError, match="too long"):
        model.run(ONE)
    model.run(ONE)
    assert server.requests[-1]["encoding_format"] == "base64"


def spoil(**changes):
    """Changes the last vector's object of an OpenAI answer."""
    return lambda answer: {**answer, "data": [*answer["data"][:-1], {**answer["data"][-1], **changes}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: HTML, "expected JSON with data: 2 objects.*got text/html '<html>.*LLMREC_REMOTE_URL"),
        (lambda _: {"error": "busy"}, "expected JSON with data.*busy"),
        (lambda _: [1, 2], "expected JSON with data"),
        (lambda answer: {"data": answer["data"][:1]}, "expected JSON with data: 2 objects"),
        (lambda answer: {"data": answer["data"] * 2}, "expected JSON with data: 2 objects"),
        (spoil(index=0), "expected JSON with data: 2 objects"),
        (spoil(index="x"), "expected JSON with data: 2 objects"),
        (spoil(embedding="%%%"), "expected vectors as lists of numbers or as base64"),
        (spoil(embedding="AAAAAAA="), "expected vectors as lists of numbers or as base64"),
        (spoil(embedding=None), "expected vectors as lists of numbers or as base64"),
        (spoil(embedding=["a"] * 8), "expected vectors as lists of numbers or as base64"),
        (spoil(embedding=[1.0] * 9), r"expected vectors of 8 components, got shape \(9,\).*another model"),
        (spoil(embedding=[[1.0] * 8]), r"expected vectors of 8 components, got shape \(1, 8\)"),
        (
            spoil(embedding=[float("nan")] * 8),
            "expected finite vectors, got NaN or infinity for 1 of 1 texts, the first <14 long",
        ),
        (spoil(embedding=[1e300] * 8), "expected finite vectors"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_an_answer_that_is_no_vectors_is_an_error(session, server, change, message):
    server.change = change
    with pytest.raises(RemoteError, match=message):
        session().run(ONE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: HTML, "expected a JSON list of 2 vectors, got text/html '<html>"),
        (lambda _: {"error": "busy"}, "expected a JSON list of 2 vectors"),
        (lambda rows: rows[:1], "expected a JSON list of 2 vectors"),
        (lambda rows: [rows[0], rows[1][:5]], r"expected vectors of 8 components, got shape \(5,\)"),
        (lambda rows: [rows[0], [[1.0], [2.0, 3.0]]], "expected vectors as lists of numbers"),
        (lambda rows: [rows[0], [None] * 8], "expected finite vectors"),  # how JSON has NaN
    ],
)
def test_an_answer_of_text_embeddings_inference_that_is_no_vectors_is_an_error(session, server, change, message):
    server.change = change
    with pytest.raises(RemoteError, match=message):
        session(API="tei").run(ONE)


def test_an_endless_answer_is_not_read_to_the_end(session, server):
    server.replies = [Reply(body="x" * 1_100_000)]
    with pytest.raises(RemoteError, match=r"expected an answer of at most 104\d{4} bytes, got more"):
        session().run(ONE)


# --- the key


@pytest.mark.parametrize(
    "replies",
    [
        [Reply(401, {"error": f"no such key: {KEY}"})],
        [Reply(400, {"authorization": f"Bearer {KEY}"})] * 2,
        [Reply(500, f"{KEY} {KEY}")] * 5,
        [Reply(hang_up="before")] * 5,
        [Reply(200, f"<html>{KEY}</html>")],
    ],
    ids=["refused", "quoted", "failed", "closed", "echoed"],
)
def test_the_key_is_in_no_message_log_or_traceback(session, server, caplog, replies):
    caplog.set_level("DEBUG")
    server.replies = list(replies)
    model = session(KEY=KEY)
    with pytest.raises(RemoteError) as caught:
        model.run(ONE)
    assert server.requests[-1]["authorization"] == f"Bearer {KEY}"
    echoed = replies[0].status == 200  # the answer itself is a local variable then; what people read is not
    ours = caught.value.__traceback__.tb_next  # without this test, whose variables hold the key
    shown = traceback.TracebackException(RemoteError, caught.value, ours, capture_locals=not echoed)
    everything = "".join(shown.format()) + str(caught.value) + repr(caught.value) + caplog.text
    assert "endpoint" in everything or "LLMREC" in everything
    assert KEY not in everything
    assert KEY not in repr(model._settings) + str(model._settings) + model.provider


def test_a_certificate_is_checked(session, server):
    url = server.url.replace("http:", "https:")
    with pytest.raises(RemoteError, match=r"SSLError|SSLEOFError|ConnectionResetError"):
        session(url=url, RETRIES=0, TIMEOUT=5).run(ONE)  # the server speaks no TLS
    context = RemoteSession(session()._artifact, load_remote_settings("tiny", {"LLMREC_REMOTE_URL": url}))
    tls = context._endpoint._transport._tls
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)
