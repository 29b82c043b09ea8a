"""``llmrec data``: public data sets as atomic files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmrec_plugin.console import result

if TYPE_CHECKING:
    from llmrec_plugin.interactions.dataset import Dataset

_output = click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the atomic files."
)


def _show(*written: dict[str, Any]) -> None:
    for item in written:
        events, users, items = item["interactions"], item["users"], item["items"]
        click.echo(f"{item['output']}: {events:,} interactions of {users:,} users with {items:,} items.")


@click.group()
def data() -> None:
    """Writes a public data set as atomic files, which training and evaluation read."""


@data.command()
@click.option(
    "--source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="A folder of MovieLens, such as ml-latest-small.",
)
@_output
@click.option("--name", default="movielens", show_default=True)
@result(_show)
def movielens(source: Path, output: Path, name: str) -> dict[str, Any]:
    """Films and ratings of MovieLens, with times.

    Free-text tags are left out: most are younger than ratings that they would describe.

    \b
    llmrec data movielens --source ml-latest-small --output data/movielens
    """
    from llmrec_plugin.interactions.movielens import movielens as read

    return _write(read(source, name=name), output)


@data.command()
@click.option(
    "--source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Packages, a JSON object a line; .gz is read, too.",
)
@_output
@click.option("--name", default="debian", show_default=True)
@click.option("--least-interactions", default=5, show_default=True, type=click.IntRange(min=1), help="Of a user.")
@click.option("--most-users", type=click.IntRange(min=1), help="Users at most.  [default: all]")
@click.option("--seed", default=0, show_default=True, help="Of the choice of users.")
@result(_show)
def debian(
    source: Path, output: Path, name: str, least_interactions: int, most_users: int | None, seed: int
) -> dict[str, Any]:
    """Debian's packages: which packages does a package build on? There are no times.

    \b
    llmrec data debian --source packages.jsonl.gz --output data/debian --most-users 2000
    """
    from llmrec_plugin.interactions.debian import debian_packages

    return _write(
        debian_packages(source, least_interactions=least_interactions, most_users=most_users, seed=seed, name=name),
        output,
    )


@data.command()
@click.option(
    "--data",
    "source",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of atomic files.",
)
@click.option("--systems", type=click.Path(file_okay=False, path_type=Path), required=True, help="For llmrec train.")
@click.option("--ranker", type=click.Path(file_okay=False, path_type=Path), required=True, help="For llmrec evaluate.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of users, without times.")
@result(lambda written: _show(*written))
def divide(source: Path, systems: Path, ranker: Path, seed: int) -> list[dict[str, Any]]:
    """Keeps what a ranker learns from out of what systems learn from.

    With times, systems get what lies before the ranker's training lists; without, half of the users.

    \b
    llmrec data divide --data data/movielens --systems data/systems --ranker data/ranker
    """
    from llmrec_plugin.interactions import divide as halves
    from llmrec_plugin.interactions import read_atomic

    parts = zip(halves(read_atomic(source), seed=seed), (systems, ranker), strict=True)
    return [_write(dataset, output) for dataset, output in parts]


def _write(dataset: Dataset, output: Path) -> dict[str, Any]:
    from llmrec_plugin.interactions.atomic import write_atomic

    write_atomic(dataset, output)
    counts = {name: len(getattr(dataset, name)) for name in ("interactions", "users", "items")}
    return {"output": output, **counts}
