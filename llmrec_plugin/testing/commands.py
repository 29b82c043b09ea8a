"""``llmrec check``: the conformance kit without pytest."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click


@click.command()
@click.argument("plugin")
@click.option("--select", multiple=True, metavar="WORD", help="Only checks with this in their id; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def check(plugin: str, select: tuple[str, ...], as_json: bool) -> None:
    """Checks that PLUGIN keeps what every plugin promises; exit code 1 if it does not.

    PLUGIN is the name of an installed plugin, or of its package or module.

    \b
    llmrec check acme
    llmrec check acme --select order_is_kept --select hostile
    """
    from llmrec_plugin.testing.conformance import Result, check_plugin  # loads numpy and pyarrow

    colors = {"passed": "green", "failed": "red", "skipped": "yellow"}

    def show(result: Result) -> None:
        if not as_json:
            click.secho(f"{result.status:8}{result.id} ({result.seconds:.1f} s)", fg=colors[result.status])
            if result.message:
                click.echo(f"        {result.message}")

    report = check_plugin(plugin, select=select, done=show)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in report.results], indent=2, ensure_ascii=False))
    elif not report.results:
        click.echo("No check has such an id.")
    if report.failures or not report.results:
        sys.exit(1)
