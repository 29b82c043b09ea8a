"""What packing costs in quality: cosine to the float32 vectors, and the neighbours that a search still finds.

    llmrec export all-minilm-l6-v2
    python benchmarks/packing_quality.py [--packages PACKAGES.jsonl.gz] [--texts 1000] [--output result.json]

Texts are descriptions of Debian packages; the default file is the sample in `feature_repo`. Every text is a query,
all others are the corpus, and the exact ten nearest by float32 are the truth. ``stored`` packs the corpus and leaves
the queries as they are, which is a search by a query computed on demand; ``both`` packs both.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.pipeline.packing import pack, packed_bytes, unpack
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import Storage

SAMPLE = Path(__file__).parents[1] / "feature_repo" / "sample" / "packages.jsonl.gz"
STORAGES: tuple[Storage, ...] = ("float32", "float16", "int8")
NEIGHBOURS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=SAMPLE, help="one JSON object per line, with a description")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--output", type=Path, help="result as JSON")
    args = parser.parse_args()
    vectors = encode(read_texts(args.packages, args.texts), args.model)
    result = {"texts": len(vectors), "model": args.model, "storages": measure(vectors)}
    print(as_table(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


def read_texts(path: Path, count: int) -> list[str]:
    """Different descriptions, drawn with a fixed seed."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = list(dict.fromkeys(text for text in (json.loads(line).get("description") for line in lines) if text))
    return [texts[number] for number in np.random.default_rng(0).choice(len(texts), count, replace=False)]


def encode(texts: list[str], model: str) -> np.ndarray:
    settings = load_settings()
    artifact = ArtifactStore(settings.artifact_folders).current(model)
    vectors, _ = Encoder(artifact, settings).encode(texts, max_tokens=artifact.manifest.max_tokens)
    return vectors


def measure(vectors: np.ndarray) -> dict[str, dict[str, Any]]:
    truth = nearest(vectors, vectors)
    norms = np.linalg.norm(vectors, axis=1)
    result = {}
    for storage in STORAGES:
        packed = unpack(pack(vectors, storage), storage, vectors.shape[1])
        cosines = np.einsum("nd,nd->n", packed, vectors) / np.linalg.norm(packed, axis=1) / norms
        result[storage] = {
            "bytes": packed_bytes(storage, vectors.shape[1]),
            "cosine_mean": float(cosines.mean()),
            "cosine_min": float(cosines.min()),
            "overlap_stored": overlap(truth, nearest(vectors, packed)),
            "overlap_both": overlap(truth, nearest(packed, packed)),
        }
    return result


def nearest(queries: np.ndarray, corpus: np.ndarray) -> np.ndarray:
    """(n, NEIGHBOURS) rows of the corpus with the largest dot product, a query's own row left out."""
    scores = queries.astype(np.float64) @ corpus.astype(np.float64).T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :NEIGHBOURS]


def overlap(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean share of the true neighbours among those found."""
    return float(np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(truth, found, strict=True)]))


def as_table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['texts']} texts, {result['model']}",
        "",
        f"{'':10}{'bytes':>7}{'cosine, mean':>14}{'smallest':>10}{'overlap@10, stored':>20}{'both':>8}",
    ]
    for name, row in result["storages"].items():
        lines.append(
            f"{name:10}{row['bytes']:7}{row['cosine_mean']:14.6f}{row['cosine_min']:10.6f}"
            f"{row['overlap_stored']:20.4f}{row['overlap_both']:8.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
