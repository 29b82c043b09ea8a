"""Two runtimes on the same model, texts and batches, in turn.

    LLMREC_HOME=.llmrec python benchmarks/runtimes.py --texts packages.jsonl.gz

Tokenizes the `synopsis` and `description` of some rows, plans length-ordered batches for each token budget and runs
them with each runtime once per round, in an order drawn anew. Then single texts of 16 tokens, with all threads. Ratios
are of the same round, so what else the machine does weighs on both; the CPU's ratio hardly depends on it at all. The
first round, in which buffers are allocated, does not count.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmrec_plugin import Batch, Placement, Session
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.pipeline.batching import pad, plan_batches
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.runtimes import choose_runtime, open_session
from llmrec_plugin.settings import load_settings

REQUESTS = 30


class Cost(NamedTuple):
    """Seconds of one run, on the clock and of the CPU."""

    wall: float
    cpu: float


def main() -> None:
    arguments = _arguments()
    settings = replace(load_settings(), device="cpu")
    artifact = ArtifactStore(settings.artifact_folders).current(arguments.model)
    encoder = Encoder(artifact, replace(settings, runtime="onnxruntime"))
    lengths, sequences = _tokenize(encoder, arguments)
    chosen = [choose_runtime(artifact, replace(settings, runtime=name)) for name in arguments.runtimes]

    def run_all(session: Session, budget: int) -> np.ndarray:
        vectors = np.zeros((len(lengths), artifact.manifest.dims), dtype=np.float32)

        def run(rows: np.ndarray) -> None:
            vectors[rows] = session.run(Batch(*pad([sequences[row] for row in rows], artifact.manifest.pad_token_id)))

        with ThreadPoolExecutor(session.placement.callers) as pool:
            list(pool.map(run, plan_batches(lengths, budget)))
        return vectors

    def run_single(session: Session) -> np.ndarray:
        batch = Batch(*pad([sequences[int(np.argmax(lengths))][:16]], artifact.manifest.pad_token_id))
        return np.concatenate([session.run(batch) for _ in range(REQUESTS)])

    ways: dict[str, list[Callable[[], np.ndarray]]] = {}
    splits = dict.fromkeys([(1, settings.threads), (settings.threads, 1)])
    for threads, callers in splits:
        placement = Placement(threads=threads, callers=callers, spinning=False, token_budget=512)
        sessions = [open_session(runtime, artifact, settings, placement) for runtime in chosen]
        for budget in arguments.budgets:
            name = f"{callers} x {threads} threads, {budget} tokens"
            ways[name] = [lambda s=s, budget=budget: run_all(s, budget) for s in sessions]
        if callers == 1:
            ways["one text of 16 tokens"] = [lambda s=s: run_single(s) for s in sessions]
    print(f"{len(lengths)} texts, {int(lengths.sum())} tokens; {arguments.runtimes[1]} / {arguments.runtimes[0]}")
    print(f"{'':32}{'time, median [range]':>24}{'CPU, median [range]':>24}{'largest difference':>22}", flush=True)
    results = []
    for name, runs in ways.items():
        result = _compare(name, runs, arguments.rounds)
        results.append(result)
        ratios = ["{:.2f} [{:.2f}, {:.2f}]".format(*_spread(result[kind])) for kind in ("time", "cpu")]
        print(f"{result['what']:32}{ratios[0]:>24}{ratios[1]:>24}{result['difference']:>22.1e}", flush=True)
    if arguments.output:
        packages = {name: version(name) for name in ("onnxruntime", "openvino", "llmrec-plugin")}
        machine = {"threads": settings.threads, "machine": platform.machine(), "python": platform.python_version()}
        about = {"machine": machine, "packages": packages, "texts": len(lengths), "tokens": int(lengths.sum())}
        arguments.output.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


def _compare(name: str, runs: list[Callable[[], np.ndarray]], rounds: int) -> dict[str, Any]:
    """The second's cost over the first's of every round, and the largest difference between their vectors."""
    costs: list[list[Cost]] = [[], []]
    vectors: dict[int, np.ndarray] = {}
    for number in range(rounds + 1):
        for index in random.Random(number).sample(range(2), 2):
            wall, cpu = time.perf_counter(), time.process_time()
            vectors[index] = runs[index]()
            cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
            if number:
                costs[index].append(cost)
    return {
        "what": name,
        "time": [second.wall / first.wall for first, second in zip(*costs, strict=True)],
        "cpu": [second.cpu / first.cpu for first, second in zip(*costs, strict=True)],
        "seconds": [[cost.wall for cost in run] for run in costs],
        "difference": float(np.abs(vectors[0] - vectors[1]).max()),
    }


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _tokenize(encoder: Encoder, arguments: argparse.Namespace) -> tuple[np.ndarray, list[list[int]]]:
    with gzip.open(arguments.texts, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 0, arguments.rows * arguments.every, arguments.every)]
    texts = [f"{row['synopsis']}. {row['description']}" for row in rows]
    tokenizer = encoder._tokenizer(encoder.artifact.manifest.max_tokens)
    sequences = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
    return np.array([len(ids) for ids in sequences]), sequences


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="JSON lines with synopsis and description, gzipped")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--every", type=int, default=100, help="take each so-many-th row")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--runtimes", nargs=2, default=["onnxruntime", "openvino"])
    parser.add_argument("--budgets", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="where the results go as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
