"""The commands that train the systems of the evaluation are understood, for both data sets alike."""

import importlib

import click
import pytest

pytest.importorskip("torch", reason="the export extra is not installed")

from benchmarks.evaluation.systems import LANGUAGE_MODEL, REVIEWS
from llmrec_plugin.cli import main

SYSTEMS = {"whitening", "bert4rec", "unisrec", "encoder", "llm-scorer", "ubert", "text-rating"}


@pytest.mark.parametrize("name", ["movielens", "debian"])
def test_every_system_is_trained_by_a_command_that_is_understood(name, tmp_path):
    described = importlib.import_module(f"benchmarks.evaluation.{name}").DATA
    data, work = tmp_path / "systems", tmp_path / "trained"
    for folder in (data, work / REVIEWS, work / LANGUAGE_MODEL, work / "ubert-pretrained"):
        folder.mkdir(parents=True)
    commands = described.commands(data, work)
    assert set(commands) == SYSTEMS
    train = main.get_command(click.Context(main), "train")
    for system, (command, *arguments) in commands.items():
        parsed = train.get_command(click.Context(train), command).make_context(command, arguments).params
        assert parsed["output"] == work / system
        assert parsed["data"] == (work / REVIEWS if described.reads_reviews(system) else data)
