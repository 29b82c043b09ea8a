"""``llmrec train``: the built-in ``tags`` and ``synopsis``, and the commands of plugins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from llmrec_plugin.console import print_table, result, with_json
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.manager import load_catalogue, load_trainers
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import EncoderModel

_SIZES = ("decoder_layers", "source_tokens", "target_tokens", "batch", "least_count")
Command = TypeVar("Command", bound=Callable[..., Any])


def _common(epochs: int, patience: int, rate: float) -> Callable[[Command], Command]:
    """The options that both commands have, with their defaults."""
    path = click.Path(exists=True, path_type=Path)
    options = [
        click.option("--data", type=path, required=True, help="A .jsonl or .jsonl.gz file, or a folder of them."),
        click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True),
        click.option("--encoder", default="all-minilm-l6-v2", show_default=True, help="A registered encoder; frozen."),
        click.option("--text-column", default="description", show_default=True),
        click.option("--name-column", default="name", show_default=True, help="Names of one stem are near duplicates."),
        click.option("--held-out", type=path, help="Rows whose names are tested on and never trained on."),
        click.option("--most-rows", type=click.IntRange(min=10), help="Training rows at most.  [default: all]"),
        click.option("--evaluated", default=1_000, show_default=True, help="Test rows at most."),
        click.option("--epochs", default=epochs, show_default=True, type=click.IntRange(min=1)),
        click.option("--patience", default=patience, show_default=True, type=click.IntRange(min=1)),
        click.option("--learning-rate", default=rate, show_default=True, type=float),
        click.option("--weight-decay", default=0.01, show_default=True, type=float),
        click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0)),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class _Trainers(click.Group):
    """The built-in commands and those of plugins, which are imported when the group is used."""

    @functools.cached_property
    def _plugins(self) -> dict[str, click.Command]:
        found, failures = load_trainers(load_settings().disabled_plugins)
        for failure in failures:
            click.secho(f"A plugin is not used: {failure}", fg="yellow", err=True)
        return {name: with_json(command.declaration) for name, command in found.items() if name not in self.commands}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self._plugins})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._plugins.get(cmd_name)


@click.group(cls=_Trainers)
def train() -> None:
    """Trains a model, and measures it against what needs no training.

    Near duplicates (equal texts, equal first sentences, names of one stem) are never in two of training, validation
    and test. A run that was stopped goes on when it is started again.
    """


@train.command()
@_common(epochs=200, patience=10, rate=2e-3)
@click.option("--labels-column", default="tags", show_default=True)
@click.option("--least-support", default=20, show_default=True, help="Training rows that a label must have.")
@click.option("--hidden", default=0, show_default=True, help="Width of a layer before the linear one; 0: none.")
@result(lambda quality: _show({"head": quality["test"], **quality["baselines"]}))
def tags(encoder: str, labels_column: str, least_support: int, hidden: int, **options: Any) -> dict[str, Any]:
    """Trains the head of a LabelModel: which labels of a closed vocabulary a text has.

    Writes head.safetensors and quality.json to --output. The encoder must be exported.

    \b
    llmrec train tags --data packages.jsonl.gz --output tagger
    llmrec train tags --data films.jsonl --text-column plot --labels-column genres --name-column title --output genres
    """
    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.runtime.encoder import Encoder  # loads numpy and, with the model, a runtime
    from llmrec_plugin.training.rows import read_rows
    from llmrec_plugin.training.tags import TagColumns, train_tags
    from llmrec_plugin.training.vectors import stored_vectors

    settings = load_settings()
    model = Encoder(ArtifactStore(settings.artifact_folders).current(encoder), settings)
    return train_tags(
        read_rows(options["data"]),
        lambda texts: stored_vectors(model, texts, options["output"] / "work", progress=settings.progress),
        options["output"],
        _plan(options),
        columns=TagColumns(text=options["text_column"], labels=labels_column, name=options["name_column"] or None),
        held_out=_held_out(options),
        most_rows=options["most_rows"],
        evaluated=options["evaluated"],
        least_support=least_support,
        hidden=hidden,
        progress=settings.progress,
        report=click.echo,
    )


@train.command()
@_common(epochs=8, patience=2, rate=5e-4)
@click.option("--target-column", default="synopsis", show_default=True)
@click.option("--decoder-layers", default=2, show_default=True, type=click.IntRange(min=1))
@click.option("--source-tokens", default=128, show_default=True, help="Longest text, special tokens included.")
@click.option("--target-tokens", default=32, show_default=True, help="Longest target, special tokens included.")
@click.option("--least-count", default=1, show_default=True, help="Targets a token must be in to be written.")
@click.option("--batch", default=64, show_default=True, help="Rows of a batch.")
@result(lambda quality: _show(quality["test"]))
def synopsis(encoder: str, target_column: str, **options: Any) -> dict[str, Any]:
    """Trains the decoder of a seq2seq GeneratorModel on a BERT: a text in, a short text out.

    Writes decoder.safetensors, base.json, quality.json and examples.json to --output. The encoder must be exported.

    \b
    llmrec train synopsis --data packages.jsonl.gz --output synopsis
    """
    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.training.rows import read_rows
    from llmrec_plugin.training.states import exported_encoder
    from llmrec_plugin.training.synopsis import Size, SynopsisColumns, train_synopsis

    settings = load_settings()
    model = load_catalogue(settings.disabled_plugins).model(encoder)
    if not isinstance(model, EncoderModel):
        raise DeclarationError(f"{encoder!r} is no EncoderModel.")
    artifact = ArtifactStore(settings.artifact_folders).current(encoder)
    return train_synopsis(
        read_rows(options["data"]),
        model.source,
        options["output"],
        _plan(options),
        columns=SynopsisColumns(text=options["text_column"], target=target_column, name=options["name_column"] or None),
        size=Size(**{name: options[name] for name in _SIZES}),
        held_out=_held_out(options),
        most_rows=options["most_rows"],
        evaluated=options["evaluated"],
        encoder=exported_encoder(artifact, options["output"] / "work", settings.threads),
        progress=settings.progress,
        report=click.echo,
    )


def _plan(options: dict[str, Any]) -> Any:
    from llmrec_plugin.training.loop import Plan

    return Plan(**{name: options[name] for name in ("epochs", "patience", "learning_rate", "weight_decay", "seed")})


def _held_out(options: dict[str, Any]) -> frozenset[str]:
    from llmrec_plugin.training.rows import read_rows, texts_of

    if options["held_out"] is None:
        return frozenset()
    return frozenset(texts_of(read_rows(options["held_out"]), options["name_column"]))


def _show(scores: dict[str, dict[str, float]]) -> None:
    print_table(
        [
            {"on held-out rows": name, **{column: f"{value:.3f}" for column, value in values.items()}}
            for name, values in scores.items()
        ]
    )
