"""The run itself: every engine gets the same work in turn, and only one works at a time."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.encoders import machine, results
from benchmarks.encoders.client import Worker, WorkerError
from benchmarks.encoders.contestants import Contestant, say
from benchmarks.encoders.corpus import Corpus
from benchmarks.encoders.engines import PLAIN, REFERENCE, Engine
from benchmarks.encoders.environments import python_of
from benchmarks.encoders.flops import matmul_flops
from benchmarks.encoders.models import Model, ensure

SEED = 0
BLOCK = 30  # single requests before the next engine's turn
WARM_UP = 10  # single requests that do not count

Seen = dict[str, dict[str, Any]]  # by engine: what `results.rows` reads


@dataclass(frozen=True)
class Pass:
    """One part of a run.

    Attributes:
        corpus: The texts; all of them are compared with the reference.
        timed: How many of them a throughput round encodes, from the first on.
        busy: Busy loops beside.
        single: Whether single requests are measured, too.
    """

    corpus: Corpus
    timed: int
    busy: int = 0
    single: bool = True


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        engines: The rows.
        passes: The parts, in this order.
        short: Texts of the single requests.
        repeats: Throughput rounds of a pass.
        starts: Fresh processes of each engine.
        folder: For environments, exported models and logs.
        reference: What vectors are compared with.
        baseline: Name of the engine that is the base of ratios.
        peaks: Module of the process that measures the machine.
    """

    engines: Sequence[Engine]
    passes: Sequence[Pass]
    short: Corpus
    repeats: int
    starts: int
    folder: Path
    reference: Engine = REFERENCE
    baseline: str = PLAIN.name
    peaks: str = "benchmarks.encoders.peaks"


class Run:
    """One run of a plan.

    Args:
        plan: What to measure.
        model: The model in its forms.
    """

    def __init__(self, plan: Plan, model: Model) -> None:
        self._plan, self._model = plan, model
        self._logs = plan.folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._random = random.Random(SEED)
        self._contestants = [Contestant(engine) for engine in plan.engines]
        self._likenesses: dict[str, Seen] = {}
        self._peaks: dict[tuple[Any, ...], dict[str, Any]] = {}

    def __call__(self) -> Iterator[dict[str, Any]]:
        """The result so far after each pass, as JSON can hold it; the last one is the whole."""
        begun = datetime.now(UTC)
        for contestant in self._contestants:
            with contestant.turn():
                contestant.command = self._command(contestant.engine)
        peaks = Worker([sys.executable, "-m", self._plan.peaks], self._logs / "peaks.log")
        observed = []
        with closing(peaks), tempfile.TemporaryDirectory() as scratch:
            try:
                self._start()
                for part in self._plan.passes:
                    observed.append(self._pass(part, peaks, Path(scratch)))
                    yield self._result(begun, observed)
            finally:
                for contestant in self._contestants:
                    contestant.close()

    def _result(self, begun: datetime, observed: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "begun": begun.isoformat(timespec="minutes"),
            "minutes": round((datetime.now(UTC) - begun).total_seconds() / 60),
            "machine": machine.describe(),
            "model": self._model.name,
            "reference": self._plan.reference.label,
            "rounds": self._plan.repeats,
            "peaks": list(self._peaks.values()),
            "engines": {contestant.name: contestant.about() for contestant in self._contestants},
            "passes": [self._figures(found) for found in observed],
        }

    def _command(self, engine: Engine) -> list[str]:
        python = python_of(engine.environment, self._plan.folder)
        options = {**self._model.options(), **engine.options}
        if "artifact" in engine.options:
            ensure(engine.options["artifact"])
        return [python, "-m", "benchmarks.encoders.worker", engine.adapter, json.dumps(options)]

    def _open(self, engine: Engine, command: list[str]) -> Worker:
        # The models are all here; a library that looks for them on the network would wait for nothing.
        environ = {"HF_HUB_OFFLINE": "1", **engine.environ}
        return Worker(command, self._logs / f"{engine.name}.log", environ)

    def _turns(self) -> Iterator[Contestant]:
        """Who is still in, in an order of its own each time."""
        inside = [contestant for contestant in self._contestants if contestant.failure is None]
        return iter(self._random.sample(inside, len(inside)))

    def _start(self) -> None:
        """Starts every engine afresh, several times; the last process stays."""
        for number in range(self._plan.starts):
            say(f"starts, {number + 1} of {self._plan.starts}")
            for contestant in self._turns():
                with contestant.turn():
                    contestant.close()
                    contestant.process = self._open(contestant.engine, contestant.command)
                    contestant.imports.append(contestant.process.ready["import_s"])
                    contestant.firsts.append(contestant.process.first_result_s)

    def _pass(self, part: Pass, peaks: Worker, scratch: Path) -> dict[str, Any]:
        corpus = part.corpus
        if corpus.name not in self._likenesses:
            say(f"{corpus.name}: likeness to the reference")
            self._likenesses[corpus.name] = self._likeness(corpus, scratch)
        fresh: dict[str, list[float]] = {"seconds": [], "cpu_seconds": [], "milliseconds": []}
        seen = {
            name: {**likeness, **{key: list(values) for key, values in fresh.items()}}
            for name, likeness in self._likenesses[corpus.name].items()
        }
        with machine.busy_loops(part.busy):
            others = self._throughput(part, seen, peaks)
            for contestant in self._turns():
                with contestant.turn():
                    seen[contestant.name]["peak_rss_mb"] = contestant.worker.ask("usage")["peak_rss_mb"]
            if part.single:
                self._single(seen, scratch)
        return {
            "corpus": corpus.name,
            "busy": part.busy,
            "texts": part.timed,
            "tokens": int(corpus.lengths[: part.timed].sum()),
            "flops": matmul_flops(self._model.config, corpus.lengths[: part.timed]),
            "compared": len(corpus.texts),
            "others": others,
            "seen": seen,
        }

    def _likeness(self, corpus: Corpus, scratch: Path) -> Seen:
        """Every engine's vectors against the reference's; also the untimed first round."""
        path = _write(corpus, scratch)
        with closing(self._open(self._plan.reference, self._command(self._plan.reference))) as worker:
            reference = _vectors(worker, corpus, path, scratch)
        found = {}
        for contestant in self._turns():
            with contestant.turn():
                vectors = _vectors(contestant.worker, corpus, path, scratch)
                cosines = results.cosines(vectors, reference)
                found[contestant.name] = {
                    "cosine_min": float(cosines.min()),
                    "cosine_mean": float(cosines.mean()),
                    "overlap": results.overlap(vectors, reference),
                }
        return found

    def _throughput(self, part: Pass, seen: Seen, peaks: Worker) -> float | None:
        """Fills ``seconds`` and ``cpu_seconds``; gives the share of the processors that others used meanwhile."""
        used, elapsed = 0.0, 0.0
        for number in range(self._plan.repeats):
            say(f"{part.corpus.name}, {part.busy} busy loops: round {number + 1} of {self._plan.repeats}")
            if not part.busy:
                self._keep_peaks(peaks.ask("measure")["rates"])
            for contestant in self._turns():
                with contestant.turn():
                    begun, before = time.perf_counter(), machine.busy_seconds()
                    answer = contestant.worker.ask("encode", name=part.corpus.name, count=part.timed)
                    after = machine.busy_seconds()
                    for name in ("seconds", "cpu_seconds"):
                        seen[contestant.name][name].append(answer[name])
                    if before is not None and after is not None:
                        used += max(after - before - answer["cpu_seconds"], 0)
                        elapsed += time.perf_counter() - begun
        return used / (elapsed * machine.cores()) if elapsed else None

    def _single(self, seen: Seen, scratch: Path) -> None:
        """Fills ``milliseconds``, a block of requests a turn."""
        path = _write(self._plan.short, scratch)
        for contestant in self._turns():
            with contestant.turn():
                contestant.worker.ask("texts", name="short", path=str(path))
                contestant.worker.ask("single", name="short", start=0, stop=WARM_UP)
        for start in range(0, len(self._plan.short.texts), BLOCK):
            say(f"single requests from number {start + 1} on")
            for contestant in self._turns():
                with contestant.turn():
                    answer = contestant.worker.ask("single", name="short", start=start, stop=start + BLOCK)
                    seen[contestant.name]["milliseconds"] += answer["milliseconds"]

    def _keep_peaks(self, rates: list[dict[str, Any]]) -> None:
        for rate in rates:
            key = (rate["type"], rate["library"], *rate["shape"])
            if key not in self._peaks or rate["gflops"] > self._peaks[key]["gflops"]:
                self._peaks[key] = rate

    def _figures(self, found: dict[str, Any]) -> dict[str, Any]:
        """A pass with its rows in place of the observations; engines that fell out on the way have none."""
        inside = {contestant.name for contestant in self._contestants if contestant.failure is None}
        seen = {name: values for name, values in found["seen"].items() if name in inside}
        peers = [engine.name for engine in self._plan.engines if not engine.ours]
        rows = results.rows(
            seen,
            texts=found["texts"],
            tokens=found["tokens"],
            flops=found["flops"],
            peak_gflops=max(rate["gflops"] for rate in self._peaks.values() if rate["type"] == "fp32"),
            peers=peers,
            plain=self._plan.baseline,
        )
        return {
            **{key: value for key, value in found.items() if key != "seen"},
            "best_exact_peer": results.best_exact(seen, peers),
            "seconds": {name: [round(value, 4) for value in values["seconds"]] for name, values in seen.items()},
            "rows": [asdict(row) for row in rows],
        }


def _write(corpus: Corpus, scratch: Path) -> Path:
    path = scratch / f"{corpus.name}.json"
    path.write_text(json.dumps(corpus.texts), encoding="utf-8")
    return path


def _vectors(worker: Worker, corpus: Corpus, path: Path, scratch: Path) -> np.ndarray:
    worker.ask("texts", name=corpus.name, path=str(path))
    target = scratch / "vectors.npy"
    worker.ask("vectors", name=corpus.name, path=str(target))
    vectors = np.load(target)
    if len(vectors) != len(corpus.texts) or not np.isfinite(vectors).all():
        raise WorkerError(f"expected {len(corpus.texts)} finite vectors, got an array of shape {vectors.shape}")
    return vectors
