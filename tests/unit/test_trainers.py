"""Commands that plugins add to ``llmrec train``."""

import json

import click
from click.testing import CliRunner

from llmrec_plugin import hookimpl
from llmrec_plugin.manager import Manager
from llmrec_plugin.registry import Provenance, Registered
from llmrec_plugin.training.commands import train


@click.command("my-system")
def my_system() -> None:
    """Trains mine."""


class Good:
    @hookimpl
    def llmrec_register_trainers(self):
        return [my_system]


class Bad:
    @hookimpl
    def llmrec_register_trainers(self):
        return ["my-system"]


def test_a_plugins_command_is_found_and_a_broken_plugin_named():
    manager = Manager()
    manager.register(Bad(), Provenance("bad", "bad-package", "1"))
    manager.register(Good(), Provenance("good", "good-package", "1"))
    commands, failures = manager.trainers()
    assert commands["my-system"].declaration is my_system
    assert "bad" in str(failures[0])
    assert "Command" in str(failures[0])


def test_collecting_declarations_imports_no_commands():
    class Noisy:
        @hookimpl
        def llmrec_register_trainers(self):
            raise AssertionError("called")

    manager = Manager()
    manager.register(Noisy(), Provenance("noisy", "noisy-package", "1"))
    assert not manager.collect().failures


def test_a_plugins_command_prints_what_it_returns_as_json(monkeypatch):
    @click.command("measured")
    def measured():
        click.echo("epoch 1")
        return {"recall": 0.5}

    found = {"measured": Registered(measured, Provenance("good", "good-package", "1"))}
    monkeypatch.setattr("llmrec_plugin.training.commands.load_trainers", lambda disabled: (found, ()))
    fresh = type(train)("train")  # the shipped group remembers what it found
    result = CliRunner().invoke(fresh, ["measured", "--json"])
    assert json.loads(result.stdout) == {"recall": 0.5}
    assert result.stderr == "epoch 1\n"


def test_shipped_commands_are_listed():
    result = CliRunner().invoke(train, ["--help"])
    assert result.exit_code == 0
    assert {"bi-encoder", "synopsis", "tags"} <= set(result.output.split())
