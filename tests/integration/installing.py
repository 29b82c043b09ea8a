"""Packages of others in fresh interpreters: installed into a folder, seen through the module search path."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from integration.host import HERE, clean_environment

PLUGINS = HERE.parents[1] / "examples" / "plugins"


@dataclass(frozen=True)
class Outcome:
    """A process that ended."""

    status: int
    out: str
    err: str


def run(*arguments: str, folder: Path, paths: list[Path], **environ: str) -> Outcome:
    """A fresh interpreter that finds packages in `paths`, as if they were installed."""
    env = clean_environment() | {"PYTHONPATH": os.pathsep.join(map(str, paths))} | environ
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def command_line(*arguments: str, folder: Path, paths: list[Path], **environ: str) -> Outcome:
    """The `llmrec` command."""
    code = "from llmrec_plugin.cli import main; main()"
    return run("-c", code, *arguments, folder=folder, paths=paths, LLMREC_HOME=str(folder / "home"), **environ)


def run_tests(package: Path, *, folder: Path, paths: list[Path], feast: bool) -> Outcome:
    """A package's own tests; without those through Feast unless `feast`."""
    options = [] if feast else ["-k", "not feast"]
    return run("-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(package), folder=folder, paths=paths)


def install(package: Path, folder: Path) -> Path:
    """A new folder below `folder` into which pip installs the package, without its dependencies."""
    _need_setuptools()
    copy, target = folder / "source", folder / "site"  # building writes into the source tree
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = run("-m", "pip", "install", *options, "--target", str(target), str(copy), folder=folder, paths=[])
    assert done.status == 0, done.err
    return target


def install_editable(package: Path) -> Path:
    """Writes the package's metadata into its folder, which then is what to search."""
    _need_setuptools()
    done = run("-c", "import setuptools; setuptools.setup()", "-q", "egg_info", folder=package, paths=[])
    assert done.status == 0, done.err
    return package


def _need_setuptools() -> None:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed, and pip may not download it here")
