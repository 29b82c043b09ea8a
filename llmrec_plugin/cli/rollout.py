"""``llmrec rollout``: every view switches to what was declared last, or back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmrec_plugin.cli.common import repo_option
from llmrec_plugin.console import Group, print_table, result

if TYPE_CHECKING:
    from llmrec_plugin.feast.rollouts import ViewStatus


@click.group(cls=Group)
def rollout() -> None:
    """Switches every view to the fingerprint that `feast apply` declared last, or back."""


def _version(view: ViewStatus, number: int | None) -> str:
    if number is None:
        return ""
    model, _, artifact = view.artifacts.get(number, "").partition("@")
    return f"v{number} {view.fingerprints.get(number, '')[:8]} {model}@{artifact[:8]}".removesuffix(" @")


def _show_status(views: list[ViewStatus]) -> None:
    from llmrec_plugin.feast.rollouts import fill_command

    print_table(
        [
            {
                "view": view.view,
                "served": _version(view, view.served),
                "waits": _version(view, view.candidate),
                "before": _version(view, view.previous),
                "rows": f"{view.rows.complete} of {view.rows.expected}" if view.rows else "",
                "newly null": view.rows.null if view.rows else "",
            }
            for view in views
        ]
    )
    for view in views:
        if view.candidate is not None and view.rows is not None and view.rows.missing:
            click.echo(fill_command(view.view, view.candidate))


def _show_promoted(views: list[ViewStatus]) -> None:
    for view in views:
        click.secho(f"{view.view}: v{view.candidate} is served instead of v{view.served}", fg="green")
    click.echo("To return: llmrec rollout rollback")


def _show_rolled_back(views: list[ViewStatus]) -> None:
    for view in views:
        click.secho(f"{view.view}: v{view.previous} is served instead of v{view.served}", fg="green")
    click.echo("Rows written since the promotion: feast materialize-incremental $(date -u +%Y-%m-%dT%H:%M:%S)")


def _show_removed(removed: list[dict[str, str | int]]) -> None:
    for item in removed:
        click.echo(f"{item['view']}: v{item['version']} removed")
    if not removed:
        click.echo("Nothing to remove.")


@rollout.command()
@repo_option
@result(_show_status)
def status(repo: Path) -> list[ViewStatus]:
    """Lists which version of each view is served, which one waits, and how many rows it lacks.

    \b
    llmrec rollout status --repo feature_repo
    """
    from llmrec_plugin.feast import rollouts  # takes seconds to import

    return rollouts.status(rollouts.open_store(str(repo)))


@rollout.command()
@repo_option
@result(_show_promoted)
def promote(repo: Path) -> list[ViewStatus]:
    """Serves every version that waits, in one write of the registry; refused while one lacks rows.

    The views are listed as they were before.

    \b
    llmrec rollout promote --repo feature_repo
    """
    from llmrec_plugin.feast import rollouts

    return rollouts.promote(rollouts.open_store(str(repo)))


@rollout.command()
@repo_option
@result(_show_rolled_back)
def rollback(repo: Path) -> list[ViewStatus]:
    """Serves again what was served before the last promotion, in one write of the registry.

    The views are listed as they were before.

    \b
    llmrec rollout rollback --repo feature_repo
    """
    from llmrec_plugin.feast import rollouts

    return rollouts.roll_back(rollouts.open_store(str(repo)))


@rollout.command()
@repo_option
@result(_show_removed)
def clean(repo: Path) -> list[dict[str, str | int]]:
    """Removes versions, with their online rows, that are neither served, nor waiting, nor the one before.

    \b
    llmrec rollout clean --repo feature_repo
    """
    from llmrec_plugin.feast import rollouts

    removed = rollouts.clean(rollouts.open_store(str(repo)))
    return [{"view": name, "version": number} for name, number in removed]
