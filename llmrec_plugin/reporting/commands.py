"""``llmrec report``: one page about a feature repo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmrec_plugin.console import result

if TYPE_CHECKING:
    from llmrec_plugin.reporting.figures import Report

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--repo", type=click.Path(path_type=Path), default=".", help="Folder with feature_store.yaml.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    show_default=True,
    help="The page.",
)
@click.option(
    "--rows", type=click.IntRange(1, 20_000), default=1000, show_default=True, help="Entities looked up in each view."
)
@click.option("--texts", is_flag=True, help="Show texts of items, and texts that models wrote. Default: keys only.")
@click.option("--plan", "with_plan", is_flag=True, help="Plan the next materialization, too: loads every model.")
@click.option("--evaluation", type=_file, help="The result.json of llmrec evaluate, for its plots.")
@result()
def report(repo: Path, output: Path, rows: int, texts: bool, with_plan: bool, evaluation: Path | None) -> Report:
    """Writes one HTML page about a feature repo, as it was last applied and materialized.

    Features with lineage and fingerprints, what the online store holds, maps of the vectors with nearest neighbors,
    what models wrote, cost and cache. The page needs nothing from outside. --json prints the same figures, too.

    \b
    llmrec report --repo feature_repo
    llmrec report --repo feature_repo --texts --evaluation result/result.json --output features.html
    """
    from llmrec_plugin.reporting.collecting import collect  # imports feast, which takes seconds
    from llmrec_plugin.reporting.page import page

    output = output.absolute()  # collecting goes into the repo's folder
    evaluation = evaluation.absolute() if evaluation else None
    figures = collect(repo, rows=rows, texts=texts, with_plan=with_plan, evaluation=evaluation)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(figures), encoding="utf-8", errors="replace")
    click.echo(output)
    return figures
