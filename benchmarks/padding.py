"""How many tokens of a GPU's batches are padding, by the way that batches are planned. Needs no GPU.

    python benchmarks/padding.py --texts packages.jsonl.gz [--artifacts .llmrec/artifacts] [--model all-minilm-l6-v2]

Three ways: `full` fills batches with the sorted texts up to the budget and pads lengths to multiples of 16 and rows to
a power of two; `fixed` fills batches of lengths and rows that are multiples of the step; `ours` also cuts where padding
would cost more than a batch (`llmrec_plugin.pipeline.buckets`). Shapes are (rows, length) after padding.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.manifests import TOKENIZER
from llmrec_plugin.pipeline.batching import plan_batches
from llmrec_plugin.pipeline.buckets import bucket
from llmrec_plugin.runtime.gpu import SHAPE_STEP
from llmrec_plugin.settings import load_settings

BUDGETS = (8_192, 32_768, 131_072)
TEXTS_AT_ONCE = (1_024, 4_096, 40_000)
Shapes = Iterator[tuple[int, int]]


def full(lengths: np.ndarray, budget: int, longest: int) -> Shapes:
    for batch in plan_batches(lengths, budget):
        yield 1 << (len(batch) - 1).bit_length(), min(-(-int(lengths[batch].max()) // 16) * 16, longest)


def fixed(lengths: np.ndarray, budget: int, longest: int) -> Shapes:
    ordered = np.sort(lengths)[::-1]
    while len(ordered):
        _, length = bucket(1, int(ordered[0]), SHAPE_STEP, longest)
        batch = ordered[: max(budget // length // SHAPE_STEP * SHAPE_STEP, 1)]
        yield bucket(len(batch), int(batch[0]), SHAPE_STEP, longest)
        ordered = ordered[len(batch) :]


def ours(lengths: np.ndarray, budget: int, longest: int) -> Shapes:
    for batch in plan_batches(lengths, budget, SHAPE_STEP):
        yield bucket(len(batch), int(lengths[batch].max()), SHAPE_STEP, longest)


WAYS: dict[str, Callable[[np.ndarray, int, int], Shapes]] = {"full": full, "fixed": fixed, "ours": ours}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, default=load_settings().artifact_folders[0])
    parser.add_argument("--model", default="all-minilm-l6-v2")
    args = parser.parse_args()
    artifact = ArtifactStore([args.artifacts]).current(args.model)
    longest = artifact.manifest.max_tokens
    tokenizer = Tokenizer.from_file(str(artifact.path(TOKENIZER)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    with gzip.open(args.texts, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    kinds = {
        "descriptions": [f"{row['synopsis']}. {row['description']}" for row in rows],
        "synopses": [row["synopsis"] for row in rows],
    }
    print("| texts | mean tokens | at a time | budget | " + " | ".join(WAYS) + " |")
    print("|" + "---|" * (4 + len(WAYS)))
    for kind, texts in kinds.items():
        lengths = np.concatenate([
            [len(item.ids) for item in tokenizer.encode_batch_fast(texts[start : start + 2000])]
            for start in range(0, len(texts), 2000)
        ])  # fmt: skip
        for count in TEXTS_AT_ONCE:
            for budget in BUDGETS:
                cells = [cell(way, lengths, count, budget, longest) for way in WAYS.values()]
                print(f"| {kind} | {lengths.mean():.0f} | {count:,} | {budget:,} | " + " | ".join(cells) + " |")


def cell(
    way: Callable[[np.ndarray, int, int], Shapes], lengths: np.ndarray, count: int, budget: int, longest: int
) -> str:
    """Padding per real token, batches and shapes."""
    shapes: Counter[tuple[int, int]] = Counter()
    for start in range(0, len(lengths), count):
        shapes.update(way(lengths[start : start + count], budget, longest))
    tokens = sum(rows * length * times for (rows, length), times in shapes.items())
    return f"{tokens / lengths.sum() - 1:.1%} ({sum(shapes.values())} batches, {len(shapes)} shapes)"


if __name__ == "__main__":
    main()
