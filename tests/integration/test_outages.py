"""Online stores that go away, come back or answer late, and a server's worker that dies: no value is ever wrong."""

from __future__ import annotations

import datetime
import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from integration.host import Repo, StepError
from integration.server import Server
from integration.spy import Spy, until
from integration.test_on_demand import EXTRA, QUERY, TIMELY
from services.proxy import Proxy
from tiny import WORDS

from llmrec_plugin.runtime import upkeep
from llmrec_plugin.runtime.cache import ValueCache

pytestmark = pytest.mark.feast

STORED = "item_text_embedding:item_text_embedding"
SCORE = "query_item_similarity:query_item_similarity"
VIEW = ("--views", "item_text_embedding")
MATERIALIZE = ("materialize", "2025-01-01", "2026-03-01", *VIEW)
AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
CHUNK = 16
TITLES = {f"i{number}": f"{WORDS[number % 16]} {WORDS[16 + number // 16]}" for number in range(4 * CHUNK)}
SOME = list(TITLES)[:3]
TIMEOUT = 1.0
GONE = "Connection refused|Connection reset|closed|terminat|broken|shutdown"


class Service:
    """A store's server, a proxy before it, and what the repo says of both."""

    def __init__(self, server: Any, settings: dict[str, Any]) -> None:
        self.server = server
        self.proxy = Proxy(server.port)
        self.settings = {**settings, "port": self.proxy.port}
        self.is_redis = "connection_string" in settings
        if self.is_redis:
            database = settings["connection_string"].partition(",")[2]
            del self.settings["port"]
            self.settings["connection_string"] = f"127.0.0.1:{self.proxy.port},{database},socket_timeout={TIMEOUT}"


@pytest.fixture(scope="module", params=["our redis", "our postgres"])
def service(request: pytest.FixtureRequest, online_store: Callable[[str], dict[str, Any]]) -> Iterator[Service]:
    settings = online_store(request.param)
    service = Service(request.getfixturevalue(f"{request.param.split()[1]}_server"), settings)
    yield service
    service.proxy.cut()


@pytest.fixture(scope="module")
def repo(service: Service, new_repo: Callable[..., Repo]) -> Repo:
    """Applied, and not materialized."""
    repo = new_repo("outage", online_store=service.settings)
    configuration = repo.folder / "feature_store.yaml"
    text = configuration.read_text()
    engine = {"type": "llmrec_plugin.feast.engine.LLMComputeEngine", "chunk_rows": CHUNK}
    configuration.write_text(f"{text}batch_engine: {json.dumps(engine)}\n")
    repo.export()
    repo.declare(extra=EXTRA)
    Spy.plant(repo)
    repo.write_items([{"item": item, "title": title, "at": AT} for item, title in TITLES.items()])
    repo.feast("apply")
    return repo


def _right(repo: Repo, items: list[str]) -> list[Any]:
    return [pytest.approx(vector, abs=1e-6) for vector in repo.encode([f"{TITLES[item]}." for item in items])]


def test_a_run_whose_store_dies_fails_and_the_next_one_goes_on_without_inference(service: Service, repo: Repo) -> None:
    service.proxy.fatal = (b"i40", b"i40".hex().encode())  # the key of a row of the third chunk of four
    with pytest.raises(StepError, match=GONE):
        repo.feast(*MATERIALIZE)
    service.proxy.mend()
    assert repo.call("steps:describe", view="item_text_embedding")["intervals"] == []
    [broken] = [run for run in repo.runs() if run.mode == "batch"]
    assert broken.computed == 3 * CHUNK

    repo.feast(*MATERIALIZE)
    rerun = repo.runs()[-1]
    # Two chunks are in the store and in the ledger, the third one is in the value cache.
    assert (rerun.rows, rerun.cached, rerun.computed) == (2 * CHUNK, CHUNK, CHUNK)
    assert repo.vectors(list(TITLES)) == _right(repo, list(TITLES))


@pytest.fixture(scope="module")
def spy(repo: Repo) -> Spy:
    return Spy(repo)


@pytest.fixture(scope="module")
def server(repo: Repo, spy: Spy) -> Iterator[Server]:
    """Two workers over a store that is filled."""
    repo.feast(*MATERIALIZE)
    with spy.server(workers=2) as server:
        yield server


def _stored(server: Server) -> list[Any]:
    return server.columns([STORED], item=SOME)["item_text_embedding"]


def test_a_store_that_goes_away_is_an_error_and_needs_no_restart_of_the_server(
    service: Service, repo: Repo, server: Server
) -> None:
    right = _right(repo, SOME)
    query = {"query": ["red web"]}
    score = server.columns([SCORE], item=SOME[:1], **query)
    answer = server.columns([QUERY], **query)
    for _ in range(4):  # both workers are connected
        assert _stored(server) == right
    service.server.crash()
    try:
        for features, columns in (([STORED], {}), ([SCORE], query), ([STORED, QUERY], query)):
            asked = time.monotonic()
            status, body = server.ask(features, item=SOME[:1], **columns)
            assert status == 500
            assert str(service.proxy.port) in body or "closed" in body  # it says who is gone
            assert time.monotonic() - asked < 20
        for _ in range(4):
            assert server.columns([QUERY], **query) == answer  # needs no store
    finally:
        service.server.restart()
    for _ in range(6):
        found = _stored(server)
        assert found in (right, [None] * len(SOME))
    if found != right:  # Redis has forgotten; the values are in the cache
        assert "no longer in the online store" in repo.feast("materialize-incremental", "2026-04-01", *VIEW)
        assert repo.runs()[-1].computed == 0
    for _ in range(4):
        assert _stored(server) == right
        assert server.columns([SCORE], item=SOME[:1], **query) == score


def test_while_a_store_is_slow_other_requests_are_answered_and_deadlines_hold(
    service: Service, repo: Repo, server: Server, spy: Spy
) -> None:
    until(lambda: server.columns(TIMELY, query=["red web"])["timely_embedding_status"] == ["ok"])
    spy.close_gate()
    with service.proxy.slow(TIMEOUT / 3), ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(_stored, server) for _ in range(4)]
        answered = 0
        while not all(request.done() for request in waiting):
            server.health()
            assert server.columns([QUERY], query=["red web"])["query_embedding"][0] is not None
            answered += not any(request.done() for request in waiting)
        assert answered
        right = _right(repo, SOME)
        assert all(request.result() == right for request in waiting)
        # The deadline is over when the store has answered: what is cached is served, the rest falls back.
        late = server.columns([STORED, *TIMELY], item=SOME[:2], query=["red web", "held font"])
    assert late["item_text_embedding"] == right[:2]
    assert late["timely_embedding_status"] == ["ok", "fallback"]
    assert late["timely_embedding"][1] == [0.0] * 8
    spy.open_gate()


def test_a_redis_slower_than_its_timeout_is_an_error(service: Service, repo: Repo, server: Server) -> None:
    if not service.is_redis:
        pytest.skip("PostgreSQL's client has no timeout")
    with service.proxy.slow(20):
        status, body = server.ask([STORED], item=SOME)
    assert (status, "Timeout" in body) == (500, True), body
    assert _stored(server) == _right(repo, SOME)


def test_a_worker_killed_in_mid_request_breaks_that_request_alone_and_is_replaced(
    service: Service, repo: Repo, server: Server, spy: Spy
) -> None:
    query = {"query": ["red web"]}
    answer = server.columns([QUERY], **query)
    right = _right(repo, SOME)
    held = "held by one that is killed"
    spy.close_gate()
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(server.columns, [QUERY], query=[held])
        until(lambda: any(held in lines for lines in spy.lines("texts").values()))
        [worker] = [int(pid[1:]) for pid, lines in spy.lines("texts").items() if held in lines]
        os.kill(worker, signal.SIGKILL)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            request.result()
    spy.open_gate()

    def is_replaced_while_the_other_goes_on() -> bool:
        assert server.columns([QUERY], **query) == answer
        assert _stored(server) == right
        return len(spy.lines("warm")) == 3

    until(is_replaced_while_the_other_goes_on)
    [value] = repo.encode([held])
    for _ in range(4):
        assert server.columns([QUERY], query=[held])["query_embedding"] == [pytest.approx(value, abs=1e-6)]
    values = ValueCache(repo.root / "home" / "cache", 2**30)
    try:
        assert upkeep.verify(values).sound
    finally:
        values.close()
