"""JSON by POST over connections that stay open, attempted again until a deadline."""

from __future__ import annotations

import email.utils
import http.client
import json
import logging
import queue
import random
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from llmrec_plugin.errors import RemoteError, texts_are_shown
from llmrec_plugin.systems.remote.configuration import Secret

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
"""Seconds between attempts: doubled from the first to the longest, and each shortened by up to half at random."""
_QUOTED = 300
_UNPROCESSABLE = 422  # servers that check requests say with it what was wrong, input included
"""Characters of an answer that a message shows."""
_READ = 1 << 16


class Reach(Protocol):
    """An address, and how patiently it is used; `RemoteSettings` is one."""

    @property
    def url(self) -> str:
        """Where requests go."""

    @property
    def key(self) -> Secret:
        """Sent as bearer token, if there is one."""

    @property
    def timeout(self) -> float:
        """Seconds that one attempt may take."""

    @property
    def retries(self) -> int:
        """Attempts after the first."""

    @property
    def deadline(self) -> float:
        """Seconds that a request may take in all, attempts and pauses together."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What messages call things.

    Attributes:
        wanted: What an endpoint should have given.
        variables: What the names of its environment variables begin with.
        check: What to look at when an answer is not what was expected.
        remedies: What to do about a status.
    """

    wanted: str
    variables: str
    check: str
    remedies: Mapping[int, str]


_VECTORS = Wording(
    wanted="vectors",
    variables="LLMREC_REMOTE",
    check="Check LLMREC_REMOTE_URL and LLMREC_REMOTE_API (openai or tei).",
    remedies={
        401: "Set LLMREC_REMOTE_KEY to a key that the endpoint accepts.",
        403: "Set LLMREC_REMOTE_KEY to a key that the endpoint accepts.",
        404: "Check LLMREC_REMOTE_URL, LLMREC_REMOTE_API (openai or tei) and LLMREC_REMOTE_MODEL.",
        413: "Lower LLMREC_REMOTE_BATCH, or start the server with a larger limit of texts and tokens per request.",
        422: "Check LLMREC_REMOTE_API (openai or tei), or lower LLMREC_REMOTE_BATCH if the batch is too large.",
    },
)


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: bytes


@dataclass(frozen=True)
class Clock:
    """Time and chance; tests bring their own."""

    now: Callable[[], float] = time.monotonic
    date: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random


class Transport:
    """Posts to one address; safe for several threads at a time.

    The key is put into the request where it is written to the connection, and is in no other object.

    Args:
        settings: The address, its key, and how long and often to try.
        clock: Time and chance.
        wording: What messages call things.
        turn: Seconds until another attempt of a request may be made, and takes that turn; called before each attempt
            but the first.

    Attributes:
        url: The address.
    """

    def __init__(
        self,
        settings: Reach,
        clock: Clock | None = None,
        *,
        wording: Wording = _VECTORS,
        turn: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.url = settings.url
        self._settings = settings
        self._clock = clock or Clock()
        self._wording, self._turn = wording, turn
        parts = urlsplit(settings.url)
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()
        weakref.finalize(self, _close, self._idle)

    def post(self, body: dict[str, Any], largest: int, accept: tuple[int, ...] = ()) -> Answer:
        """The server's answer to `body`.

        Answers 408, 429 and 5xx and broken connections are tried again, after the pause that the server asks for or one
        that doubles each time.

        Args:
            body: What is sent as JSON.
            largest: Bytes that an answer may have.
            accept: Statuses beside 200 that are given back and not raised.

        Raises:
            RemoteError: No attempt before the deadline gave an answer, or the answer is a refusal.
        """
        data = json.dumps(body).encode()
        deadline = self._clock.now() + self._settings.deadline
        for attempt in range(self._settings.retries + 1):
            answer: Answer | None = None
            try:
                answer = self._attempt(data, largest, deadline)
            except (OSError, http.client.HTTPException) as exc:
                trouble = f"{type(exc).__name__}: {exc}"
            else:
                if answer.status == 200 or answer.status in accept:
                    return answer
                trouble = self._trouble(answer)
                if answer.status not in (408, 429) and answer.status < 500:
                    raise self.refusal(answer)
            # Nothing is raised from the exception: its frames hold what was being sent, the key among it.
            pause = self._pause(attempt, answer)
            left = deadline - self._clock.now()
            if attempt == self._settings.retries or pause >= left or (pause := max(pause, self._turn())) >= left:
                break
            logger.info("%s: %s; trying again in %.1f s.", self.url, trouble, pause)
            self._clock.sleep(pause)
        wants = f" It asks to wait {pause:.0f} s." if answer and answer.headers["Retry-After"] else ""
        names = self._wording.variables
        raise RemoteError(
            f"{self.url} gave no {self._wording.wanted} in {attempt + 1} attempts, the last time: {trouble}.{wants} "
            f"See whether the endpoint is up and how busy it is; {names}_TIMEOUT, {names}_RETRIES and "
            f"{names}_CONCURRENCY say how patiently it is used."
        )

    def refusal(self, answer: Answer) -> RemoteError:
        """The error for an answer that refuses a request."""
        remedy = self._wording.remedies.get(answer.status, self._wording.check)
        return RemoteError(f"{self.url} refused a request: {self._trouble(answer)}. {remedy}")

    def unexpected(self, answer: Answer, expected: str) -> RemoteError:
        """The error for an answer that is not what the API promises."""
        return RemoteError(f"{self.url}: expected {expected}, got {self._quote(answer)}. {self._wording.check}")

    def _attempt(self, data: bytes, largest: int, deadline: float) -> Answer:
        until = min(self._clock.now() + self._settings.timeout, deadline)
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            return self._exchange(self._connection(), data, largest, until)
        try:
            return self._exchange(connection, data, largest, until)
        except (ConnectionError, http.client.BadStatusLine):
            # The server closed it while it lay idle, which says nothing about the server; embedding twice does no harm.
            return self._exchange(self._connection(), data, largest, until)

    def _exchange(self, connection: http.client.HTTPConnection, data: bytes, largest: int, until: float) -> Answer:
        try:
            connection.timeout = self._left(until)
            if connection.sock is None:
                connection.connect()
            sock: socket.socket = connection.sock
            sock.settimeout(self._left(until))
            connection.putrequest("POST", self._path)
            connection.putheader("Content-Type", "application/json")
            connection.putheader("Accept", "application/json")
            connection.putheader("Content-Length", str(len(data)))
            if self._settings.key:
                connection.putheader("Authorization", f"Bearer {self._settings.key.reveal()}")
            connection.endheaders(data)
            response = connection.getresponse()
            body = self._read(response, sock, largest, until)
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._idle.put(connection)
        if response.status != 200:  # an error may quote what was sent
            body = self._settings.key.hide(body.decode(errors="replace")).encode()
        return Answer(response.status, response.reason, response.headers, body)

    def _read(self, response: http.client.HTTPResponse, sock: socket.socket, largest: int, until: float) -> bytes:
        """The body, read as it arrives, so that a server that trickles cannot outlast the deadline."""
        whole = response.length  # None if it is chunked, or ends with the connection
        body = bytearray()
        while whole is None or len(body) < whole:
            sock.settimeout(self._left(until))
            part = response.read1(_READ)
            if not part:
                break
            body += part
            if len(body) > largest:
                raise RemoteError(
                    f"{self.url}: expected an answer of at most {largest} bytes, got more. "
                    f"Check {self._wording.variables}_URL and {self._wording.variables}_MODEL."
                )
        if whole is not None and len(body) < whole:
            raise http.client.IncompleteRead(bytes(body), whole - len(body))
        response.close()  # Python 3.11 leaves it open, and the connection with it, when it was read in parts
        return bytes(body)

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port)
        return http.client.HTTPSConnection(self._host, self._port, context=self._tls)

    def _left(self, until: float) -> float:
        left = until - self._clock.now()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def _pause(self, attempt: int, answer: Answer | None) -> float:
        """Seconds before the next attempt."""
        doubled = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * (1 - self._clock.chance() / 2)
        return max(doubled, self._retry_after(answer.headers["Retry-After"]) if answer else 0.0)

    def _retry_after(self, header: str | None) -> float:
        """Seconds that a Retry-After header asks for, which holds seconds or a date."""
        if header is None:
            return 0.0
        try:
            return float(header) if header.strip().isdecimal() else self._until_date(header)
        except (TypeError, ValueError):
            return 0.0

    def _until_date(self, header: str) -> float:
        return email.utils.parsedate_to_datetime(header).timestamp() - self._clock.date()

    def _trouble(self, answer: Answer) -> str:
        return f"{answer.status} {self._settings.key.hide(answer.reason)}, {self._quote(answer)}"

    def _quote(self, answer: Answer) -> str:
        """The beginning of an answer, for a message."""
        text = self._settings.key.hide(answer.body.decode(errors="replace"))
        kind = answer.headers.get_content_type()
        if answer.status == _UNPROCESSABLE and not texts_are_shown():
            return f"{kind} of {len(text)} characters, which may repeat what was sent: LLMREC_LOG_TEXTS=1 shows it"
        shown = text[:_QUOTED] + ("..." if len(text) > _QUOTED else "")
        return f"{kind} {shown!r}"


def _close(idle: queue.LifoQueue[http.client.HTTPConnection]) -> None:
    while not idle.empty():
        idle.get_nowait().close()
