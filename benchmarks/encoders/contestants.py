"""An engine in a run: its process, what it did so far, and why it is out once it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.encoders.client import Worker, WorkerError
from benchmarks.encoders.engines import Engine
from benchmarks.encoders.environments import InstallError


@dataclass
class Contestant:
    """An engine in a run.

    Attributes:
        engine: Its row.
        command: What starts its process.
        process: The process, once it was started.
        failure: Why it is out; None while it is in.
        imports: Seconds of importing the library, by start.
        firsts: Seconds until the first vector, by start.
    """

    engine: Engine
    command: list[str] = field(default_factory=list)
    process: Worker | None = None
    failure: str | None = None
    imports: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def worker(self) -> Worker:
        """The process of an engine that has been started."""
        assert self.process is not None
        return self.process

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Whatever fails in here takes the engine out of the run, and never the run."""
        try:
            yield
        except (WorkerError, InstallError) as exc:
            self.failure = str(exc)
            say(f"{self.name} is out: {exc}")
            self.close()

    def close(self) -> None:
        if self.process is not None:
            self.process.close()

    def about(self) -> dict[str, Any]:
        """What does not depend on the texts, as JSON can hold it; asks the process, so it must still run."""
        idle = None
        if self.failure is None:
            with self.turn():
                usage = self.worker.ask("usage")
                idle = usage["idle_cpu_seconds"] / usage["idle_seconds"]
        return {
            "label": self.engine.label,
            "ours": self.engine.ours,
            "setup": self.engine.setup,
            "environ": dict(self.engine.environ),
            "versions": self.process.ready["versions"] if self.process else {},
            "failure": self.failure,
            "import_s": float(np.median(self.imports)) if self.imports else None,
            "first_result_s": float(np.median(self.firsts)) if self.firsts else None,
            "idle_cores": idle,
        }


def say(message: str) -> None:
    """Shows on standard error how far the run is."""
    print(f"{datetime.now(UTC):%H:%M:%S} {message}", file=sys.stderr, flush=True)
