"""``llmrec completion``: what a shell needs to complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from llmrec_plugin.errors import InputError

_NAME = "llmrec"
_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Prints the script that lets SHELL complete commands and options of llmrec.

    \b
    llmrec completion bash > ~/.llmrec-complete.bash
    llmrec completion fish > ~/.config/fish/completions/llmrec.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise InputError(f"click knows no completion for {shell}: expected one of {', '.join(_SHELLS)}.")
    click.echo(found(click.Group(_NAME), {}, _NAME, f"_{_NAME.upper()}_COMPLETE").source())
