"""The command ``llmrec new-plugin``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from llmrec_plugin.console import result
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.scaffold.writing import Kind, NewPlugin
from llmrec_plugin.settings import load_settings


def _show(written: list[Path]) -> None:
    root, *files = written
    for path in files:
        click.echo(path)
    click.echo("Next:")
    for line in (f"cd {root}", 'python -m pip install -e ".[test]"', "python -m pytest", "llmrec plugins"):
        click.echo(f"    {line}")


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(get_args(Kind)),
    default="embedding",
    show_default=True,
    help="What it declares: a vector of a column, or tags that a model writes, with a prompt of its own.",
)
@click.option("--entity", default="item", show_default=True, help="The Feast entity whose rows are read.")
@click.option("--column", default="title", show_default=True, help="The column that is read.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="Where the package's folder is made.  [default: here]",
)
@result(_show)
def new_plugin(name: str, kind: Kind, entity: str, column: str, folder: Path) -> list[Path]:
    """Writes a package llmrec-NAME: a plugin that can be installed, with tests that pass.

    \b
    llmrec new-plugin acme
    llmrec new-plugin acme --entity package --column synopsis
    llmrec new-plugin moods --kind generator --entity film --column plot
    """
    plugin = NewPlugin(name=name, kind=kind, entity=entity, column=column)
    plugin.check_free(load_catalogue(load_settings().disabled_plugins))
    try:
        root = plugin.write(folder)
    except FileExistsError as exc:
        raise click.ClickException(
            f"{folder / plugin.package} exists. Move it away, or choose another name or --folder; nothing was written."
        ) from exc
    return [root, *(root / path for path in plugin.files())]
