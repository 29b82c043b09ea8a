"""What all commands of ``llmrec`` share: how a result is printed, ``--json``, how an error ends, exit codes.

A command gives back its result as data, and says separately how people read it::

    @click.command()
    @result(show=print_table)
    def colors() -> list[dict[str, str]]:
        return [{"color": "red"}]

``llmrec colors`` prints a table and ``llmrec colors --json`` the data. Whatever else a command prints is then on
stderr, so that stdout is one JSON value.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from llmrec_plugin.errors import LLMRecError

FAILED = 1
"""Exit code of an error of this package, and of a command that found something wrong; wrong usage is click's 2."""


class Group(click.Group):
    """A group whose commands are imported when they are used; an error of this package is one line on stderr.

    Args:
        modules: Name of a command -> ``module:attribute``.
    """

    def __init__(self, *args: Any, modules: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.modules = dict(modules or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.modules})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.modules[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LLMRecError as exc:  # anything else is a bug and keeps its traceback
            click.secho(f"{type(exc).__name__}: {exc}", fg="red", err=True)
            ctx.exit(FAILED)


def result(
    show: Callable[[Any], None] | None = None, *, failed: Callable[[Any], bool] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command ``--json``, which prints what the command returns.

    Args:
        show: Prints it for people. None: the command has printed what they read.
        failed: Whether the result is bad news, for which the exit code is 1.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
        @functools.wraps(function)
        def command(*arguments: Any, as_json: bool, **options: Any) -> Any:
            with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
                value = function(*arguments, **options)
            if as_json:
                print_json(value)
            elif show is not None:
                show(value)
            if failed is not None and failed(value):
                click.get_current_context().exit(FAILED)
            return value

        return command

    return decorate


def with_json(command: click.Command) -> click.Command:
    """The command of a plugin with ``--json``, see `result`; itself if it has such an option."""
    if command.callback is None or any("--json" in parameter.opts for parameter in command.params):
        return command
    function = result()(command.callback)
    changed = copy.copy(command)
    changed.callback = function
    changed.params = [*command.params, *function.__click_params__]  # type: ignore[attr-defined]
    return changed


def print_json(value: Any) -> None:
    """Prints plain data, dataclasses, paths, times and numpy's numbers as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows, all with the columns of the first, in aligned columns."""
    if not rows:
        click.echo("None.")
        return
    header = list(rows[0])
    cells = [header] + [[_cell(row[name]) for name in header] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    for line in cells:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value.item() if hasattr(value, "item") else str(value)


def _cell(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value not in ("", None) else "-"
