"""``llmrec train encoder``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("encoder")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--base", help="Hugging Face folder of an encoder.  [default: all-MiniLM-L6-v2 of the extra minilm]")
@click.option("--output", type=_FOLDER, required=True)
@click.option("--text", default="{title}", show_default=True, help="An item's text, by a template over its columns.")
@click.option("--query", type=click.Choice(["history", "user"]), default="history", show_default=True)
@click.option("--user-text", default="", help="A user's text, by a template over the users' columns; --query user.")
@click.option("--history", "last_n", type=click.IntRange(min=1), default=5, show_default=True, help="Items of it.")
@click.option("--liked-from", type=float, help="Leave out events with a lower rating.  [default: none]")
@click.option("--pairs", type=click.IntRange(min=2), default=4000, show_default=True, help="Training pairs at most.")
@click.option("--evaluated", type=click.IntRange(min=2), default=1000, show_default=True, help="Validation pairs.")
@click.option("--layers", type=click.IntRange(min=0), help="Train the last layers.  [default: 2 without --rank]")
@click.option("--rank", type=click.IntRange(min=0), default=0, help="Train LoRA of this rank instead (extra tune).")
@click.option("--max-tokens", type=click.IntRange(min=4), default=96, show_default=True, help="Read in training.")
@click.option("--temperature", type=float, default=0.05, show_default=True)
@click.option("--symmetric/--one-sided", default=True, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--patience", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=2), default=64, show_default=True)
@click.option("--learning-rate", type=float, help="[default: 1e-4 for layers, 1e-3 for LoRA]")
@click.option("--pooling", type=click.Choice(["mean", "cls", "last_token", "max"]), help="If --base does not state it.")
@click.option("--metric", type=click.Choice(["cosine", "dot", "euclidean"]), help="If --base does not state it.")
@click.option("--normalize/--no-normalize", default=None, help="If --base does not state it.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def encoder(
    data: Path,
    base: str | None,
    output: Path,
    text: str,
    query: Any,
    user_text: str,
    last_n: int,
    liked_from: float | None,
    pooling: str | None,
    metric: str | None,
    normalize: bool | None,
    layers: int | None,
    learning_rate: float | None,
    **options: Any,
) -> dict[str, Any]:
    """Tunes a text encoder on interactions: a history and the item that came next belong together.

    Writes the encoder and quality.json to --output. A run that was stopped goes on when it is started again.

    \b
    llmrec train encoder --data ml --output ml-encoder --text "{title}. {genres}"
    llmrec export ./ml-encoder
    """
    from llmrec_plugin.interactions import read_atomic
    from llmrec_plugin.systems.minilm import ALL_MINILM_L6_V2
    from llmrec_plugin.systems.task_encoder.pairs import make_task
    from llmrec_plugin.systems.task_encoder.training import EncoderSettings, train_encoder  # loads torch
    from llmrec_plugin.training.encoders import encoder_in

    rank, seed = options["rank"], options["seed"]
    settings = EncoderSettings(
        layers=(0 if rank else 2) if layers is None else layers,
        learning_rate=learning_rate or (1e-3 if rank else 1e-4),
        **options,
    )
    model = replace(ALL_MINILM_L6_V2, name="base")
    if base is not None:
        model = encoder_in(base, options["max_tokens"], pooling=pooling, metric=metric, normalize=normalize)
    task = make_task(
        read_atomic(data), text, query=query, user_text=user_text, last_n=last_n, liked_from=liked_from, seed=seed
    )
    quality = train_encoder(task, model, output, settings, report=click.echo)
    click.echo("recall@10 and NDCG@10 of validation pairs, over all items:")
    for name, value in quality["validation"].items():
        click.echo(f"  {value['recall']:.4f}  {value['ndcg']:.4f}  {name}")
    return quality
