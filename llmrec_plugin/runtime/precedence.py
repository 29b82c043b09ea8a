"""Whose turn it is in a feature server: first the event loop's, then that of threads which compute.

One thread of a server, its event loop, takes requests, refuses them, and hands out answers and signs of life. Feast
answers in other threads, and where there is more to compute than processors can, they keep the event loop waiting: for
a processor, and for Python's lock. So in a server those threads step back, and give the lock away sooner.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from llmrec_plugin.settings import MAX_NICE, ONLY_WHEN_IDLE

SWITCH_SECONDS = 0.0005
"""How long a thread keeps Python's lock when others want it; by default ten times as long. Shorter gained nothing."""

_event_loop: int | None = None  # the thread's number in the system
_nice = 0
_only_when_idle = False
_local = threading.local()


def share_processors(processors: int, workers: int) -> None:
    """Sets ``LLMREC_THREADS`` of this process, where it is not set, to a worker's share less one for Python.

    An inference in several threads waits, in each of its parts, for the one whose processor Python holds.

    Args:
        processors: That the server may use.
        workers: Of the server.
    """
    if not os.environ.get("LLMREC_THREADS"):
        os.environ["LLMREC_THREADS"] = str(max(processors // workers - 1, 1))


def put_event_loop_first(steps: int) -> None:
    """Gives the calling thread, which is to run the event loop, precedence over those that call `step_back`.

    Args:
        steps: How many steps of `nice` lie between them; 0: none, and nothing is changed; `ONLY_WHEN_IDLE`: they run
            when no other thread of the machine, or of the container, wants to.
    """
    global _event_loop, _nice, _only_when_idle
    if not steps:
        return
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
    if sys.platform == "linux":  # where a thread has a priority of its own
        _event_loop = threading.get_native_id()
        _nice = min(os.getpriority(os.PRIO_PROCESS, _event_loop) + steps, MAX_NICE)
        _only_when_idle = steps >= ONLY_WHEN_IDLE


def step_back() -> None:
    """Lowers the priority of the calling thread and of those that it starts from now on.

    Does nothing where no event loop was put first, in the event loop's own thread, and the second time.
    """
    if _event_loop is None or getattr(_local, "stepped_back_from", None) == _event_loop:
        return
    thread = threading.get_native_id()
    if thread != _event_loop:
        with contextlib.suppress(OSError):  # where a sandbox forbids it, all stay equal
            if _only_when_idle:
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
            else:
                os.setpriority(os.PRIO_PROCESS, thread, max(_nice, os.getpriority(os.PRIO_PROCESS, thread)))
    _local.stepped_back_from = _event_loop  # another one after a fork
