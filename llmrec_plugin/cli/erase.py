"""``llmrec erase``: what was computed from the texts of some keys goes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import click

from llmrec_plugin.cli.common import repo_option
from llmrec_plugin.console import print_table, result


def _show(found: list[dict[str, Any]]) -> None:
    print_table(found)
    rows = max(item["source"] for item in found)
    if rows:
        click.echo(f"The raw source still has {rows} rows of these keys: delete them, or they are computed again.")
    elif not click.get_current_context().params["all_cached"]:
        click.echo("The raw source has no row of these keys, so no cached text was found by them: see --all-cached.")


@click.command()
@click.argument("entity")
@click.argument("keys", nargs=-1, metavar="KEY...")
@click.option("--keys-file", type=click.File(encoding="utf-8"), help="More keys, one per line; - for standard input.")
@click.option("--all-cached", is_flag=True, help="Erase all cached values of these features, whatever their keys.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@repo_option
@result(_show)
def erase(
    entity: str, keys: tuple[str, ...], keys_file: IO[str] | None, all_cached: bool, dry_run: bool, repo: Path
) -> list[dict[str, Any]]:
    """Erases what was computed from the texts of KEYs of an ENTITY: online, in training tables, in the cache.

    Run it while the raw source still has the rows, then delete them there.

    \b
    llmrec erase user 4711 --dry-run
    llmrec erase user --keys-file leavers.txt
    """
    from llmrec_plugin.feast import erasure, rollouts  # takes seconds to import

    keys += tuple(line.strip() for line in keys_file or () if line.strip())
    if not keys:
        raise click.UsageError("Give KEYs, or --keys-file.")
    found = erasure.erase(rollouts.open_store(str(repo)), entity, keys, all_cached=all_cached, dry_run=dry_run)
    return [asdict(item) for item in found]
