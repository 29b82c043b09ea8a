"""``llmrec train bi-encoder``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from llmrec_plugin.errors import InputError
from llmrec_plugin.systems.mint.queries import Pair, split_pairs
from llmrec_plugin.systems.mint.training import TrainingSettings, train_bi_encoder

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("bi-encoder")
@click.option("--pairs", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--base", type=_FOLDER, required=True, help="Hugging Face folder of the encoder to start from.")
@click.option("--output", type=_FOLDER, required=True, help="Folder to write; must not exist or be empty.")
@click.option("--max-tokens", type=click.IntRange(min=1), required=True, help="Longest input, special tokens included.")
@click.option("--pooling", type=click.Choice(["mean", "cls"]), default="mean", show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), default=16, show_default=True)
@click.option("--learning-rate", type=float, default=2e-5, show_default=True)
@click.option("--dev-share", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def bi_encoder(path: Path, base: Path, output: Path, dev_share: float, seed: int, **options: Any) -> dict[str, Any]:
    """Trains MINT's retriever on pairs of a request and a document.

    PAIRS is a .jsonl file with `query` and `document` in each line. A share of the requests, with all of their
    documents, is measured on and not trained on.

    \b
    llmrec train bi-encoder --pairs pairs.jsonl --base all-MiniLM-L6-v2 --output mint-bi-encoder --max-tokens 128
    llmrec export ./mint-bi-encoder
    """
    train, dev = split_pairs(read_pairs(path), dev_share, seed=seed)
    settings = TrainingSettings(seed=seed, **options)
    record = train_bi_encoder(train, base, output, settings, dev=dev, report=click.echo)
    if record.dev_loss_before is not None:
        click.echo(
            f"mean loss of {record.dev_pairs} pairs not trained on: "
            f"{record.dev_loss_before:.4f} before, {record.dev_loss_after:.4f} after"
        )
    return asdict(record)


def read_pairs(path: Path) -> list[Pair]:
    """The pairs in a .jsonl file: ``query`` and ``document`` of one object a line.

    Raises:
        InputError: A line is no such object; names the line.
    """
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            pair = Pair(value["query"], value["document"])
        except (ValueError, TypeError, KeyError) as exc:
            raise InputError(f"{path}, line {number}: expected an object with query and document: {exc!r}.") from exc
        if not all(isinstance(text, str) and text.strip() for text in pair):
            raise InputError(f"{path}, line {number}: query and document must be texts.")
        pairs.append(pair)
    return pairs
