"""Options that the commands of sequence models share."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from llmrec_plugin.errors import MissingExtraError

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
OUTPUT = click.Path(file_okay=False, path_type=Path)
PLAN = ("epochs", "patience", "learning_rate", "weight_decay", "seed")

Command = TypeVar("Command", bound=Callable[..., Any])


def plan_options(*, epochs: int, patience: int, rate: float) -> Callable[[Command], Command]:
    """How long and how fast to learn, and where."""
    positive = click.IntRange(min=1)
    return _all(
        click.option("--epochs", type=positive, default=epochs, show_default=True),
        click.option("--patience", type=positive, default=patience, show_default=True, help="Epochs without progress."),
        click.option("--learning-rate", type=float, default=rate, show_default=True),
        click.option("--weight-decay", type=float, default=0.01, show_default=True),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
        click.option("--progress/--no-progress", default=True, show_default=True),
    )


def ranking_options(command: Command) -> Command:
    """How a model is measured."""
    return _all(
        click.option(
            "--split",
            type=click.Choice(["data", "leave-one-out"]),
            default="data",
            show_default=True,
            help="data: the split that is given, else by time, else by leaving out shares.",
        ),
        click.option(
            "--exclude-seen/--keep-seen", default=True, show_default=True, help="Whether items of a history are ranked."
        ),
        click.option(
            "--validated", type=click.IntRange(min=1), default=2_000, show_default=True, help="Events at most."
        ),
        click.option(
            "--evaluated", type=click.IntRange(min=1), default=20_000, show_default=True, help="Events at most."
        ),
    )(command)


def size_options(*, hidden: int, heads: int, inner: int, dropout: float) -> Callable[[Command], Command]:
    """Shapes of a sequence encoder."""
    positive = click.IntRange(min=1)
    return _all(
        click.option("--hidden", type=positive, default=hidden, show_default=True, help="Width of a state."),
        click.option("--layers", type=positive, default=2, show_default=True),
        click.option("--heads", type=positive, default=heads, show_default=True),
        click.option(
            "--inner", type=positive, default=inner, show_default=True, help="Width of feed-forward networks."
        ),
        click.option("--max-length", type=click.IntRange(min=2), default=50, show_default=True, help="Events read."),
        click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=dropout, show_default=True),
    )


def taken(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Takes some options out."""
    return {name: options.pop(name) for name in names}


def load(module: str) -> Any:
    """A module that needs PyTorch.

    Raises:
        MissingExtraError: PyTorch or safetensors are not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise MissingExtraError(exc.name or "torch", "export", "Training") from exc


def device_of(choice: str) -> str:
    """``cuda`` where it is asked for, or ``auto`` and usable; else ``cpu``."""
    if choice != "auto":
        return choice
    return "cuda" if load("torch").cuda.is_available() else "cpu"


def print_ranking(quality: Mapping[str, Any]) -> None:
    """The measured table."""
    rows = {quality["system"]: quality["test"], **quality["baselines"]}
    columns = list(quality["test"])
    width = max(len(name) for name in [*rows, "test events"])
    click.echo("  ".join([f"{quality['evaluated_events']} test events".ljust(width), *columns]))
    for name, values in rows.items():
        click.echo("  ".join([name.ljust(width), *(f"{values[column]:.4f}".rjust(len(column)) for column in columns)]))


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
