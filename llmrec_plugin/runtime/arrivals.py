"""When the request that is being answered arrived: deadlines count from there, and what waits too long is noticed."""

from __future__ import annotations

import time
from contextvars import ContextVar

_arrived: ContextVar[float | None] = ContextVar("llmrec_arrived", default=None)


def note_arrival(moment: float) -> None:
    """Notes for this context, and the threads that answer its request, when the request arrived.

    Args:
        moment: Of `time.monotonic`.
    """
    _arrived.set(moment)


def arrival() -> float:
    """`time.monotonic` at which the request arrived; now, where no server has noted it."""
    noted = _arrived.get()
    return time.monotonic() if noted is None else noted
