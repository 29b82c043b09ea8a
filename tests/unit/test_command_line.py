"""Every command: a result as JSON, an example that parses, little to import, exit codes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from llmrec_plugin.cli import main
from llmrec_plugin.console import Group, result, with_json
from llmrec_plugin.errors import InputError

WITHOUT_JSON = {"completion": "it prints a script for a shell"}
HEAVY = {"feast", "torch", "transformers", "optimum", "onnxruntime", "openvino", "pandas", "onnx", "pyarrow"}
MOST_MODULES = 450
"""Of a command that needs none of them; `llmrec --help` loads about 320, importing pandas alone about 700."""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(main))


def examples(command: click.Command) -> list[list[str]]:
    """The lines of its help that can be typed, without the name of the program."""
    lines = (line.strip() for line in (command.help or "").splitlines())
    return [shlex.split(line.partition(" > ")[0], comments=True)[1:] for line in lines if line.startswith("llmrec ")]


def parse(words: list[str]) -> None:
    """Has click read a command line without running it."""
    command: click.Command | None = main
    name, arguments = "", words
    while isinstance(command, click.Group):
        name, command, arguments = command.resolve_command(click.Context(command), arguments)  # type: ignore[assignment]
    assert command is not None
    command.make_context(name, arguments)


@pytest.fixture
def no_files(monkeypatch):
    """Files of examples need not be there."""
    for kind in (click.Path, click.File):
        monkeypatch.setattr(kind, "convert", lambda self, value, param, ctx: value)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json(name):
    has = any("--json" in parameter.opts for parameter in COMMANDS[name].params)
    assert has is (name not in WITHOUT_JSON)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_parses(name, no_files):
    found = examples(COMMANDS[name])
    assert any(words[: len(name.split())] == name.split() for words in found)
    for words in found:
        parse(words)


@pytest.mark.parametrize(
    "line", ["plan --nonsense", "export", "calibrate m --profile slow", "cache prune --older-than soon", "modles"]
)
def test_an_example_that_does_not_parse_is_seen(line, no_files):
    with pytest.raises(click.UsageError):
        parse(line.split())


def modules_after(*lines: str) -> set[str]:
    """All modules that are loaded once these command lines ran in a fresh process."""
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom llmrec_plugin.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    done = CliRunner().invoke(main, line.split())\n"
        "    assert done.exit_code == 0, (line, done.output)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *lines], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_commands_that_need_no_feast_and_no_model_load_neither(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_HOME", str(tmp_path))
    helps = [f"{name} --help" for name in COMMANDS]
    listings = ["plugins", "features --json", "models", "cache stats", "completion zsh"]
    loaded = modules_after("--help", *helps, *listings)
    assert not {name.partition(".")[0] for name in loaded} & HEAVY


def test_the_program_starts_with_few_modules():
    assert len(modules_after("--help")) < MOST_MODULES


def test_the_modules_of_commands_that_are_not_used_are_not_imported():
    loaded = modules_after("completion bash")
    assert "llmrec_plugin.cli.completion" in loaded
    assert not {"llmrec_plugin.cli.export", "llmrec_plugin.training.commands"} & loaded


# --- results and errors


@dataclass
class Color:
    name: str


@click.group(cls=Group)
def program() -> None:
    """A program."""


@program.command()
@result(lambda colors: click.echo(colors[0].name), failed=lambda colors: len(colors) > 1)
@click.option("--number", default=1)
def colors(number: int) -> list[Color]:
    click.echo("looking")
    return [Color("red")] * number


@program.command()
@result()
def broken() -> None:
    click.echo("begun")
    raise InputError("It does not work.")


def run(*words: str):
    return CliRunner().invoke(program, words)


def test_people_read_what_show_prints_and_programs_read_json_alone():
    assert run("colors").stdout == "looking\nred\n"
    done = run("colors", "--json")
    assert json.loads(done.stdout) == [{"name": "red"}]
    assert done.stderr == "looking\n"


def test_a_result_that_is_bad_news_is_printed_and_ends_with_1():
    done = run("colors", "--number", "2", "--json")
    assert len(json.loads(done.stdout)) == 2
    assert done.exit_code == 1


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_error_of_ours_is_one_line_on_stderr_and_exit_code_1(options):
    done = run("broken", *options)
    assert done.exit_code == 1
    assert done.stderr.endswith("InputError: It does not work.\n")
    assert "InputError" not in done.stdout


def test_wrong_usage_is_exit_code_2():
    assert run("colors", "--number", "many").exit_code == 2
    assert run("colours").exit_code == 2


def test_a_plugins_command_gets_json_of_what_it_returns():
    @click.command("mine")
    @click.option("--epochs", default=1)
    def mine(epochs: int) -> dict[str, int]:
        click.echo(f"epoch {epochs}")
        return {"epochs": epochs}

    changed = with_json(mine)
    assert CliRunner().invoke(changed, ["--epochs", "3"]).stdout == "epoch 3\n"
    done = CliRunner().invoke(changed, ["--epochs", "3", "--json"])
    assert json.loads(done.stdout) == {"epochs": 3}
    assert not any("--json" in parameter.opts for parameter in mine.params)  # the plugin's own is as it was


def test_a_plugins_own_json_is_left_alone():
    @click.command("mine")
    @click.option("--json", "own", is_flag=True)
    def mine(own: bool) -> None:
        click.echo("own" if own else "")

    assert with_json(mine) is mine


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_completes_llmrec(shell):
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert f"_LLMREC_COMPLETE={shell}_complete" in done.stdout
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2


def test_the_script_of_a_shell_gets_commands_and_options():
    words = {"COMP_WORDS": "llmrec cache p", "COMP_CWORD": "2", "_LLMREC_COMPLETE": "bash_complete"}
    done = CliRunner().invoke(main, [], env=words, prog_name="llmrec")
    assert done.stdout == "plain,prune\n"
