"""Arrivals are noted, and what would be answered too late is refused at once."""

import asyncio
import json
import threading

import pytest

from llmrec_plugin.feast.admission import ALWAYS_ADMITTED, Admission, admit
from llmrec_plugin.runtime.arrivals import arrival

READ = {"type": "http", "path": "/get-online-features"}


class Clock:
    """It moves when it is told to."""

    now = 1000.0

    def __call__(self):
        return self.now


class Server:
    """An application whose requests, which have all arrived, are answered one by one in `seconds` each."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds
        self.answered = 0

    async def __call__(self, scope, receive, send):
        await asyncio.sleep(0)
        self.clock.now += self.seconds
        self.answered += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def _ask(application, scope):
    sent = []

    async def send(message):
        sent.append(message)

    await application(scope, None, send)
    return sent


def _run(application, count, scope=READ):
    async def together():
        return await asyncio.gather(*(_ask(application, scope) for _ in range(count)))

    return asyncio.run(together())


def _statuses(answers):
    return [messages[0]["status"] for messages in answers]


@pytest.fixture
def clock():
    return Clock()


def test_a_crowd_is_cut_to_what_can_be_answered_in_time(clock):
    server = Server(clock, 0.1)
    admission = Admission(server, 1000, clock=clock)
    _run(admission, 100)  # the first crowd tells how fast answers leave
    server.answered = 0
    statuses = _statuses(_run(admission, 100))
    assert statuses.count(200) == server.answered
    assert 8 <= server.answered <= 10  # 0.1 s each, 1 s allowed
    assert statuses.count(503) == 100 - server.answered


def test_where_answers_come_unevenly_fewer_are_admitted(clock):
    server = Server(clock, 0.1)
    admission = Admission(server, 1000, clock=clock)
    for number in range(200):
        server.seconds = 0.4 if number % 4 == 0 else 0.0  # 0.1 s each, as above
        _run(admission, 1)
    server.answered, server.seconds = 0, 0.1
    _run(admission, 100)
    assert ALWAYS_ADMITTED <= server.answered <= 7


def test_the_refused_are_told_when_to_ask_again(clock):
    admission = Admission(Server(clock, 2.0), 1000, clock=clock)
    _run(admission, 50)
    start, body = next(answer for answer in _run(admission, 50) if answer[0]["status"] == 503)
    headers = dict(start["headers"])
    assert int(headers[b"retry-after"]) >= 2
    assert int(headers[b"content-length"]) == len(body["body"])
    assert "Ask again later" in json.loads(body["body"])["detail"]


def test_slow_requests_that_come_one_by_one_are_all_answered(clock):
    admission = Admission(Server(clock, 60.0), 100, clock=clock)
    for _ in range(20):
        assert _statuses(_run(admission, 1)) == [200]
    assert _statuses(_run(admission, ALWAYS_ADMITTED)) == [200] * ALWAYS_ADMITTED


def test_a_pause_is_no_slow_answer(clock):
    admission = Admission(Server(clock, 0.01), 1000, clock=clock)
    for _ in range(20):
        clock.now += 3600
        _run(admission, 1)
    assert _statuses(_run(admission, 90)).count(503) == 0


def test_without_a_bound_nothing_is_refused(clock):
    admission = Admission(Server(clock, 10.0), None, clock=clock)
    _run(admission, 200)
    assert _statuses(_run(admission, 200)) == [200] * 200


@pytest.mark.parametrize("scope", [{"type": "http", "path": "/health"}, {"type": "http", "path": "/push"}])
def test_only_reads_are_refused(clock, scope):
    admission = Admission(Server(clock, 10.0), 100, clock=clock)
    _run(admission, 100)
    assert _statuses(_run(admission, 100, scope)) == [200] * 100


def test_other_than_requests_pass_by(clock):
    seen = []

    async def application(scope, receive, send):
        seen.append(scope["type"])

    asyncio.run(_ask(Admission(application, 100, clock=clock), {"type": "lifespan"}))
    assert seen == ["lifespan"]


def test_a_request_that_fails_is_under_way_no_longer(clock):
    async def fail(scope, receive, send):
        clock.now += 1
        raise RuntimeError("a bug")

    admission = Admission(fail, 100, clock=clock)
    for _ in range(50):
        with pytest.raises(RuntimeError, match="a bug"):
            asyncio.run(_ask(admission, READ))


def test_the_arrival_is_known_in_the_thread_that_answers(clock):
    seen = []

    async def application(scope, receive, send):
        await asyncio.to_thread(lambda: seen.append(arrival()))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    clock.now = 17.0
    _run(Admission(application, None, clock=clock), 1)
    assert seen == [17.0]
    thread = threading.Thread(target=lambda: seen.append(arrival()))
    thread.start()
    thread.join()
    assert seen[1] != 17.0  # elsewhere it is now


def test_it_stands_before_an_application_that_is_starting_or_about_to():
    starlette = pytest.importorskip("starlette.applications")
    application = starlette.Starlette()
    admit(application, 100)
    application.middleware_stack = application.build_middleware_stack()
    admit(application, 100)
    assert isinstance(application.middleware_stack, Admission)
