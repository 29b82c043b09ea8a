"""From ``llmrec new-plugin`` to values that are read online: the tutorial, followed line by line."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from integration.host import Processes
from integration.installing import install, install_editable, run, run_tests
from tiny import export_tiny
from tutorial import EXAMPLES, ROOT, Command, Listing, steps

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.scaffold.writing import NewPlugin


@dataclass
class Reader:
    """Someone who types what the page says.

    Attributes:
        desk: The folder in which the page begins.
        processes: Where commands run.
        paths: What is installed.
    """

    desk: Path
    processes: Processes
    paths: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder = self.desk
        self.environ = {"LLMREC_HOME": str(self.desk / "home")}

    def copy(self, listing: Listing) -> None:
        """Writes what is shown in whole."""
        if listing.is_whole and not listing.file.is_relative_to(EXAMPLES / "llmrec-moods"):
            file = self.desk / listing.file.relative_to(EXAMPLES)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(listing.text, encoding="utf-8")

    def type(self, line: str) -> str:
        """What the command prints; the real encoder is a tiny one here, and pip finds its packages beside us."""
        match shlex.split(line):
            case ["cd", folder]:
                self.folder /= folder
            case ["python", "-m", "pip", "install", "-e", package]:
                self.paths.append(install_editable(self.folder / package.partition("[")[0]))
            case ["python", "-m", "pip", "install", _]:
                pass
            case ["python", "-m", "pytest", package]:
                done = run_tests(self.folder / package, folder=self.folder, paths=self.paths, feast=False)
                assert done.status == 0, done.out + done.err
            case ["llmrec", "export", name]:
                store = ArtifactStore([self.desk / "home" / "artifacts"])
                export_tiny(store, name=name, dims=384, max_tokens=256)
            case ["llmrec", *arguments]:
                return self._call("steps:command_line", arguments)
            case ["feast", *arguments]:
                feast = self.processes.feast(*arguments, folder=self.folder, environ=self.environ, paths=self.paths)
                return feast.succeeded()
            case ["python", *arguments]:
                return self._call("author_steps:run_script", arguments)
            case _:
                pytest.fail(f"Nobody knows how to follow this line of the page: {line}")
        return ""

    def _call(self, target: str, arguments: list[str]) -> str:
        return str(
            self.processes.call(target, folder=self.folder, environ=self.environ, paths=self.paths, arguments=arguments)
        )


@pytest.mark.feast
def test_the_tutorial_can_be_followed_line_by_line(processes: Processes, tmp_path: Path) -> None:
    reader = Reader(tmp_path, processes)
    output = ""
    for step in steps():
        if isinstance(step, Listing):
            reader.copy(step)
            continue
        output = reader.type(step.line)
        if step.line.startswith("python similar.py"):
            answer = output.splitlines()
        else:
            printed = [_words(line) for line in output.splitlines()]
            missing = [line for line in step.printed if not any(it.startswith(_words(line)) for it in printed)]
            assert missing == [], f"{step.line} prints\n{output}"
    assert len(answer) == 3
    assert all(float(line.split()[0]) <= 1 and ": " in line for line in answer)
    assert (tmp_path / "shop" / "llmrec-moods" / "llmrec_moods" / "plugin.py").is_file()


def _words(line: str) -> str:
    """The line whatever the widths of its columns."""
    return " ".join(line.split())


def test_every_command_of_the_page_is_followed() -> None:
    words = {step.line.split()[0] for step in steps() if isinstance(step, Command)}
    assert words == {"llmrec", "python", "cd", "feast"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with a prompt, just written."""
    plugin = NewPlugin(name="two-words", kind="generator", entity="book", column="blurb")
    return plugin.write(tmp_path_factory.mktemp("written"))


def test_a_new_plugin_with_a_generator_installs_and_passes_the_kit(written: Path, tmp_path: Path) -> None:
    site = install(written, tmp_path)
    assert sorted(
        path.name for path in (site / "llmrec_two_words").rglob("*.*") if path.suffix in (".md", ".typed")
    ) == [
        "book_blurb_tags.md",
        "py.typed",
    ]
    done = run_tests(written, folder=tmp_path, paths=[site], feast=False)
    assert done.status == 0, done.out + done.err


@pytest.mark.parametrize("kind", ["embedding", "generator"])
def test_new_code_is_formatted_and_has_no_lint(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("ruff", reason="ruff is not installed")
    root = NewPlugin(name="acme", kind=kind, entity="package", column="synopsis").write(tmp_path)
    rules = "B,C4,D1,E,F,I,N,PERF,PIE,PT,RET,RUF,SIM,UP,W"
    for length in ("88", "120"):
        for command in (["check", "--select", rules, "--ignore", "D103"], ["format", "--check"]):
            arguments = [*command, "--isolated", "--no-cache", "--line-length", length, str(root)]
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *arguments], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_types_of_new_code_hold(written: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    embedding = NewPlugin(name="acme").write(tmp_path)
    sources = [embedding / "llmrec_acme", written / "llmrec_two_words", written / "tests"]
    options = ["--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    environ = {"MYPYPATH": os.pathsep.join(map(str, [ROOT, embedding, written]))}
    done = run("-m", "mypy", *options, *map(str, sources), folder=tmp_path, paths=[], **environ)
    assert done.status == 0, done.out + done.err
