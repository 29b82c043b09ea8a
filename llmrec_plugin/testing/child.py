"""Functions that checks call in processes of their own.

``python -m llmrec_plugin.testing.child <request> <answer>`` reads a pickled ``(target, arguments)`` and writes what
``module:function`` gives. Both files are the kit's own.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import pkgutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llmrec_plugin.testing.outcomes import fail

SECONDS = 300.0
"""After which a process is taken for stuck."""


def call_fresh(target: str, *, environ: Mapping[str, str] | None = None, **arguments: Any) -> Any:
    """What a function returns in an interpreter that has imported nothing yet.

    Args:
        target: ``module:function``.
        environ: Environment variables besides those of this process.
        arguments: What it is called with; pickled.

    Raises:
        CheckFailed: It raised, died or got stuck; the message has what it printed.
    """
    paths = [path for path in sys.path if path]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LLMREC_PROGRESS": "0", **(environ or {})}
    variables.pop("PYTHONWARNINGS", None)
    with tempfile.TemporaryDirectory(prefix="llmrec-check-") as folder:
        request, answer = Path(folder) / "request", Path(folder) / "answer"
        request.write_bytes(pickle.dumps((target, arguments)))
        command = [sys.executable, "-m", "llmrec_plugin.testing.child", str(request), str(answer)]
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter and this module
                command, cwd=folder, env=variables, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            fail(
                "an answer of a fresh process",
                f"none within {SECONDS:.0f} s",
                "Look for a lock, a download, or other work on this machine.",
            )
        if done.returncode != 0:
            fail("an answer of a fresh process", done.stderr[-4_000:], "Mend what the traceback names.")
        return pickle.loads(answer.read_bytes())  # noqa: S301 - our own child wrote it


def call_forked(target: str, **arguments: Any) -> Any:
    """What a function returns in a fork of this process.

    Args:
        target: ``module:function``.
        arguments: What it is called with.

    Raises:
        CheckFailed: It raised, died or got stuck.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, target, arguments), daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads forks is what is tested
        process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS):
            fail("an answer of a forked process", f"none within {SECONDS:.0f} s", _THREADS)
        sound, answer = ours.recv()
    except EOFError:
        process.join()
        fail("an answer of a forked process", f"none, exit status {process.exitcode}", _THREADS)
    finally:
        process.kill()
        process.join()
        ours.close()
    if not sound:
        fail("values of a forked process", answer, "Mend what the traceback names.")
    return answer


_THREADS = (
    "Threads and sessions do not survive a fork, and locks stay locked: open them when the first row comes, and again "
    "in a child (os.register_at_fork)."
)


def _answer(connection: Connection, target: str, arguments: dict[str, Any]) -> None:
    try:
        connection.send((True, pkgutil.resolve_name(target)(**arguments)))
    except BaseException:  # whatever it is, the parent must hear of it
        connection.send((False, traceback.format_exc()[-4_000:]))


def main() -> None:
    request, answer = map(Path, sys.argv[1:])
    target, arguments = pickle.loads(request.read_bytes())  # noqa: S301 - our own parent wrote it
    answer.write_bytes(pickle.dumps(pkgutil.resolve_name(target)(**arguments)))


if __name__ == "__main__":
    main()
