"""``llmrec doctor``: what loses data, stops serving or computes for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmrec_plugin.console import result

if TYPE_CHECKING:
    from llmrec_plugin.diagnosis import Finding

_COLORS = {"error": "red", "warning": "yellow", "note": "blue"}


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        click.secho(f"{finding.level}: {finding.found}", fg=_COLORS[finding.level])
        click.echo(f"    {finding.fix}")
    click.echo("Nothing else is wrong." if findings else "Nothing is wrong.")


def _has_error(findings: list[Finding]) -> bool:
    return any(finding.level == "error" for finding in findings)


@click.command()
@click.option("--repo", type=click.Path(path_type=Path), help="Folder with feature_store.yaml.  [default: .]")
@result(_show, failed=_has_error)
def doctor(repo: Path | None) -> list[Finding]:
    """Looks for what loses data, stops serving or computes for nothing, and says how to mend it.

    Looks at the environment, the exported models and the plugins, and, in a folder with feature_store.yaml or with
    --repo, at the feature repo as it was last applied. Exit code 1 if there is an error.

    \b
    llmrec doctor
    llmrec doctor --repo feature_repo
    """
    from llmrec_plugin.diagnosis import examine_environment

    findings = examine_environment()
    if repo is None and not Path("feature_store.yaml").is_file():
        click.echo("No feature_store.yaml here: only the environment was examined. See --repo.", err=True)
        return findings
    from llmrec_plugin.feast.doctor import examine  # imports feast, which takes seconds

    return [*findings, *examine(repo or Path())]
