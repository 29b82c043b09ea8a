"""Encoders on a GPU: ours in its variants beside sentence-transformers, on the same texts and the same card, in turn.

    python benchmarks/gpu.py --texts packages.jsonl.gz --artifacts .llmrec/artifacts \
        --fp32 all-minilm-l6-v2 [--fp16 NAME] --peer-python PEER/bin/python --peer-model FOLDER [--out result.json]

`--texts` has a JSON object with ``synopsis`` and ``description`` per line. `PEER` is a virtual environment with
sentence-transformers and a CUDA build of torch; `FOLDER` is the Hugging Face folder of the same weights. Every round
runs every variant once, texts in and vectors out, tokenization included. The peer also measures what the card reaches
in a matrix product of its type; the share of that peak counts only what the model needs without padding. Vectors are
compared with our fp32.

Without a usable GPU it says why and measures nothing. `--dry-run` goes through all of it on the CPU, for those who
change this script; it prints no figure.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.artifacts import Artifact, ArtifactStore
from llmrec_plugin.inference import Placement
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.gpu import GpuSession, open_gpu
from llmrec_plugin.runtime.providers import CPU, CUDA, gpu_name, gpu_obstacle
from llmrec_plugin.runtime.session import new_session
from llmrec_plugin.settings import Settings, load_settings

TOKEN_BUDGETS = (8_192, 32_768, 131_072, 524_288)
PEER_BATCHES = (128, 512, 2_048)
NEIGHBOURS, QUERIES = 10, 1_000
WARM_UP = 2
"""Rounds that are not counted: kernels are chosen and graphs captured in them."""

Run = Callable[[], tuple[float, np.ndarray]]
"""Encodes the texts; gives the seconds and the vectors."""

PEER = Path(__file__).with_name("gpu_peer.py")


@dataclass(frozen=True)
class Variant:
    """One way to encode the texts.

    Attributes:
        engine: ``ours`` or ``sentence-transformers``.
        precision: ``fp32`` or ``fp16``.
        batch: Tokens of a batch (ours) or texts (peer).
        graphs: Whether CUDA graphs are used.
        fused: Whether attention is fused.
    """

    engine: str
    precision: str
    batch: int
    graphs: bool = False
    fused: bool = False


REFERENCE = Variant("ours", "fp32", 32_768)


class OnGpu(Encoder):
    """An encoder with a session as a variant wants it."""

    def __init__(self, artifact: Artifact, settings: Settings, variant: Variant, dry_run: bool) -> None:
        self._variant = variant
        self._dry_run = dry_run
        super().__init__(artifact, settings)

    def _open(self, placement: Placement) -> GpuSession:
        variant, artifact = self._variant, self.artifact
        if self._dry_run:
            return GpuSession(
                lambda graphs: new_session(artifact.path(GRAPH), [CPU]),
                artifact,
                token_budget=variant.batch,
                device="cpu",
            )
        return open_gpu(
            artifact,
            CUDA,
            self._settings.cache_folder,
            graphs=variant.graphs,
            fused=variant.fused,
            token_budget=variant.batch,
        )

    def check(self) -> None:
        """What was asked for and did not come about must not be measured under its name.

        Raises:
            RuntimeError: Graphs or fusion are not in use.
        """
        session, variant = self._opened.session, self._variant
        if not self._dry_run and (session.graphs, session.fused) != (variant.graphs, variant.fused):  # type: ignore[attr-defined]
            raise RuntimeError("CUDA graphs or fused attention did not come about; the log says why")


class Peer:
    """sentence-transformers in a process and an environment of its own, which waits for orders."""

    def __init__(self, python: str, model: Path, texts: list[str], max_tokens: int, device: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        listing = Path(self._folder.name) / "texts.json"
        listing.write_text(json.dumps(texts), encoding="utf-8")
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [python, str(PEER), str(model), str(listing), str(max_tokens), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        self.about = self._answer()

    def peak(self, precision: str) -> float:
        """FLOP/s of a large matrix product."""
        return float(self._ask({"order": "peak", "precision": precision})["flops"])

    def encode(self, variant: Variant) -> tuple[float, np.ndarray]:
        """Seconds, and the vectors."""
        path = Path(self._folder.name) / "vectors.npy"
        answer = self._ask(
            {"order": "encode", "precision": variant.precision, "batch": variant.batch, "vectors": str(path)}
        )
        return float(answer["seconds"]), np.load(path)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("The peer's process ended; what it wrote above says why.")
        answer: dict[str, Any] = json.loads(line)
        return answer


def model_flops(graph: Path, lengths: np.ndarray) -> float:
    """Floating-point operations that the texts need: matrix products and attention, without padding.

    Args:
        graph: An exported graph, not fused.
        lengths: Tokens of each text.
    """
    import onnx

    model = onnx.load(graph).graph
    shapes = {item.name: tuple(item.dims) for item in model.initializer}
    weights = [shapes[name] for node in model.node if node.op_type == "MatMul" for name in node.input if name in shapes]
    layers = sum(node.op_type == "Softmax" for node in model.node)
    hidden = shapes_hidden(weights)
    per_token = 2 * sum(int(np.prod(shape)) for shape in weights)
    attention = 4 * layers * hidden  # per pair of tokens: scores, and what they weigh
    counts = lengths.astype(np.float64)
    return float(per_token * counts.sum() + attention * np.square(counts).sum())


def shapes_hidden(weights: list[tuple[int, ...]]) -> int:
    """The hidden size: that of the square weights, of which attention has four per layer."""
    return statistics.mode(shape[0] for shape in weights if len(shape) == 2 and shape[0] == shape[1])


def overlap(vectors: np.ndarray, reference: np.ndarray) -> float:
    """Share of the `NEIGHBOURS` nearest of `QUERIES` rows that both agree on, by cosine, the row itself left out."""

    def nearest(rows: np.ndarray) -> np.ndarray:
        unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        count = min(QUERIES, len(unit))
        scores = unit[:count] @ unit.T
        scores[np.arange(count), np.arange(count)] = -np.inf
        return np.argpartition(-scores, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]

    pairs = zip(nearest(vectors), nearest(reference), strict=True)
    return float(np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in pairs]))


def cosines(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n,) float64."""
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return np.einsum("nd,nd->n", vectors, reference, dtype=np.float64) / np.maximum(norms, 1e-12)


def our_variants(fp16: bool) -> list[Variant]:
    """Everything that is switched one by one, and every budget with all of it."""
    switched = [(False, False), (True, False), (False, True), (True, True)]
    precisions = ["fp32", "fp16"] if fp16 else ["fp32"]
    found = [Variant("ours", precision, 32_768, *switch) for precision in precisions for switch in switched]
    return found + [
        Variant("ours", precision, budget, True, True)
        for precision in precisions
        for budget in TOKEN_BUDGETS
        if budget != 32_768
    ]


def measure(
    runs: dict[Variant, Run], rounds: int
) -> tuple[dict[Variant, tuple[list[float], np.ndarray]], dict[Variant, str]]:
    """Every round runs every variant once; one that fails is left out from then on.

    Returns:
        Seconds of every round and the last vectors of the variants that ran; why the others did not.
    """
    seconds: dict[Variant, list[float]] = {variant: [] for variant in runs}
    vectors: dict[Variant, np.ndarray] = {}
    failed: dict[Variant, str] = {}
    for number in range(WARM_UP + rounds):
        for variant in [variant for variant in runs if variant not in failed]:
            try:
                taken, vectors[variant] = runs[variant]()
            except Exception as exc:  # a large batch may not fit, and that is a result
                failed[variant] = f"{type(exc).__name__}: {exc}"
            else:
                seconds[variant] += [taken] if number >= WARM_UP else []
            print(f"round {number}: {variant} {failed.get(variant, '')}", file=sys.stderr)
    return {variant: (seconds[variant], vectors[variant]) for variant in runs if variant not in failed}, failed


def report(
    results: dict[Variant, tuple[list[float], np.ndarray]], flops: float, peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """One row per variant, fastest first."""
    _, reference = results[REFERENCE]
    count = len(reference)
    rows = []
    for variant, (rounds, vectors) in results.items():
        seconds = statistics.median(rounds)
        same = cosines(vectors, reference)
        peak = peaks.get(variant.precision)
        rows.append(
            {
                **asdict(variant),
                "texts_per_second": round(count / seconds, 1),
                "best": round(count / min(rounds), 1),
                "share_of_peak": round(flops / seconds / peak, 4) if peak else None,
                "cosine_min": round(float(same.min()), 7),
                "cosine_mean": round(float(same.mean()), 7),
                "overlap_at_10": round(overlap(vectors, reference), 4),
            }
        )
    return sorted(rows, key=lambda row: -row["texts_per_second"])


def main() -> None:
    args = arguments()
    obstacle = None if args.dry_run else gpu_obstacle(CUDA)
    if obstacle:
        sys.exit(f"There is no usable GPU, so nothing is measured: {obstacle}.")
    texts = read_texts(args.texts, args.count)
    store = ArtifactStore([args.artifacts])
    artifacts = {"fp32": store.current(args.fp32)}
    if args.fp16:
        artifacts["fp16"] = store.current(args.fp16)

    with tempfile.TemporaryDirectory() as folder:
        settings = replace(load_settings(), cache_folder=args.cache or Path(folder), progress=False)

        def load(variant: Variant) -> OnGpu:
            return OnGpu(artifacts[variant.precision], settings, variant, args.dry_run)

        runs: dict[Variant, Run] = {
            variant: ours(functools.partial(load, variant), texts) for variant in our_variants("fp16" in artifacts)
        }
        peaks: dict[str, float] = {}
        peer = None
        if args.peer_python:
            longest = artifacts["fp32"].manifest.max_tokens
            peer = Peer(args.peer_python, args.peer_model, texts, longest, "cpu" if args.dry_run else "cuda")
            peaks = {precision: peer.peak(precision) for precision in ("fp32", "fp16")}
            for precision in ("fp32",) if args.dry_run else ("fp32", "fp16"):
                for batch in PEER_BATCHES:
                    variant = Variant("sentence-transformers", precision, batch)
                    runs[variant] = functools.partial(peer.encode, variant)
        results, failed = measure(runs, args.rounds)
        if REFERENCE not in results:
            sys.exit(f"{REFERENCE}, which the others are compared with, failed: {failed[REFERENCE]}")
        encoder = load(REFERENCE)
        lengths = np.array([encoder.count_tokens([text]) for text in texts])
        rows = report(results, model_flops(artifacts["fp32"].path(GRAPH), lengths), peaks)
        about = {
            "gpu": gpu_name(),
            "cpu": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "texts": len(texts),
            "tokens": int(lengths.sum()),
            "peak_tflops": {precision: round(value / 1e12, 1) for precision, value in peaks.items()},
            "onnxruntime": __import__("onnxruntime").__version__,
            "numpy": version("numpy"),
            "peer": peer.about if peer else None,
            "failed": {str(variant): reason for variant, reason in failed.items()},
        }
        if peer:
            peer.close()
    if args.dry_run:
        worst = min(row["cosine_min"] for row in rows)
        sound = worst > 0.999 and not failed
        sys.exit(0 if sound else f"Dry run: smallest cosine {worst}, failed: {about['failed']}")
    show(about, rows)
    if args.out:
        args.out.write_text(json.dumps({**about, "variants": rows}, indent=2) + "\n", encoding="utf-8")


def ours(load: Callable[[], OnGpu], texts: list[str]) -> Run:
    encoder = functools.cache(load)  # loaded in the first round, which is not counted

    def run() -> tuple[float, np.ndarray]:
        size = encoder().texts_per_call
        begun = time.perf_counter()
        vectors = [encoder().encode(texts[start : start + size])[0] for start in range(0, len(texts), size)]
        seconds = time.perf_counter() - begun
        encoder().check()
        return seconds, np.concatenate(vectors)

    return run


def show(about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    print(json.dumps(about))
    names = list(rows[0])
    print("| " + " | ".join(names) + " |", "|" + "---|" * len(names), sep="\n")
    for row in rows:
        print("| " + " | ".join("-" if row[name] is None else str(row[name]) for name in names) + " |")


def read_texts(path: Path, count: int) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [f"{row['synopsis']}. {row['description']}" for row in rows]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40_000, help="texts to read")
    parser.add_argument("--artifacts", type=Path, default=load_settings().artifact_folders[0])
    parser.add_argument("--fp32", default="all-minilm-l6-v2", help="the model to compare with")
    parser.add_argument("--fp16", help="the same weights, exported in fp16")
    parser.add_argument("--cache", type=Path, help="folder that keeps fused graphs; default: none is kept")
    parser.add_argument("--peer-python", help="interpreter of an environment with sentence-transformers")
    parser.add_argument("--peer-model", type=Path, help="Hugging Face folder of the same weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="everything on the CPU, without figures")
    args = parser.parse_args()
    if bool(args.peer_python) != bool(args.peer_model):
        parser.error("--peer-python and --peer-model go together")
    return args


if __name__ == "__main__":
    main()
