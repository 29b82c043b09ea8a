"""``llmrec train unisrec``, ``unisrec-pretraining`` and ``whitening``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmrec_plugin.errors import InputError
from llmrec_plugin.systems.sequence_options import (
    FOLDER,
    OUTPUT,
    PLAN,
    Command,
    device_of,
    load,
    plan_options,
    print_ranking,
    ranking_options,
    size_options,
    taken,
)

_CONTRAST = ("item_drop", "word_drop", "sequence_weight", "temperature", "batch", "rows")


def _texts(command: Command) -> Command:
    """Where text vectors come from."""
    command = click.option("--text", "template", default="{title}", show_default=True, help="Template of an item.")(
        command
    )
    return click.option(
        "--encoder", default="all-minilm-l6-v2", show_default=True, help="An exported encoder; frozen."
    )(command)


def _adaptor(command: Command) -> Command:
    command = click.option("--adaptor-dropout", type=click.FloatRange(0, 1, max_open=True), default=0.2)(command)
    return click.option("--experts", type=click.IntRange(min=1), default=4, show_default=True)(command)


@click.command("unisrec")
@click.option("--data", type=FOLDER, required=True, help="Folder of atomic files.")
@click.option("--output", type=OUTPUT, required=True)
@_texts
@click.option("--pretrained", type=FOLDER, help="Output of unisrec-pretraining; it fixes the shapes.")
@click.option("--tune-encoder", is_flag=True, help="Also train the pre-trained sequence encoder.")
@click.option("--transductive", is_flag=True, help="Items also have a vector of their own; new items have none.")
@size_options(hidden=64, heads=2, inner=256, dropout=0.2)
@_adaptor
@click.option("--temperature", type=float, default=0.07, show_default=True, help="What cosines are divided by.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Sequences of a batch.")
@plan_options(epochs=30, patience=5, rate=1e-3)
@ranking_options
def unisrec(data: Path, output: Path, encoder: str, device: str, **options: Any) -> dict[str, Any]:
    """Trains UniSRec: what a user does next, from the texts of what the user did before.

    \b
    llmrec train unisrec --data films --text "{title}. {genres}" --output unisrec-films
    """
    training = load("llmrec_plugin.systems.unisrec.training")
    plan = load("llmrec_plugin.training.loop").Plan(**taken(options, *PLAN))
    _check(options)
    quality = training.train_unisrec(
        load("llmrec_plugin.interactions").read_atomic(data),
        output=output,
        plan=plan,
        device=device_of(device),
        report=click.echo,
        **_encoder(encoder, output, options["progress"]),
        **options,
    )
    print_ranking(quality)
    return quality


@click.command("unisrec-pretraining")
@click.option("--data", type=FOLDER, required=True, multiple=True, help="Folder of atomic files; once for each domain.")
@click.option("--output", type=OUTPUT, required=True)
@_texts
@size_options(hidden=64, heads=2, inner=256, dropout=0.2)
@_adaptor
@click.option(
    "--item-drop", type=click.FloatRange(0, 1), default=0.2, show_default=True, help="Of augmented sequences."
)
@click.option("--word-drop", type=click.FloatRange(0, 1), default=0.15, show_default=True, help="Of augmented texts.")
@click.option("--sequence-weight", type=float, default=1e-3, show_default=True, help="Of the sequence-sequence loss.")
@click.option("--temperature", type=float, default=0.07, show_default=True, help="What cosines are divided by.")
@click.option("--batch", type=click.IntRange(min=2), default=256, show_default=True, help="Events of a batch.")
@click.option("--rows", type=click.IntRange(min=2), default=50_000, show_default=True, help="Events of an epoch.")
@plan_options(epochs=10, patience=3, rate=1e-3)
@click.option("--split", type=click.Choice(["data", "leave-one-out"]), default="data", show_default=True)
@click.option("--validated", type=click.IntRange(min=1), default=2_000, show_default=True, help="Events at most.")
def unisrec_pretraining(
    data: tuple[Path, ...], output: Path, encoder: str, device: str, **options: Any
) -> dict[str, Any]:
    """Pre-trains UniSRec on several data sets together, for `unisrec --pretrained`.

    \b
    llmrec train unisrec-pretraining --data films --data books --output unisrec-pretrained
    """
    pretraining = load("llmrec_plugin.systems.unisrec.pretraining")
    plan = load("llmrec_plugin.training.loop").Plan(**taken(options, *PLAN))
    _check(options)
    contrast = pretraining.Contrast(**taken(options, *_CONTRAST))
    read = load("llmrec_plugin.interactions").read_atomic
    quality: dict[str, Any] = pretraining.pretrain_unisrec(
        [read(folder) for folder in data],
        output=output,
        plan=plan,
        contrast=contrast,
        device=device_of(device),
        report=click.echo,
        **_encoder(encoder, output, options["progress"]),
        **options,
    )
    return quality


@click.command("whitening")
@click.option("--data", type=FOLDER, required=True, help="Folder of atomic files.")
@click.option("--output", type=OUTPUT, required=True)
@_texts
@click.option("--kind", type=click.Choice(["pca", "zca"]), default="pca", show_default=True)
@click.option("--dims", type=click.IntRange(min=1), help="Components that are kept.  [default: 64; zca: all]")
@click.option("--max-length", type=click.IntRange(min=2), default=10, show_default=True, help="Events averaged.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--progress/--no-progress", default=True, show_default=True)
@ranking_options
def whitening(data: Path, output: Path, encoder: str, progress: bool, **options: Any) -> dict[str, Any]:
    """Whitens item texts' vectors; a user is the mean of the last items. Nothing is trained.

    \b
    llmrec train whitening --data films --text "{title}. {genres}" --output whitened-films
    """
    module = load("llmrec_plugin.systems.unisrec.whitening")
    del options["validated"]
    quality = module.train_whitening(
        load("llmrec_plugin.interactions").read_atomic(data),
        output=output,
        report=click.echo,
        **_encoder(encoder, output, progress),
        **options,
    )
    print_ranking(quality)
    return quality


def _check(options: dict[str, Any]) -> None:
    if options["hidden"] % options["heads"]:
        raise InputError(f"--heads must divide --hidden, got {options['heads']} and {options['hidden']}.")


def _encoder(name: str, output: Path, progress: bool) -> dict[str, Any]:
    found = load("llmrec_plugin.training.vectors").frozen_encoder(name, output / "work", progress=progress)
    return {"encode": found.encode, "encoder": {"name": found.name, "artifact": found.artifact}}
