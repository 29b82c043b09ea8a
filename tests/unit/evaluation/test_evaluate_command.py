"""`llmrec evaluate`: configuration, files in, files out."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from ranking_data import dataset

from llmrec_plugin.errors import InputError, LLMRecError
from llmrec_plugin.evaluation.commands import evaluate
from llmrec_plugin.evaluation.configuration import feature_set, read_configuration
from llmrec_plugin.evaluation.runs import read_run
from llmrec_plugin.interactions import write_atomic

CONFIG = """
features:
  taste: {kind: function, function: "ranking_data:knows", strength: 2}
  kinds: {kind: tokens, item: kind, last_n: 5}
base: [kinds]
arms:
  tastes: [taste]
controls: [stale]
seeds: 1
negatives: 20
validation_negatives: 20
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LLMREC_PROGRESS", "0")
    monkeypatch.setenv("LLMREC_THREADS", "1")
    write_atomic(dataset(timed=False, events=16), tmp_path / "data")
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(evaluate, list(map(str, arguments)), catch_exceptions=False)


def test_files_come_out(folder):
    lists = run("--data", folder / "data", "--output", folder / "lists", "--write-lists")
    assert "90 test lists" in lists.output
    qrels = (folder / "lists" / "qrels.txt").read_text().splitlines()
    run_file = folder / "mine.run"
    run_file.write_text("".join(f"{name} Q0 {item} 1 1.0 me\n" for name, _, item, _ in map(str.split, qrels)))

    done = run("--data", folder / "data", "--output", folder / "out", "--config", folder / "config.yaml",
               "--most-lists", 30, "--run", f"mine={run_file}")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "lightgbm: tastes, stale" in done.output
    result = json.loads((folder / "out" / "result.json").read_text())
    assert result["protocol"]["lists"] == 30
    assert result["protocol"]["seeds"] == 1
    assert result["baselines"]["mine"]["all"]["ndcg"]["mean"] == pytest.approx(1)
    assert "kinds_history" in result["rankers"]["lightgbm"]["base"]["columns"]
    assert "affinity" in result["rankers"]["lightgbm"]["tastes"]["columns"]
    assert (folder / "out" / "result.html").read_text().startswith("<!DOCTYPE html>")


def test_only_the_arms_that_are_named(folder):
    config = CONFIG.replace("  tastes: [taste]", "  tastes: [taste]\n  twice: [taste, taste]")
    (folder / "config.yaml").write_text(config)
    common = ["--data", folder / "data", "--output", folder / "out", "--config", folder / "config.yaml"]
    assert run(*common, "--arm", "tastes", "--most-lists", 10).exit_code == 0
    result = json.loads((folder / "out" / "result.json").read_text())
    assert list(result["rankers"]["lightgbm"]) == ["base", "tastes", "tastes, stale"]
    with pytest.raises(LLMRecError, match=r"No arm is named 'taste'\. Did you mean 'tastes'"):
        run(*common, "--arm", "taste")


def test_a_run_of_other_lists_is_refused(folder):
    (folder / "other.run").write_text("nobody Q0 i001 1 1.0 me\n")
    with pytest.raises(InputError, match="named like 'u000'"):
        run("--data", folder / "data", "--output", folder / "out", "--run", f"x={folder / 'other.run'}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("featurs: {}", "features"),
        ("features: {a: {kind: similarty}}\n", None),
        ("arms: {x: [nothing]}", "nothing"),
        ("features: {a: {kind: tokens, item: kind}}\narms: {base: [a]}", "name yours otherwise"),
        ("controls: [shufled]", "shuffled"),
        ("rankers: [deepfn]", "deepfm"),
        ("- a", "names with values"),
        ("a: [", "expected YAML"),
    ],
)
def test_a_wrong_configuration_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    if message is None:
        assert read_configuration(path).arms == {"a": ("a",)}
        return
    with pytest.raises(LLMRecError, match=message):
        read_configuration(path)


def test_events_of_a_list_that_cannot_be_read_are_refused():
    options = {"kind": "pair", "pair": "a", "events": {"liked": {"shows": "item_id"}}}
    with pytest.raises(InputError, match=r"events of 'liked': expected what each event gives.*with `liked`"):
        feature_set("a", options, {}.__getitem__, lambda: None, Path())


@pytest.mark.parametrize("shortlist", [0, "100"])
def test_a_shortlist_that_is_no_number_of_items_is_refused(shortlist):
    options = {"kind": "pair", "pair": object()}
    with pytest.raises(InputError, match=r"'a': expected shortlist of 1 or more items, got " + repr(shortlist)):
        feature_set("a", {**options, "shortlist": shortlist}, {}.__getitem__, lambda: None, Path())


def test_toml_is_read_and_options_come_first(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('rankers = ["deepfm"]\nseeds = 3\n[features.a]\nkind = "tokens"\nitem = "kind"\n')
    read = read_configuration(path, seeds=7)
    assert read.rankers == ["deepfm"]
    assert read.plan.seeds == 7
    assert read.arms == {"a": ("a",)}


@pytest.mark.parametrize(
    ("line", "message"),
    [("q Q0 d 1 2.0", "line 1: expected"), ("q Q0 d 1 nan t", "got 'nan'"), ("q Q0 d 1 2 t\nq Q0 d 2 1 t", "twice")],
)
def test_a_line_of_a_run_that_cannot_be_read_is_named(tmp_path, line, message):
    (tmp_path / "a.run").write_text(line)
    with pytest.raises(InputError, match=message):
        read_run(tmp_path / "a.run")
