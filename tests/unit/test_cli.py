"""The command line, in process; what needs a real export is in tests/unit/export."""

import json
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from tiny import export_tiny

from llmrec_plugin import EmbeddingFeature, SimilarityFeature, cli
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundSimilarity, bind
from llmrec_plugin.registry import Catalogue, Provenance, Registered


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_HOME", str(tmp_path))
    return lambda *words: CliRunner().invoke(cli.main, words)


def test_plugins_lists_the_shipped_plugin_and_what_it_declares(run):
    result = run("plugins", "--json")
    (minilm,) = [row for row in json.loads(result.output)["plugins"] if row["plugin"] == "minilm"]
    assert minilm["models"][0] == "all-minilm-l6-v2"
    (line,) = [line for line in run("plugins").output.splitlines() if line.startswith("minilm ")]
    assert f"all-minilm-l6-v2, all-minilm-l6-v2-int8 and {len(minilm['models']) - 2} more" in line
    assert len(line) < 140
    assert "all-minilm-l6-v2-int8" in minilm["models"]
    assert minilm["package"].startswith("llmrec-plugin ")
    assert minilm["problems"] == []


def test_a_disabled_plugin_is_named_and_declares_nothing(run, monkeypatch):
    monkeypatch.setenv("LLMREC_DISABLE_PLUGINS", "minilm")
    output = run("plugins").output
    assert "Disabled by LLMREC_DISABLE_PLUGINS: minilm" in output
    assert "all-minilm-l6-v2" not in output


def test_models_tells_how_to_export_what_is_missing(run):
    assert "llmrec export all-minilm-l6-v2" in run("models").output


def test_models_lists_what_is_exported_and_older_artifacts(run, tmp_path):
    store = ArtifactStore([tmp_path / "artifacts"])
    old, new = export_tiny(store, seed=0), export_tiny(store, seed=1)
    (tiny,) = [row for row in json.loads(run("models", "--json").output) if row["model"] == "tiny"]
    assert tiny["current artifact"] == new.id[:16]
    assert tiny["older"] == [old.id[:16]]


def test_models_tells_what_is_stale(run, tmp_path):
    store = ArtifactStore([tmp_path / "artifacts"])
    export_tiny(store)
    export_tiny(store, name="all-minilm-l6-v2")
    rows = {row["model"]: row["stale"] for row in json.loads(run("models", "--json").output)}
    assert "dims: declared 384, exported with 8" in rows["all-minilm-l6-v2"]
    assert rows["tiny"] == []  # nobody declares it
    assert "dims: declared 384, exported with 8" in run("models").output


def test_models_lists_a_model_whose_current_artifact_is_gone(run, tmp_path):
    store = ArtifactStore([tmp_path / "artifacts"])
    old, new = export_tiny(store, seed=0), export_tiny(store, seed=1)
    shutil.rmtree(new.folder)
    (tiny,) = [row for row in json.loads(run("models", "--json").output) if row["model"] == "tiny"]
    assert tiny["current artifact"] == "none; run: llmrec export tiny"
    assert tiny["older"] == [old.id[:16]]
    assert "is not on this machine" in tiny["stale"][0]


def test_features_have_the_fingerprints_that_publishing_gives_them(run, tmp_path, monkeypatch):
    encoding = {
        "model": "tiny", "pooling": "mean", "normalize": True, "prefix": "", "metric": "cosine", "max_tokens": 16,
        "dims": 8,
    }  # fmt: skip
    item = EmbeddingFeature(name="item_text_embedding", entity="item", text="{title}", **encoding)
    query = EmbeddingFeature(name="query_embedding", entity=None, text="{query}", **encoding)
    score = SimilarityFeature(
        name="query_item_similarity", left="query_embedding", right="item_text_embedding", metric="cosine"
    )
    lost = replace(item, name="lost_embedding", model="never-exported")
    features = {feature.name: Registered(feature, Provenance("mine", "mine", "1")) for feature in (item, query, score)}
    catalogue = Catalogue(features=features | {lost.name: Registered(lost, Provenance("mine", "mine", "1"))})
    monkeypatch.setattr("llmrec_plugin.cli.listing.open_catalogue", lambda: catalogue)
    store = ArtifactStore([tmp_path / "artifacts"])
    export_tiny(store)
    rows = {row["feature"]: row for row in json.loads(run("features", "--json").output)}
    left, right = bind(query, store), bind(item, store)
    assert rows[item.name]["fingerprint"] == right.fingerprint
    assert rows[score.name]["fingerprint"] == BoundSimilarity(score, left, right).fingerprint
    assert rows[lost.name]["fingerprint"] == ""
    assert "'never-exported' is not exported" in rows[lost.name]["problem"]
    assert rows[item.name]["declaration"]["text"] == "{title}"
    table = run("features").output
    assert right.fingerprint[:16] in table
    assert "none; see --json" in table


def test_an_unknown_model_ends_with_one_line_and_a_suggestion(run):
    result = run("export", "all-minilm-l6-v")
    assert result.exit_code == 1
    assert "Did you mean 'all-minilm-l6-v2' or" in result.output
    assert "Traceback" not in result.output


def test_options_that_would_contradict_a_declared_model_are_refused(run):
    result = run("export", "all-minilm-l6-v2", "--pooling", "cls")
    assert result.exit_code == 1
    assert "--pooling would contradict it" in result.output


def test_reduced_precision_contradicts_a_declared_model_and_texts_do_not(run, tmp_path):
    result = run("export", "all-minilm-l6-v2", "--precision", "int8", "--layers", "0,2", "--min-overlap", "0.5")
    assert result.exit_code == 1
    assert "--precision, --layers, --min-overlap would contradict it" in result.output
    texts = tmp_path / "texts.txt"
    texts.write_text("one\ntwo\n")
    result = run("export", "all-minilm-l6-v2", "--texts", str(texts))
    assert result.exit_code == 1
    assert "holds 2 different texts, expected at least 100" in result.output


def test_layers_that_are_no_numbers_are_wrong_usage(run):
    result = run("export", "./model", "--layers", "0;2")
    assert result.exit_code == 2
    assert "expected layer numbers such as 0,2,4, got '0;2'" in result.output


def test_a_setting_that_is_no_value_ends_with_one_line(run, monkeypatch):
    monkeypatch.setenv("LLMREC_DEVICE", "tpu")
    result = run("models")
    assert result.exit_code == 1
    assert "LLMREC_DEVICE must be auto, cpu, cuda or tensorrt, got 'tpu'" in result.output


def test_cache_stats_of_an_empty_cache(run):
    stats = json.loads(run("cache", "stats", "--json").output)
    assert (stats["entries"], stats["bytes"], stats["runs"]) == (0, 0, [])
