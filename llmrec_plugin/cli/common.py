"""What several commands read."""

from __future__ import annotations

from pathlib import Path

import click

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.registry import Catalogue
from llmrec_plugin.settings import load_settings

repo_option = click.option(
    "--repo",
    "--chdir",
    "-c",
    "repo",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The feature repo, a folder with feature_store.yaml.",
)


def open_catalogue() -> Catalogue:
    """What the installed plugins declare."""
    return load_catalogue(load_settings().disabled_plugins)


def open_artifacts() -> ArtifactStore:
    """The exported models of this machine."""
    return ArtifactStore(load_settings().artifact_folders)
