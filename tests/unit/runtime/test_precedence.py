"""Threads that compute stand behind a server's event loop."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmrec_plugin.runtime import precedence
from llmrec_plugin.runtime.precedence import SWITCH_SECONDS, put_event_loop_first, share_processors, step_back
from llmrec_plugin.settings import MAX_NICE, ONLY_WHEN_IDLE, load_settings

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux only")


def nice():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def policy():
    return os.sched_getscheduler(threading.get_native_id())


def in_a_thread(*functions):
    """What the functions return, called one after the other in a thread of their own, which ends afterwards."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: [function() for function in functions]).result()


@pytest.fixture(autouse=True)
def a_process_of_its_own(monkeypatch):
    interval = sys.getswitchinterval()
    monkeypatch.setattr(precedence, "_event_loop", None)
    monkeypatch.setattr(precedence, "_only_when_idle", False)
    yield
    sys.setswitchinterval(interval)


@linux
def test_a_thread_steps_back_and_takes_those_with_it_that_it_starts():
    put_event_loop_first(3)
    assert in_a_thread(step_back, nice, step_back, nice, lambda: in_a_thread(nice)) == [
        None, nice() + 3, None, nice() + 3, [nice() + 3]
    ]  # fmt: skip
    assert in_a_thread(nice) == [nice()], "the others stay where they are"


@linux
def test_the_event_loop_itself_stays():
    before = nice()
    put_event_loop_first(3)
    step_back()
    assert nice() == before


@linux
def test_a_thread_that_is_further_back_already_stays_there():
    put_event_loop_first(1)

    def far_back():
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice() + 4)
        return nice()

    [before, _, after] = in_a_thread(far_back, step_back, nice)
    assert before == after


@linux
def test_no_thread_steps_further_back_than_there_is_room():
    put_event_loop_first(MAX_NICE)
    assert in_a_thread(step_back, nice) == [None, MAX_NICE]


@linux
def test_threads_can_compute_only_when_nothing_else_wants_to():
    put_event_loop_first(ONLY_WHEN_IDLE)
    assert in_a_thread(step_back, policy, step_back, policy, lambda: in_a_thread(policy)) == [
        None, os.SCHED_IDLE, None, os.SCHED_IDLE, [os.SCHED_IDLE]
    ]  # fmt: skip
    assert policy() == in_a_thread(policy)[0] == os.SCHED_OTHER, "the others stay where they are"


@linux
@pytest.mark.parametrize(("steps", "name"), [(3, "setpriority"), (ONLY_WHEN_IDLE, "sched_setscheduler")])
def test_a_sandbox_that_forbids_it_costs_no_request(monkeypatch, steps, name):
    def forbid(*_):
        raise PermissionError("seccomp")

    put_event_loop_first(steps)
    monkeypatch.setattr(os, name, forbid)
    assert in_a_thread(step_back, nice, policy) == [None, nice(), os.SCHED_OTHER]


def test_pythons_lock_is_given_away_sooner_and_never_later():
    put_event_loop_first(1)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)
    sys.setswitchinterval(SWITCH_SECONDS / 10)
    put_event_loop_first(1)
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS / 10, abs=2e-6)


@pytest.mark.parametrize("prepare", [lambda: None, lambda: put_event_loop_first(0)])
def test_outside_of_servers_and_without_steps_nothing_changes(prepare):
    interval = sys.getswitchinterval()
    prepare()
    assert in_a_thread(nice, step_back, nice) == [nice(), None, nice()]
    assert sys.getswitchinterval() == interval


@pytest.mark.parametrize(
    ("processors", "workers", "threads"), [(2, 1, 1), (1, 1, 1), (2, 8, 1), (16, 1, 15), (16, 4, 3)]
)
def test_a_worker_leaves_python_a_processor(monkeypatch, processors, workers, threads):
    monkeypatch.setenv("LLMREC_THREADS", "")
    share_processors(processors, workers)
    assert load_settings().threads == threads


def test_threads_that_are_set_stay(monkeypatch):
    monkeypatch.setenv("LLMREC_THREADS", "5")
    share_processors(16, 1)
    assert load_settings().threads == 5
