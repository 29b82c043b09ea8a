"""``llmrec cache``: its size, what is needed no more, and whether its values are sound."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmrec_plugin.binding import Bound, bind_by_name
from llmrec_plugin.cli.common import open_artifacts, open_catalogue
from llmrec_plugin.console import Group, print_table, result
from llmrec_plugin.errors import LLMRecError
from llmrec_plugin.settings import load_settings

if TYPE_CHECKING:
    from llmrec_plugin.runtime.cache import ValueCache
    from llmrec_plugin.runtime.upkeep import Fits, Verification

_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class _Quantity(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click alone
    """A number with a unit, as a number of the smallest unit."""

    def __init__(self, name: str, units: dict[str, int], example: str) -> None:
        self.name = name
        self._units = units
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value))
        if match is None or match[2] not in self._units:
            units = ", ".join(filter(None, self._units))
            self.fail(f"expected a number with one of the units {units}, such as {self._example}, got {value!r}.")
        return int(float(match[1]) * self._units[match[2]])


@click.group(cls=Group)
def cache() -> None:
    """Looks at the value cache, and keeps it in order."""


def _show_stats(found: dict[str, Any]) -> None:
    size, bound = (found[name] / 2**20 for name in ("bytes", "max_bytes"))
    click.echo(f"{found['path']}: {found['entries']} values, {size:.1f} MiB of {bound:.0f} MiB")
    columns = ("feature", "mode", "rows", "empty", "invalid", "fallback", "texts", "cached", "computed", "tokens")
    runs = [{**{name: run[name] for name in columns}, "seconds": f"{run['seconds']:.1f}"} for run in found["runs"]]
    print_table(runs)


@cache.command()
@click.option("--last", default=10, show_default=True, type=click.IntRange(min=1), help="How many runs to list.")
@result(_show_stats)
def stats(last: int) -> dict[str, Any]:
    """Size of the cache, and what the last runs computed or found.

    \b
    llmrec cache stats --last 3
    """
    with _opened() as values:
        entries, size = values.size()
        return {
            "path": values.path,
            "entries": entries,
            "bytes": size,
            "max_bytes": load_settings().cache_max_bytes,
            "runs": [asdict(run) for run in values.runs()[-last:]],
        }


def _show_pruned(found: dict[str, Any]) -> None:
    print_table(
        [
            {
                "encoding": item["fingerprint"][:16],
                "features": item["features"],
                "values": item["entries"],
                "MiB": f"{item['bytes'] / 2**20:.1f}",
                "last used": f"{datetime.fromtimestamp(item['used'], UTC):%Y-%m-%d}",
            }
            for item in found["removed"]
        ]
    )
    size = sum(item["bytes"] for item in found["removed"]) / 2**20
    would = "would be removed" if found["dry_run"] else "removed"
    click.echo(f"{sum(item['entries'] for item in found['removed'])} values, {size:.1f} MiB {would}.")


_repos = click.option(
    "--repo",
    "repos",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A feature repo whose features use the cache; may be repeated.",
)


@cache.command()
@click.option("--older-than", type=_Quantity("age", _SECONDS, "30d"), help="Values not used for so long: 12h, 30d, 8w.")
@click.option("--max-size", type=_Quantity("size", _BYTES, "2GiB"), help="The least recently used beyond: 500MiB.")
@click.option("--unused", is_flag=True, help="Values that no feature of plugins and of --repo uses.")
@_repos
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@result(_show_pruned)
def prune(
    older_than: int | None, max_size: int | None, unused: bool, repos: tuple[Path, ...], dry_run: bool
) -> dict[str, Any]:
    """Removes values that are not needed any more; they are computed again if they are.

    With --unused name every feature repo that shares this cache: values of a feature that only a repo declares are
    unused as long as that repo is not named.

    \b
    llmrec cache prune --older-than 30d --dry-run
    llmrec cache prune --max-size 2GiB
    llmrec cache prune --unused --repo feature_repo
    """
    from llmrec_plugin.runtime import upkeep

    if older_than is None and max_size is None and not unused:
        raise click.UsageError("Give --older-than, --max-size or --unused.")
    if unused and not repos:
        raise click.UsageError("--unused needs --repo: what only feature repos declare would be taken for unused.")
    features = _features(repos)
    names: dict[str, list[str]] = {}
    for bound in features:
        for fingerprint in upkeep.encodings_of([bound], open_artifacts()):
            names.setdefault(fingerprint, []).append(bound.feature.name)
    with _opened() as values:
        removed = upkeep.prune(
            values, unused_seconds=older_than, keep=names if unused else None, max_bytes=max_size, dry_run=dry_run
        )
    rows = [{**asdict(item), "features": sorted({*names.get(item.fingerprint, ())})} for item in removed]
    return {"removed": rows, "dry_run": dry_run}


def _show_verification(found: Verification) -> None:
    for line in found.structure:
        click.secho(f"The file is damaged: {line}", fg="red")
    if found.structure:
        click.echo("Stop the processes that use it and delete it; its values are computed again.")
    print_table([asdict(item) for item in found.damaged]) if found.damaged else None
    click.echo(
        f"{found.entries} values read, {found.of_known_features} of them compared with their features: "
        f"{len(found.damaged)} damaged, {found.removed} removed."
    )
    if len(found.damaged) > found.removed:
        click.echo("Damaged values are never used. To remove them: llmrec cache verify --repair")


@cache.command()
@_repos
@click.option("--repair", is_flag=True, help="Remove what is damaged.")
@result(_show_verification, failed=lambda found: not found.sound)
def verify(repos: tuple[Path, ...], repair: bool) -> Verification:
    """Reads every value, and checks its checksum and, where its feature is known, its length or form.

    Features are known from plugins and from --repo. Exit code 1 if something damaged is left.

    \b
    llmrec cache verify
    llmrec cache verify --repo feature_repo --repair
    """
    from llmrec_plugin.runtime import upkeep

    known: dict[str, Fits | None] = upkeep.encodings_of(_features(repos), open_artifacts())
    with _opened() as values:
        return upkeep.verify(values, known, repair=repair)


def _features(repos: tuple[Path, ...]) -> list[Bound]:
    """The features of plugins whose models are exported, and those that are applied in feature repos."""
    catalogue, store = open_catalogue(), open_artifacts()
    found: list[Bound] = []
    for name in catalogue.features:
        try:
            found.append(bind_by_name(name, catalogue, store))
        except LLMRecError:  # it cannot be computed here, so nothing of it is in the cache
            continue
    if repos:
        from llmrec_plugin.feast.usage import applied_features, open_repo  # imports feast, which takes seconds

        for repo in repos:
            found += applied_features(open_repo(repo))
    return found


@contextmanager
def _opened() -> Iterator[ValueCache]:
    from llmrec_plugin.runtime.cache import ValueCache  # loads numpy

    settings = load_settings()
    values = ValueCache(settings.cache_folder, settings.cache_max_bytes)
    try:
        yield values
    finally:
        values.close()
