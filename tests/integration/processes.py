"""Starts processes quickly: imports Feast once, then forks one child per request.

Importing Feast takes seconds, so a suite that starts an interpreter per step spends its time there. This
process imports what the children need, but never llmrec_plugin and never a feature repo, and computes
nothing. Each child is a process of its own: it has its own environment, working folder and modules, and no
model, cache or registry of another one.

What is named on the command line is imported beforehand, too: tests that start many processes of ours save the
time. Requests are lines of JSON on stdin, answers lines of JSON on stdout. A request names a function of this
folder (``"steps:read_online"``) or the command line (``"feast"``), its arguments, the environment, the
working folder, and the files for what is printed and what is answered. A request with ``"detached"`` is answered
with the child's id as soon as it runs, and one with ``"poll"`` with the exit status of such a child, if it has ended.

``python processes.py --once '<request>'`` does the same in an interpreter of its own, without forking.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

PREIMPORT = (
    "dask.dataframe.io.parquet.arrow",
    "feast.cli.cli",
    "feast.infra.compute_engines.local.compute",
    "feast.infra.offline_stores.dask",
    "feast.infra.online_stores.sqlite",
    "feast.infra.passthrough_provider",
    "feast.infra.registry.file",
    "feast.infra.registry.registry",
    "feast.infra.registry.sql",
    "feast.repo_operations",
    "filelock",
    "fsspec.implementations.arrow",
    "importlib_metadata._adapters",
    "pandas.core.methods.to_dict",
    "pluggy",
    "pyarrow.acero",
    "sqlalchemy.dialects.sqlite",
)
OPTIONAL = (
    "feast.infra.online_stores.postgres_online_store.postgres",
    "feast.infra.online_stores.redis",
    "feast.transformation.udf_rehydrate",  # since Feast 0.66
)
"""The stores are imported by Feast, where it can, at the first online read of every process, whatever the store."""


def perform(request: dict[str, Any]) -> int:
    """Runs the request in this process; returns its exit status."""
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *request["paths"]]
    if request["target"] == "feast":
        from feast.cli.cli import cli

        try:
            cli(request["arguments"])
        except SystemExit as exc:
            return exc.code if isinstance(exc.code, int) else int(bool(exc.code))
        return 0
    module, function = request["target"].split(":")
    answer = getattr(importlib.import_module(module), function)(**request["arguments"])
    Path(request["answer"]).write_text(json.dumps(answer))
    return 0


def serve(preimport: list[str]) -> None:
    """Forks a child per line of stdin until stdin ends."""
    for name in (*PREIMPORT, *preimport):
        importlib.import_module(name)
    for name in OPTIONAL:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    assert preimport or not [name for name in sys.modules if name.startswith("llmrec_plugin")]
    for line in sys.stdin:
        request = json.loads(line)
        answer: int | None
        if "poll" in request:
            done, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        else:
            child = os.fork()
            if child == 0:
                _run_child(request)
            answer = child if request.get("detached") else _wait(child, request["seconds"])
        print(json.dumps(answer), flush=True)


def _run_child(request: dict[str, Any]) -> None:
    status = 1
    try:
        os.setpgrp()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        status = perform(request)
        threading._shutdown()  # type: ignore[attr-defined]  # as at every exit: threads finish what they have in hand
    except BaseException:  # whatever it was, the child must end here and not return into the server's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(child: int, seconds: float) -> int:
    """The exit status of a child; 124 if it ran past its time and was killed."""
    deadline = time.monotonic() + seconds
    pause = 0.002
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        sys.exit(perform(json.loads(sys.argv[2])))
    serve(sys.argv[1:])
