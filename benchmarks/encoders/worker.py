"""The process of one engine: reads commands, one JSON object a line, and answers each with one.

    python -m benchmarks.encoders.worker MODULE OPTIONS

It runs in the engine's own environment, so it needs the standard library, numpy and whatever the adapter imports.

    ->                                                <- {"import_s", "load_s", "first_s", "versions"}: ready
    -> {"command": "texts", "name", "path"}           <- {}: a JSON list of texts, kept under this name
    -> {"command": "encode", "name", "count"}         <- {"seconds", "cpu_seconds"}: the first texts, in one call
    -> {"command": "vectors", "name", "path"}         <- {}: the vectors of all texts, as .npy
    -> {"command": "single", "name", "start", "stop"} <- {"milliseconds"}: these texts, one call each
    -> {"command": "usage"}                           <- {"peak_rss_mb", "idle_seconds", "idle_cpu_seconds"}

An answer with "error" means that the command failed. The process ends with its input.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

PROBE = "a small library for reading configuration files"


class Engine(Protocol):
    """What an adapter's `load` gives back."""

    def encode(self, texts: list[str]) -> np.ndarray:
        """All vectors, (n, dims) float32, in the order of the texts: as fast as the engine can."""

    def encode_one(self, text: str) -> np.ndarray:
        """The vector of one text, (dims,) float32, as a request would ask for it."""


class Server:
    """An engine behind the protocol.

    Args:
        adapter: A module as `adapters` describes it, by its full name.
        options: What its `load` takes.
    """

    def __init__(self, adapter: str, options: dict[str, Any]) -> None:
        module = importlib.import_module(adapter)
        begun = time.perf_counter()
        for name in module.IMPORTS:
            importlib.import_module(name)
        imported = time.perf_counter()
        self._engine: Engine = module.load(options)
        loaded = time.perf_counter()
        self._engine.encode([PROBE])
        first = time.perf_counter()
        self.ready = {
            "import_s": imported - begun,
            "load_s": loaded - imported,
            "first_s": first - begun,
            "versions": {name: importlib.metadata.version(name) for name in module.PACKAGES},
        }
        self._texts: dict[str, list[str]] = {}
        self._idle_since = (time.perf_counter(), time.process_time())
        self._idle = [0.0, 0.0]
        self._commands: dict[str, Callable[..., dict[str, Any]]] = {
            "texts": self.texts,
            "encode": self.encode,
            "vectors": self.vectors,
            "single": self.single,
            "usage": self.usage,
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the command gives, or the error it ended in; the time since the last answer counts as idle."""
        self._idle[0] += time.perf_counter() - self._idle_since[0]
        self._idle[1] += time.process_time() - self._idle_since[1]
        try:
            return self._commands[request.pop("command")](**request)
        except Exception as exc:  # whatever a peer raises is its result
            traceback.print_exc()
            return {"error": f"{type(exc).__name__}: {exc}"}
        finally:
            self._idle_since = (time.perf_counter(), time.process_time())

    def texts(self, name: str, path: str) -> dict[str, Any]:
        self._texts[name] = json.loads(Path(path).read_text(encoding="utf-8"))
        return {}

    def encode(self, name: str, count: int) -> dict[str, Any]:
        texts = self._texts[name][:count]
        begun, cpu = time.perf_counter(), time.process_time()
        self._engine.encode(texts)
        return {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}

    def vectors(self, name: str, path: str) -> dict[str, Any]:
        np.save(path, np.asarray(self._engine.encode(self._texts[name]), dtype=np.float32))
        return {}

    def single(self, name: str, start: int, stop: int) -> dict[str, Any]:
        milliseconds = []
        for text in self._texts[name][start:stop]:
            begun = time.perf_counter()
            self._engine.encode_one(text)
            milliseconds.append((time.perf_counter() - begun) * 1000)
        return {"milliseconds": milliseconds}

    def usage(self) -> dict[str, Any]:
        return {"peak_rss_mb": peak_rss_mb(), "idle_seconds": self._idle[0], "idle_cpu_seconds": self._idle[1]}


def peak_rss_mb() -> float:
    """The most memory this process has held, in MB (10^6 bytes)."""
    # Linux counts into ru_maxrss what the parent held before the exec, so its own record is read where there is one.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    # Libraries print; what they print must not meet the answers, so standard output is theirs no longer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        server = Server(sys.argv[1], json.loads(sys.argv[2]))
    except Exception as exc:  # a peer that does not load is a result, too
        traceback.print_exc()
        send({"error": f"{type(exc).__name__}: {exc}"})
        raise SystemExit(1) from exc
    send(server.ready)
    for line in sys.stdin:
        send(server.answer(json.loads(line)))


if __name__ == "__main__":
    main()
