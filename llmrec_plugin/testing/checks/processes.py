"""Checks that compute in other processes: children of this one, and Feast in one that never saw the repo."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmrec_plugin.binding import to_values
from llmrec_plugin.runtime.runner import runner_for
from llmrec_plugin.testing.checks.values import check_same, ordinary_rows
from llmrec_plugin.testing.child import call_forked, call_fresh
from llmrec_plugin.testing.children import compute_bound
from llmrec_plugin.testing.outcomes import CheckSkipped
from llmrec_plugin.testing.rows import columns_of
from llmrec_plugin.testing.subjects import Outcome, Subject

_COMPUTE = "llmrec_plugin.testing.children:compute_bound"


def fork_agrees(subject: Subject) -> None:
    """A child of a process that has loaded the model, as servers have, computes the same."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise CheckSkipped("This system does not fork.")
    _check_process(subject, call_forked, "in a forked process")


def spawn_agrees(subject: Subject) -> None:
    """A worker that begins from nothing computes the same."""
    _check_process(subject, call_fresh, "in a fresh process")


def _check_process(subject: Subject, call: Callable[..., Any], where: str) -> None:
    columns = columns_of(ordinary_rows(subject)[:4])
    expected = subject.compute_columns(columns)
    payload = json.dumps(to_values(subject.bound()))
    with tempfile.TemporaryDirectory(prefix="llmrec-check-") as folder:
        here, there = (str(Path(folder) / name) for name in ("here", "there"))
        compute_bound(payload, columns, here)  # so that there is something to inherit
        got = Outcome(*call(_COMPUTE, payload=payload, columns=columns, cache=there))
        runner_for.cache_clear()  # its cache's folder goes
    check_same(subject, expected, got, where, _REMEDY)


_REMEDY = (
    "Values must not depend on the process: on its random state, its environment, or on what it inherited or did not."
)
