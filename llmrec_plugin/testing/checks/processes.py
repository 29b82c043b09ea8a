"""Checks that compute in other processes: children of this one, and Feast in one that never saw the repo."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

from llmrec_plugin.binding import to_values
from llmrec_plugin.runtime.runner import runner_for
from llmrec_plugin.testing.checks.values import check_same, ordinary_rows
from llmrec_plugin.testing.child import call_by
from llmrec_plugin.testing.children import compute_bound
from llmrec_plugin.testing.outcomes import CheckSkipped
from llmrec_plugin.testing.rows import columns_of
from llmrec_plugin.testing.subjects import Outcome, Subject

_COMPUTE = "llmrec_plugin.testing.children:compute_bound"


def fork_agrees(subject: Subject) -> None:
    """A child of a process that has loaded the model, as servers have, computes the same."""
    _check_start_method(subject, "fork")


def spawn_agrees(subject: Subject) -> None:
    """A worker that starts from nothing computes the same."""
    _check_start_method(subject, "spawn")


def _check_start_method(subject: Subject, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        raise CheckSkipped(f"This system does not {method}.")
    columns = columns_of(ordinary_rows(subject)[:4])
    expected = subject.compute_columns(columns)
    payload = json.dumps(to_values(subject.bound()))
    with tempfile.TemporaryDirectory(prefix="llmrec-check-") as folder:
        arguments: dict[str, Any] = {"payload": payload, "columns": columns}
        compute_bound(**arguments, cache=str(Path(folder) / "here"))  # so that there is something to inherit
        got = Outcome(*call_by(method, _COMPUTE, **arguments, cache=str(Path(folder) / "there")))
        runner_for.cache_clear()  # its cache's folder goes
    check_same(subject, expected, got, f"in a process started by {method}", _REMEDY)


_REMEDY = (
    "Values must not depend on the process: on its random state, its environment, or on what it inherited or did not."
)
