"""Which placement wins: costs are made up and time is counted, so no machine's speed matters."""

import math
import threading
from collections import Counter
from dataclasses import replace

import pytest

from llmrec_plugin.inference import Placement
from llmrec_plugin.runtime import calibration
from llmrec_plugin.runtime.calibration import (
    Opened,
    budget_candidates,
    calibrate_batches,
    calibrate_requests,
    default_placement,
    fastest,
    quickest,
    request_candidates,
    thread_candidates,
    time_batches,
)

BATCH = default_placement("batch", 4)
ONLINE = default_placement("online", 4)


class Machine:
    """A clock that runs move forward; `speed` is tokens per second of a placement."""

    def __init__(self, speed):
        self.speed = speed
        self.now = 0.0
        self.runs = Counter()
        self.lock = threading.Lock()

    def clock(self):
        with self.lock:
            return self.now

    def run(self, placement, rows, length):
        with self.lock:
            self.runs[placement] += 1
            self.now += rows * length / self.speed(placement)


class NoSession:
    """Stands for an open model; only its placement matters here."""

    def __init__(self, placement):
        self.placement = placement


def test_batches_run_side_by_side_and_a_request_has_all_threads():
    assert (BATCH.threads, BATCH.callers) == (1, 4)
    assert (ONLINE.threads, ONLINE.callers) == (4, 1)


@pytest.mark.parametrize("threads", [1, 2, 3, 6, 16, 48])
def test_candidates_share_all_threads_and_each_is_there_once(threads):
    default = default_placement("batch", threads)
    candidates = thread_candidates(default)
    assert default not in candidates
    assert len(set(candidates)) == len(candidates)
    assert all(placement.threads * placement.callers == threads for placement in candidates)
    assert (threads == 1) == (not candidates)


def test_token_budgets_around_the_default_are_tried():
    budgets = [placement.token_budget for placement in budget_candidates(BATCH)]
    assert min(budgets) < BATCH.token_budget < max(budgets)
    assert all(replace(placement, token_budget=BATCH.token_budget) == BATCH for placement in budget_candidates(BATCH))


def test_with_one_thread_there_is_nothing_to_choose_for_requests():
    assert request_candidates(default_placement("online", 1)) == []
    assert [placement.threads for placement in request_candidates(ONLINE)] == [1, 2, 4]


def test_the_fastest_of_those_that_beat_the_default_in_every_round_wins():
    a, b, c = (replace(BATCH, token_budget=budget) for budget in (128, 256, 1024))
    speeds = {BATCH: [100.0, 90.0], a: [110.0, 108.0], b: [105.0, 200.0], c: [300.0, 99.0]}
    assert fastest(BATCH, speeds) == a


def test_a_lead_within_the_noise_does_not_replace_the_default():
    other = replace(BATCH, token_budget=128)
    assert fastest(BATCH, {BATCH: [100.0, 100.0], other: [102.0, 102.0]}) == BATCH


def test_the_quickest_request_wins_unless_it_spins_away_the_cpu():
    alone, spinning = replace(ONLINE, threads=1), replace(ONLINE, spinning=True)
    costs = {ONLINE: [(3.0, 4.0)] * 3, alone: [(5.0, 5.0)] * 3, spinning: [(2.0, 9.0)] * 3}
    assert quickest(ONLINE, costs) == ONLINE
    assert quickest(ONLINE, {**costs, spinning: [(2.0, 4.5)] * 3}) == spinning
    assert quickest(ONLINE, {**costs, alone: [(2.5, 2.5)] * 3}) == alone


def test_one_slow_request_does_not_decide():
    alone = replace(ONLINE, threads=1)
    costs = {ONLINE: [(3.0, 3.0)] * 5, alone: [(2.0, 2.0), (2.0, 2.0), (90.0, 90.0), (2.0, 2.0), (2.0, 2.0)]}
    assert quickest(ONLINE, costs) == alone


@pytest.mark.parametrize("best", [128, 256, 512, 1024, 2048])
def test_the_token_budget_with_the_highest_speed_is_found(monkeypatch, best):
    machine = Machine(lambda placement: 1e6 / (1 + abs(math.log2(best / placement.token_budget))) / placement.threads)
    monkeypatch.setattr(calibration, "time_batches", lambda runs, longest: time_batches(runs, longest, machine.clock))
    # Sessions do not know the budget, so this machine tells it from the batch.
    found = calibrate_batches(
        Opened(NoSession(BATCH), BATCH),
        NoSession,
        lambda session, rows, length: machine.run(replace(session.placement, token_budget=rows * length), rows, length),
        longest=256,
    )
    assert found.best.placement == replace(BATCH, token_budget=best)
    assert {placement.threads for placement in found.measured} == {1, 2, 4}


def test_one_run_with_all_threads_wins_where_it_is_faster(monkeypatch):
    machine = Machine(lambda placement: 1e6 * placement.threads)
    monkeypatch.setattr(calibration, "time_batches", lambda runs, longest: time_batches(runs, longest, machine.clock))
    found = calibrate_batches(
        Opened(NoSession(BATCH), BATCH),
        NoSession,
        lambda session, rows, length: machine.run(session.placement, rows, length),
        longest=256,
    )
    assert (found.best.placement.threads, found.best.placement.callers) == (4, 1)
    assert found.best.session.placement == found.best.placement


def test_a_large_model_keeps_the_default_when_measuring_takes_too_long():
    machine = Machine(lambda placement: 1.0)
    candidates = [BATCH, *budget_candidates(BATCH)]
    runs = {
        placement: lambda rows, length, placement=placement: machine.run(placement, rows, length)
        for placement in candidates
    }
    assert list(time_batches(runs, 256, machine.clock)) == [BATCH]


def test_texts_that_are_measured_are_no_longer_than_the_model_takes():
    seen = []
    time_batches({BATCH: lambda rows, length: seen.append((rows, length))}, 20)
    assert set(seen) == {(BATCH.token_budget // 20, 20)}


def test_requests_of_all_candidates_take_turns(monkeypatch):
    monkeypatch.setattr(calibration, "PROBE_SECONDS", 0.0)
    calls = []
    found = calibrate_requests(
        Opened(NoSession(ONLINE), ONLINE),
        NoSession,
        lambda session, rows, length: calls.append((session.placement, rows, length)),
        longest=8,
    )
    candidates = [ONLINE, *request_candidates(ONLINE)]
    assert calls[: len(candidates)] == [(placement, 1, 8) for placement in candidates]
    assert calls == calls[: len(candidates)] * 4
    assert list(found.measured) == candidates


@pytest.mark.parametrize("changes", [{"threads": 0}, {"callers": True}, {"token_budget": "512"}, {"spinning": 1}])
def test_a_placement_that_cannot_be_is_refused(changes):
    values = {"threads": 1, "callers": 1, "spinning": False, "token_budget": 512}
    with pytest.raises(ValueError, match=next(iter(changes))):
        Placement(**{**values, **changes})
