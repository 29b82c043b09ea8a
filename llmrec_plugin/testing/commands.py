"""``llmrec check``: the conformance kit without pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llmrec_plugin.console import result

if TYPE_CHECKING:
    from llmrec_plugin.testing.conformance import Result

_COLORS = {"passed": "green", "failed": "red", "skipped": "yellow"}


def _show_summary(results: list[Result]) -> None:
    if not results:
        click.echo("No check has such an id.")


@click.command()
@click.argument("plugin")
@click.option("--select", multiple=True, metavar="WORD", help="Only checks with this in their id; may be repeated.")
@result(_show_summary, failed=lambda results: not results or any(item.status == "failed" for item in results))
def check(plugin: str, select: tuple[str, ...]) -> list[Result]:
    """Checks that PLUGIN keeps what every plugin promises; exit code 1 if it does not.

    PLUGIN is the name of an installed plugin, or of its package or module.

    \b
    llmrec check acme
    llmrec check acme --select order_is_kept --select hostile
    """
    from llmrec_plugin.testing.conformance import check_plugin  # loads numpy and pyarrow

    def show(done: Result) -> None:
        click.secho(f"{done.status:8}{done.id} ({done.seconds:.1f} s)", fg=_COLORS[done.status])
        if done.message:
            click.echo(f"        {done.message}")

    return list(check_plugin(plugin, select=select, done=show).results)
