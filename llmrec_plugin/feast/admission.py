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
ALWAYS_ADMITTED = 8
"""Requests at a time that are never refused: a slow one, that loads a model say, is no sign of a queue."""
_SMOOTHING = 0.05
_LOG_EVERY_SECONDS = 60.0


class Admission:
    """ASGI middleware that notes arrivals and, with `max_wait_ms`, refuses what would be answered too late.

    How long a request would take is told by how many are under way and how fast answers have been leaving. One that
    would take longer than `max_wait_ms` is answered with 503 and ``Retry-After``, in a fraction of a millisecond.

    Args:
        app: What answers.
        max_wait_ms: None: nothing is refused.
        clock: For tests.
    """

    def __init__(self, app: Application, max_wait_ms: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._most_seconds = math.inf if max_wait_ms is None else max_wait_ms / 1000
        self._clock = clock
        self._under_way = 0
        self._gap = 0.0  # seconds between two answers while requests are under way, a moving average
        self._since = 0.0  # the last answer or, after a pause, the arrival that ended it
        self._refused = 0
        self._logged = -math.inf

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        now = self._clock()
        note_arrival(now)
        if not scope["path"].startswith(READS):
            await self._app(scope, receive, send)
            return
        wait = (self._under_way + 1) * self._gap
        if self._under_way >= ALWAYS_ADMITTED and wait > self._most_seconds:
            self._log(now, wait)
            await _refuse(send, wait)
            return
        if not self._under_way:
            self._since = now
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1
            now = self._clock()
            self._gap += _SMOOTHING * (now - self._since - self._gap)
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
