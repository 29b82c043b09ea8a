"""``llmrec train llm-scorer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("llm-scorer")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--base", required=True, help="Hugging Face folder of a causal language model.")
@click.option("--output", type=_FOLDER, required=True)
@click.option("--text", default="{title}", show_default=True, help="An item's text, by a template over its columns.")
@click.option("--liked-from", type=float, help="Least rating of what is liked.  [default: all events are]")
@click.option("--most-items", type=click.IntRange(min=1), default=10, show_default=True, help="Of each list.")
@click.option("--rows", type=click.IntRange(min=2), default=1000, show_default=True, help="Training rows at most.")
@click.option("--evaluated", type=click.IntRange(min=2), default=500, show_default=True, help="Validation rows.")
@click.option("--yes", default="Yes", show_default=True, help="The answer as it follows the prompt.")
@click.option("--no", default="No", show_default=True)
@click.option("--chat/--no-chat", default=False, show_default=True, help="Use the tokenizer's chat template.")
@click.option("--max-tokens", type=click.IntRange(min=8), default=512, show_default=True)
@click.option("--rank", type=click.IntRange(min=1), default=8, show_default=True, help="Of LoRA.")
@click.option("--epochs", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--patience", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--learning-rate", type=float, default=3e-4, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def llm_scorer(data: Path, base: str, output: Path, yes: str, no: str, **options: Any) -> dict[str, Any]:
    """Tunes a small language model to say whether a person will like an item (pointwise, TALLRec).

    Writes the merged model, adapter/ and quality.json to --output. A run that was stopped goes on when it is started
    again.

    \b
    llmrec train llm-scorer --data ml --base ./my-qwen2 --chat --liked-from 4 --output scorer
    llmrec export ./scorer --task causal --chat --max-tokens 512
    """
    from llmrec_plugin.interactions import read_atomic
    from llmrec_plugin.systems.llm_scorer.training import ScorerSettings, train_scorer  # loads torch

    settings = ScorerSettings(answers=(yes, no), **options)
    quality = train_scorer(read_atomic(data), base, output, settings, report=click.echo)
    click.echo("area under the ROC curve on validation rows:")
    for name, value in quality["auc"].items():
        click.echo(f"  {value:.4f}  {name.replace('_', ' ')}")
    return quality
