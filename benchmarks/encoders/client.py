"""This side of the protocol of `worker`: starts an engine's process, asks it, and ends it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class WorkerError(Exception):
    """An engine failed; the message is its reason."""


class Worker:
    """A process that answers.

    Args:
        command: Program and arguments; speaks the protocol of `worker` on standard input and output.
        log: File for what it prints otherwise.
        environ: Environment variables beside this process's.
        timeout: Seconds that an answer may take.

    Attributes:
        ready: Its first answer.
        first_result_s: Seconds from the start of the process to that answer, hence to the first vector.

    Raises:
        WorkerError: It did not load.
    """

    def __init__(
        self, command: list[str], log: Path, environ: Mapping[str, str] | None = None, timeout: float = 900.0
    ) -> None:
        self._timeout, self._log = timeout, log
        begun = time.perf_counter()
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environ or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                bufsize=0,
            )
        self._unread = b""
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.first_result_s = time.perf_counter() - begun

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a command.

        Raises:
            WorkerError: The command failed, or the process ended or gave no answer in time.
        """
        request = json.dumps({"command": command, **arguments}).encode() + b"\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request)
        except BrokenPipeError as exc:
            raise WorkerError(self._ended()) from exc
        return self._answer()

    def close(self) -> None:
        """Ends the process: by the end of its input, or else by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout
        while b"\n" not in self._unread:
            if not select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                self._process.kill()
                raise WorkerError(f"no answer in {self._timeout:.0f} s")
            part = self._process.stdout.read(65536)
            if not part:
                raise WorkerError(self._ended())
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _ended(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return f"the process ended with {self._process.wait()}: {lines[-1] if lines else 'it printed nothing'}"
