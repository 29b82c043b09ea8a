"""How a model uses this machine, measured once and kept.

What is fastest depends on caches, cores and the model: 512 tokens a batch on one machine, 256 on another; one run with
all threads, or as many runs as there are threads. So placements are measured, for a few seconds, and the outcome is
kept in the cache folder for this model on this machine. A batch run measures once it has run long enough for that to
pay, a server when it loads the model.

Vectors do not depend on the placement (`llmrec_plugin.inference.Placement`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from llmrec_plugin.inference import Placement, Profile, Session

TOKEN_BUDGET = 512
"""Rows x length of a batch on a CPU, until it is measured: about what its second-level cache holds of activations."""
TOKEN_BUDGETS = (128, 256, 1024, 2048)
LENGTHS = (32, 128)
"""Lengths in tokens of the texts that are measured."""
WORTHWHILE = 1.03
"""Another placement must be this many times as fast as the default, in every round: less is noise."""
ROUNDS = 2
LONGEST_SECONDS = 10.0
"""After this no further candidate is measured: a large model keeps the default rather than hold up the work."""
SPIN_CPU = 1.25
"""Spinning may cost at most this many times the CPU seconds of a request without it: on a server they are others'."""
REQUEST_TOKENS = 16
PROBE_SECONDS = 0.15
"""About how long requests are timed for, all candidates together."""

Run = Callable[[Session, int, int], object]
"""Runs a batch of (rows, length) in a session."""
Cost = tuple[float, float]
"""Wall-clock and CPU seconds."""


class Opened(NamedTuple):
    """A session, and the placement that was found for it."""

    session: Session
    placement: Placement


class Calibration(NamedTuple):
    """What came out.

    Attributes:
        best: The best placement, open.
        measured: By placement tokens per second of each round (``batch``), or wall-clock seconds of each request
            (``online``).
    """

    best: Opened
    measured: dict[Placement, list[float]]


def calibrate_batches(now: Opened, reopen: Callable[[Placement], Session], run: Run, longest: int) -> Calibration:
    """Looks for the placement with the most tokens per second: first how threads are shared, then the token budget.

    Args:
        now: What is used, and what wins unless something else is faster beyond doubt.
        reopen: Opens the model with a placement.
        run: Runs a batch in a session.
        longest: Longest text of the model, in tokens.
    """

    def choose(first: Opened, others: list[Opened]) -> Opened:
        candidates = {opened.placement: opened for opened in (first, *others)}
        runs = {placement: partial(run, opened.session) for placement, opened in candidates.items()}
        speeds = time_batches(runs, longest)
        measured.update(speeds)
        return candidates[fastest(first.placement, speeds)]

    measured: dict[Placement, list[float]] = {}
    best = choose(now, [Opened(reopen(placement), placement) for placement in thread_candidates(now.placement)])
    best = choose(best, [Opened(best.session, placement) for placement in budget_candidates(best.placement)])
    return Calibration(best, measured)


def calibrate_requests(now: Opened, reopen: Callable[[Placement], Session], run: Run, longest: int) -> Calibration:
    """Looks for the placement with the quickest single request; arguments as for `calibrate_batches`."""
    others = [Opened(reopen(placement), placement) for placement in request_candidates(now.placement)]
    candidates = {opened.placement: opened for opened in (now, *others)}
    length = min(REQUEST_TOKENS, longest)
    costs = time_requests(
        {placement: partial(run, opened.session, 1, length) for placement, opened in candidates.items()}
    )
    measured = {placement: [wall for wall, _ in requests] for placement, requests in costs.items()}
    return Calibration(candidates[quickest(now.placement, costs)], measured)


def default_placement(profile: Profile, threads: int) -> Placement:
    """What is used until something better is measured.

    Args:
        profile: ``batch`` runs one batch per thread, ``online`` gives one run all threads.
        threads: CPU threads that the process may use.
    """
    if profile == "batch":
        return Placement(threads=1, callers=threads, spinning=False, token_budget=TOKEN_BUDGET)
    return Placement(threads=threads, callers=1, spinning=False, token_budget=TOKEN_BUDGET)


def thread_candidates(default: Placement) -> list[Placement]:
    """Other ways to share the same number of threads between runs and the inside of one run."""
    total = default.threads * default.callers
    splits = [(total // callers, callers) for callers in (1, 2, 4, 8, 16, 32, 64, total) if total % callers == 0]
    candidates = [replace(default, threads=threads, callers=callers) for threads, callers in splits if callers <= total]
    return [placement for placement in dict.fromkeys(candidates) if placement != default]


def budget_candidates(best: Placement) -> list[Placement]:
    """The same with smaller and larger batches."""
    return [replace(best, token_budget=budget) for budget in TOKEN_BUDGETS if budget != best.token_budget]


def request_candidates(default: Placement) -> list[Placement]:
    """For single requests: fewer threads, or all of them spinning."""
    fewer = [replace(default, threads=threads) for threads in (1, 2, 4, 8) if threads < default.threads]
    return [*fewer, replace(default, spinning=True)] if fewer else []


def fastest(default: Placement, speeds: dict[Placement, list[float]]) -> Placement:
    """The placement whose worst round beats the default's best by `WORTHWHILE`, the fastest of them; or the default.

    Args:
        default: The placement that is kept unless another is better beyond doubt.
        speeds: Tokens per second of every round, by placement; the default among them.
    """
    bar = max(speeds[default]) * WORTHWHILE
    better = [placement for placement, rounds in speeds.items() if min(rounds) > bar]
    return max(better, key=lambda placement: min(speeds[placement]), default=default)


def quickest(default: Placement, costs: dict[Placement, list[Cost]]) -> Placement:
    """The placement with the shortest median request among those that do not waste the CPU; or the default.

    Args:
        default: The placement that is kept unless another is better.
        costs: Seconds of every request, by placement; the default among them.
    """

    def median(placement: Placement, kind: int) -> float:
        ordered = sorted(cost[kind] for cost in costs[placement])
        return ordered[len(ordered) // 2]

    thrifty = min(median(placement, 1) for placement in costs if not placement.spinning) * SPIN_CPU
    fit = [placement for placement in costs if not placement.spinning or median(placement, 1) <= thrifty]
    best = min(fit, key=lambda placement: median(placement, 0))
    return best if median(best, 0) * WORTHWHILE < median(default, 0) else default


def time_requests(runs: Mapping[Placement, Callable[[], object]]) -> dict[Placement, list[Cost]]:
    """Wall-clock and CPU seconds of single requests, every placement in turn, for `PROBE_SECONDS`.

    A pause of half a request follows each: what spins meanwhile costs CPU seconds, as it would on a server.
    """
    costs: dict[Placement, list[Cost]] = {placement: [] for placement in runs}
    for run in runs.values():
        run()  # the first run allocates
    until = time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < until or len(next(iter(costs.values()))) < 3:
        for placement, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall = time.perf_counter() - wall
            time.sleep(wall / 2)
            costs[placement].append((wall, time.process_time() - cpu))
    return costs


def time_batches(
    runs: Mapping[Placement, Callable[[int, int], object]], longest: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Placement, list[float]]:
    """Tokens per second of every placement, `ROUNDS` of them in turn, after one that is not counted.

    Args:
        runs: Encodes a batch of (rows, length) with a placement; called by ``placement.callers`` threads at a time.
        longest: Longest text of the model, in tokens.
        clock: Seconds.

    Returns:
        By placement, in the order of `runs`; without those that `LONGEST_SECONDS` left no time for, but always with
        the first.
    """
    speeds: dict[Placement, list[float]] = {}
    until = clock() + LONGEST_SECONDS
    lengths = [length for length in LENGTHS if length <= longest] or [longest]
    for _ in range(1 + ROUNDS):  # the first run of a shape allocates
        for number, (placement, run) in enumerate(runs.items()):
            if number and clock() > until:
                continue
            shapes = [(max(placement.token_budget // length, 1), length) for length in lengths] * placement.callers
            with ThreadPoolExecutor(placement.callers) as pool:
                begun = clock()
                list(pool.map(lambda shape, run=run: run(*shape), shapes))
                seconds = clock() - begun
            speeds.setdefault(placement, []).append(sum(rows * length for rows, length in shapes) / max(seconds, 1e-9))
    return {placement: rounds[1:] for placement, rounds in speeds.items() if len(rounds) == 1 + ROUNDS}
