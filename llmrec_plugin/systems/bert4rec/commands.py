"""``llmrec train bert4rec``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llmrec_plugin.errors import InputError
from llmrec_plugin.systems.sequence_options import (
    FOLDER,
    OUTPUT,
    PLAN,
    device_of,
    load,
    plan_options,
    print_ranking,
    ranking_options,
    size_options,
    taken,
)


@click.command("bert4rec")
@click.option("--data", type=FOLDER, required=True, help="Folder of atomic files.")
@click.option("--output", type=OUTPUT, required=True)
@size_options(hidden=64, heads=2, inner=256, dropout=0.2)
@click.option("--mask-share", type=click.FloatRange(0, 1), default=0.2, show_default=True, help="Of masked items.")
@click.option("--last-share", type=click.FloatRange(0, 1), default=0.2, show_default=True, help="Only the last masked.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Sequences of a batch.")
@plan_options(epochs=60, patience=10, rate=2e-3)
@ranking_options
def bert4rec(data: Path, output: Path, device: str, **options: Any) -> dict[str, Any]:
    """Trains BERT4Rec: what a user does next, from the ids of what the user did before.

    \b
    llmrec train bert4rec --data films --output bert4rec-films
    """
    training = load("llmrec_plugin.systems.bert4rec.training")
    loop = load("llmrec_plugin.training.loop")
    interactions = load("llmrec_plugin.interactions")
    if options["hidden"] % options["heads"]:
        raise InputError(f"--heads must divide --hidden, got {options['heads']} and {options['hidden']}.")
    plan = loop.Plan(**taken(options, *PLAN))
    cloze = training.Cloze(**taken(options, "mask_share", "last_share", "batch"))
    quality = training.train_bert4rec(
        interactions.read_atomic(data),
        output,
        plan,
        cloze=cloze,
        device=device_of(device),
        report=click.echo,
        **options,
    )
    print_ranking(quality)
    click.echo(f"vectors: {options['hidden'] + 1} dims")
    return quality
