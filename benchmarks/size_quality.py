"""What a smaller or coarser encoder costs in ranking quality, per byte of its vectors and per millisecond of a text.

    llmrec export all-minilm-l6-v2
    python benchmarks/size_quality.py [--texts PACKAGES.jsonl.gz] [--documents 2000] [--output result.json]

The task: find a package's description by its synopsis, among the descriptions of all packages. Packages whose
description contains the synopsis are left out (there the words alone would do), as are repeated synopses and
descriptions, and packages that are among the built-in texts, on which models are calibrated. One description is right
for each query, so NDCG@10 is 1 / log2(1 + rank) within the first ten, else 0.

Models that are not exported yet are exported first, on the built-in texts. ``pca`` rows turn the vectors onto axes
computed from built-in texts as well. Times are wall times of a text in
sorted batches with one caller for each processor; models take turns in an order drawn anew for each round.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import ArtifactNotFoundError
from llmrec_plugin.export import export_model
from llmrec_plugin.export.quality import nearest, overlap
from llmrec_plugin.export.rotation import principal_axes
from llmrec_plugin.export.texts import builtin_texts
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.settings import Settings, load_settings
from llmrec_plugin.specs import EncoderModel
from llmrec_plugin.systems.minilm import ALL_MINILM_L6_V2 as FULL
from llmrec_plugin.systems.minilm import INT8, INT8_FAST

SAMPLE = Path(__file__).parents[1] / "feature_repo" / "sample" / "packages.jsonl.gz"
PREFIXES = (256, 128, 64, 32)
KEY = 35
"""Built-in texts are cut after 40 characters or later; the beginning tells which package one is of."""


def pruned(*layers: int) -> EncoderModel:
    return replace(FULL, name=f"all-minilm-l6-v2-layers{len(layers)}", layers=layers, min_overlap=0)


MODELS = (FULL, INT8, INT8_FAST, pruned(0, 1, 3, 4, 5), pruned(0, 2, 4, 5), pruned(0, 4, 5))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant; differences are to the full model, ms to the full model's of the same rounds."""

    model: str
    dims: int
    rotation: str
    bytes: int
    ms: float
    speed: float
    overlap_at_10: float
    ndcg_at_10: float
    mrr: float
    ndcg_lost: float
    ndcg_lost_per_kilobyte: float | None
    ndcg_lost_per_ms: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, default=SAMPLE, help="one JSON object a line, with synopsis, description")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--timed", type=int, default=150, help="texts of one round of timing")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="result as JSON")
    args = parser.parse_args()
    settings = load_settings()
    queries, documents = read_pairs(args.texts, args.documents)
    encoders = {model.name: open_encoder(model, settings) for model in MODELS}
    seconds = time_encoders(encoders, documents[: args.timed], args.rounds)
    rows = measure(encoders, seconds, queries, documents)
    result = {
        "documents": len(documents),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "rows": [asdict(row) for row in rows],
    }
    print(as_table(result, rows))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


def read_pairs(path: Path, count: int) -> tuple[list[str], list[str]]:
    """Synopses and descriptions of packages drawn with a fixed seed."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    built_in = builtin_texts()
    calibrated = {words(text)[:KEY] for text in (*built_in.calibration, *built_in.measurement)}
    pairs: dict[str, str] = {}
    seen: set[str] = set()
    for row in rows:
        query, document = row.get("synopsis") or "", row.get("description") or ""
        if not query or not document or words(query) in words(document) or query in seen:
            continue
        if words(f"{query} {document}")[:KEY] in calibrated:
            continue
        seen.add(query)
        pairs.setdefault(document, query)
    chosen = np.random.default_rng(0).permutation(len(pairs))[:count]
    items = list(pairs.items())
    return [items[row][1] for row in chosen], [items[row][0] for row in chosen]


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def open_encoder(model: EncoderModel, settings: Settings) -> Encoder:
    store = ArtifactStore(settings.artifact_folders)
    try:
        artifact = store.current(model.name)
    except ArtifactNotFoundError:
        artifact = export_model(model, store, report=print)
    return Encoder(artifact, settings)


def time_encoders(encoders: dict[str, Encoder], texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round by model, in the order of the rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    random = np.random.default_rng(0)
    for encoder in encoders.values():
        encoder.encode(texts[:16])
    for _ in range(rounds):
        for name in random.permutation(list(encoders)):
            start = time.perf_counter()
            encoders[name].encode(texts)
            seconds[name].append((time.perf_counter() - start) / len(texts))
    return seconds


def measure(
    encoders: dict[str, Encoder], seconds: dict[str, list[float]], queries: list[str], documents: list[str]
) -> list[Row]:
    full = np.array(seconds[FULL.name])
    axes = principal_axes(encoders[FULL.name].encode(builtin_texts().calibration)[0])
    rows: list[Row] = []
    truth = base = base_ms = None
    for name, encoder in encoders.items():
        asked, found = encoder.encode(queries)[0], encoder.encode(documents)[0]
        if truth is None:
            truth = nearest(found, "cosine")
        speed = float(np.median(full / np.array(seconds[name])))
        ms = float(np.median(full)) * 1000 / speed
        variants = [(found.shape[1], "")]
        variants += (
            [(size, turn) for size in PREFIXES for turn in ("", "pca")] if name in (FULL.name, INT8_FAST.name) else []
        )
        for dims, rotation in variants:
            turned = [(side @ axes if rotation else side)[:, :dims] for side in (asked, found)]
            ndcg, mrr = ranking(*turned)
            base, base_ms = (ndcg, ms) if base is None else (base, base_ms)
            saved = (found.shape[1] - dims) * 4 / 1000
            lost = base - ndcg
            rows.append(
                Row(
                    model=name.removeprefix("all-minilm-l6-v2").lstrip("-") or "fp32",
                    dims=dims,
                    rotation=rotation,
                    bytes=dims * 4,
                    ms=round(ms, 3),
                    speed=round(speed, 3),
                    overlap_at_10=round(overlap(truth, nearest(turned[1], "cosine")), 4),
                    ndcg_at_10=round(ndcg, 4),
                    mrr=round(mrr, 4),
                    ndcg_lost=round(lost, 4),
                    ndcg_lost_per_kilobyte=round(lost / saved, 4) if saved else None,
                    ndcg_lost_per_ms=round(lost / (base_ms - ms), 4) if base_ms - ms > 0.02 * base_ms else None,
                )
            )
    return rows


def ranking(queries: np.ndarray, documents: np.ndarray) -> tuple[float, float]:
    """NDCG@10 and MRR of row i of `documents`, both (n, d), for row i of `queries`, by cosine."""
    unit = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (queries, documents)]
    scores = unit[0].astype(np.float64) @ unit[1].astype(np.float64).T
    ranks = 1 + (scores > np.diagonal(scores)[:, None]).sum(1)
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)
    return float(gains.mean()), float((1 / ranks).mean())


def as_table(result: dict, rows: list[Row]) -> str:
    lines = [
        f"{result['documents']} packages, {result['processors']} processors, load {result['load']}",
        "",
        f"{'':12}{'dims':>5} {'turned':7}{'bytes':>6}{'ms':>8}{'faster':>8}{'overlap':>9}{'NDCG@10':>9}{'MRR':>8}"
        f"{'lost':>9}{'per kB':>9}{'per ms':>9}",
    ]
    for row in rows:
        per = [
            f"{value:9.4f}" if value is not None else f"{'':9}"
            for value in (row.ndcg_lost_per_kilobyte, row.ndcg_lost_per_ms)
        ]
        lines.append(
            f"{row.model:12}{row.dims:5} {row.rotation:7}{row.bytes:6}{row.ms:8.2f}{row.speed:8.2f}"
            f"{row.overlap_at_10:9.4f}{row.ndcg_at_10:9.4f}{row.mrr:8.4f}{row.ndcg_lost:9.4f}{''.join(per)}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
