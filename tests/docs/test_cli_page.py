"""docs/cli.md names every command, and what it shows can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from llmrec_plugin.cli import main

TEXT = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")
FAMILIES = {"train"}
"""Groups that the page names as one: plugins add to them."""
NAMED = {"--json", "--repo", "--chdir", "-c", "--dry-run", "--older-than", "--max-size", "--unused", "--repair"}
"""Options that mean the same in several commands, and those of the cache, which has no page of its own."""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group) and name not in FAMILIES:
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(main))
ROWS = dict(re.findall(r"^\| `llmrec ([a-z -]+)` \|.*\| `(llmrec .+)` \|$", TEXT, re.MULTILINE))
TYPED = [line.strip() for line in TEXT.splitlines() if line.startswith("    llmrec ")] + list(ROWS.values())


def test_the_page_lists_every_command_and_no_other():
    assert set(ROWS) == set(COMMANDS)


def test_the_page_names_the_options_that_commands_share():
    assert {option for option in NAMED if f"`{option}" not in TEXT} == set()
    known = {name for _, command in commands(main) for parameter in command.params for name in parameter.opts}
    assert known >= NAMED


def test_the_page_names_only_options_that_exist():
    known = {
        name
        for command in all_commands()
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT)) <= known | {"--help"}


def all_commands() -> Iterator[click.Command]:
    def walk(group: click.Group) -> Iterator[click.Command]:
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            assert command is not None
            yield from walk(command) if isinstance(command, click.Group) else [command]

    return walk(main)


@pytest.mark.parametrize("line", TYPED)
def test_what_the_page_shows_can_be_typed(line, monkeypatch):
    for kind in (click.Path, click.File):  # the files need not be there
        monkeypatch.setattr(kind, "convert", lambda self, value, param, ctx: value)
    words = shlex.split(re.split(r" (?:\||\|\||>) ", line)[0], comments=True)[1:]
    command: click.Command | None = main
    name = ""
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(click.Context(command), words)  # type: ignore[assignment]
    assert command is not None
    command.make_context(name, words)


@pytest.mark.parametrize("name", ROWS)
def test_the_example_of_a_command_is_of_that_command(name):
    assert ROWS[name].startswith(f"llmrec {name}")


def test_the_page_lists_the_commands_whose_result_can_be_bad_news():
    from click.testing import CliRunner

    helps = {name: CliRunner().invoke(main, [*name.split(), "--help"]).output for name in COMMANDS}
    failing = {name for name, text in helps.items() if "exit code 1" in " ".join(text.split()).lower()}
    (line,) = (line for line in TEXT.splitlines() if line.startswith("| 1 | the command found"))
    assert set(re.findall(r"`([a-z ]+)`", line)) == failing
