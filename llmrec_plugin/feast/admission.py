"""What a worker of the feature server does with a request before Feast sees it.

Feast answers requests in a pool of threads, and one that finds no thread waits there, out of reach of any deadline of
ours. Here the moment of its arrival is noted, from which deadlines count. And where more comes than can be answered,
requests are refused at once instead of being answered too late, all of them: a queue that only grows helps nobody.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from llmrec_plugin.runtime.arrivals import note_arrival

logger = logging.getLogger(__name__)

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

READS = ("/get-online-features", "/retrieve-online-documents")
"""Paths of the requests that may be refused: somebody waits for the answer, and may ask again."""
ALWAYS_ADMITTED = 4
"""Requests at a time that are never refused: a slow one, that loads a model say, is no sign of a queue."""
_SMOOTHING = 0.05
_DEVIATIONS = 2  # of the error of an estimate; with them the 99th percentile came out at the bound
_LOG_EVERY_SECONDS = 60.0


class _Forecast:
    """How long a request will take: the number under way times the gap between answers, and how far off that was.

    The mean error and two mean deviations are added, as TCP does for its timeouts (RFC 6298, section 2, with four), so
    that about one answer of a hundred takes longer.
    """

    def __init__(self) -> None:
        self._answers = 0
        # Moving means, in seconds.
        self._gap = 0.0  # between two answers while requests are under way
        self._error = 0.0
        self._deviation = 0.0

    def seconds(self, under_way: int) -> float:
        """Seconds that a request will hardly take longer than, with so many under way before it."""
        return self._expected(under_way) + max(self._error + _DEVIATIONS * self._deviation, 0.0)

    def learn(self, gap: float, under_way: int, took: float) -> None:
        """An answer left `gap` seconds after the one before; it took so long, with so many under way when it came."""
        self._answers += 1
        weight = max(1 / self._answers, _SMOOTHING)
        self._gap += weight * (gap - self._gap)
        error = took - self._expected(under_way)
        self._error += weight * (error - self._error)
        self._deviation += weight * (abs(error - self._error) - self._deviation)

    def _expected(self, under_way: int) -> float:
        return (under_way + 1) * self._gap


class Admission:
    """ASGI middleware that notes arrivals and, with `max_wait_ms`, refuses what would be answered too late.

    How long a request would take is told by how many are under way and how fast answers have been leaving. One that
    would take longer than `max_wait_ms` is answered with 503 and ``Retry-After``, in a fraction of a millisecond.

    Args:
        app: What answers.
        max_wait_ms: Such as the deadline of the features that are asked for. None: nothing is refused.
        clock: For tests.
    """

    def __init__(self, app: Application, max_wait_ms: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._most_seconds = math.inf if max_wait_ms is None else max_wait_ms / 1000
        self._clock = clock
        self._under_way = 0
        self._forecast = _Forecast()
        self._since = 0.0  # the last answer or, after a pause, the arrival that ended it
        self._refused = 0
        self._logged = -math.inf

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = self._clock()
        note_arrival(arrived)
        if not scope["path"].startswith(READS):
            await self._app(scope, receive, send)
            return
        ahead = self._under_way
        wait = self._forecast.seconds(ahead)
        if ahead >= ALWAYS_ADMITTED and wait > self._most_seconds:
            self._log(arrived, wait)
            await _refuse(send, wait)
            return
        if not ahead:
            self._since = arrived
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1
            now = self._clock()
            self._forecast.learn(now - self._since, ahead, now - arrived)
            self._since = now

    def _log(self, now: float, wait: float) -> None:
        self._refused += 1
        if now - self._logged >= _LOG_EVERY_SECONDS:
            logger.warning(
                "More requests come than can be answered: %d refused so far; this one would have waited %.0f ms, more "
                "than LLMREC_MAX_WAIT_MS. Add workers or machines.", self._refused, wait * 1000,
            )  # fmt: skip
            self._logged = now


async def _refuse(send: Send, wait: float) -> None:
    body = json.dumps({"detail": "More requests come than can be answered in time. Ask again later."}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(math.ceil(wait)).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def admit(app: Any, max_wait_ms: int | None) -> None:
    """Puts an `Admission` before a Starlette application that is starting or about to start."""
    if app.middleware_stack is None:
        app.add_middleware(Admission, max_wait_ms=max_wait_ms)
    else:  # it was built to run the start of the application, and takes no more
        app.middleware_stack = Admission(app.middleware_stack, max_wait_ms)
