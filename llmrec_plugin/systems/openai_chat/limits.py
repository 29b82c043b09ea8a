"""How much of an endpoint is used: requests per minute, tokens per process, and none while it does not answer."""

from __future__ import annotations

import threading

from llmrec_plugin.systems.remote.transport import Clock

TRIP = 8
"""Requests that fail in a row, each with all its attempts, until no more are made for a while."""
REST = 30.0
"""Seconds for which none are made."""


class Pace:
    """Spaces attempts evenly.

    Args:
        per_minute: Attempts per minute, 0 for any number.
        clock: Time.
    """

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._clock = clock
        self._next = clock.now()
        self._lock = threading.Lock()

    def turn(self) -> float:
        """Seconds until the next attempt may be made; the turn is taken."""
        if not self._interval:
            return 0.0
        with self._lock:
            now = self._clock.now()
            mine = max(self._next, now)
            self._next = mine + self._interval
        return mine - now


class Budget:
    """Tokens that may be used.

    Args:
        limit: Their number, 0 for any.

    Attributes:
        used: Tokens of what was answered.
    """

    def __init__(self, limit: int) -> None:
        self.used = 0
        self._limit, self._held = limit, 0
        self._lock = threading.Lock()

    def hold(self, tokens: int) -> bool:
        """Sets tokens aside for a request; False if there are not so many left."""
        with self._lock:
            if self._limit and self.used + self._held + tokens > self._limit:
                return False
            self._held += tokens
            return True

    def settle(self, held: int, used: int) -> None:
        """Gives back what was set aside, and counts what was used."""
        with self._lock:
            self._held -= held
            self.used += used


class Breaker:
    """Stops asking an endpoint that does not answer, so that a long run does not wait for each row in vain.

    Args:
        clock: Time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures, self._until, self._reason = 0, -1.0, ""
        self._lock = threading.Lock()

    def refusal(self) -> str:
        """Why no request is made now; empty if one may be."""
        with self._lock:
            left = self._until - self._clock.now()
            if left <= 0:
                return ""
            return (
                f"not asked for another {left:.0f} s, since {self._failures} requests in a row failed: {self._reason}"
            )

    def succeeded(self) -> None:
        """A request was answered."""
        with self._lock:
            self._failures = 0

    def failed(self, reason: str) -> None:
        """A request was not answered, for all its attempts."""
        with self._lock:
            self._failures += 1
            self._reason = reason
            if self._failures >= TRIP:
                self._until = self._clock.now() + REST
