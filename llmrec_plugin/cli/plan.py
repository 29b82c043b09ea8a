"""``llmrec plan``: what the next materialization would compute."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmrec_plugin.cli.common import repo_option
from llmrec_plugin.console import print_table, result

if TYPE_CHECKING:
    from llmrec_plugin.feast.plan import ViewPlan

_COLUMNS = ("view", "entities", "rows", "new", "changed", "unchanged", "late", "texts", "cached", "compute")


def _show(plans: list[dict[str, Any]]) -> None:
    print_table(
        [
            {
                **{name: item[name] for name in _COLUMNS},
                "tokens": f"{'' if item['tokens_exact'] else '~'}{item['tokens']}",
                "seconds": f"~{item['seconds']:.0f}",
                "memory": f"~{item['memory_bytes'] / 2**20:.0f} MiB",
            }
            for item in plans
        ]
    )


@click.command()
@click.argument("views", nargs=-1)
@repo_option
@click.option("--start", type=click.DateTime(), help="As for feast materialize.  [default: what was not done yet]")
@click.option("--end", type=click.DateTime(), help="UTC.  [default: now]")
@result(_show)
def plan(views: tuple[str, ...], repo: Path, start: datetime | None, end: datetime | None) -> list[dict[str, Any]]:
    """Shows what the next materialization would compute: rows, texts, tokens, seconds, memory.

    Reads the feature repo like `feast plan`, so a change can be planned before it is applied. Writes nothing.

    \b
    llmrec plan
    llmrec plan item_title_embedding --start 2026-01-01 --end 2026-02-01 --json
    """
    from llmrec_plugin.feast.plan import plan as make_plan  # imports feast, which takes seconds

    plans: list[ViewPlan] = make_plan(repo, views, start, end)
    return [{**asdict(item), "rows": item.rows} for item in plans]
