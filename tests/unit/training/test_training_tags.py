"""A head learns, is measured on rows it has not seen, and goes on where it was stopped."""

import json
from pathlib import Path

import numpy as np
import pytest

from llmrec_plugin.errors import InputError
from llmrec_plugin.export.heads import read_head
from llmrec_plugin.training import loop
from llmrec_plugin.training.loop import Plan
from llmrec_plugin.training.tags import TagColumns, train_tags

PLAN = Plan(epochs=25, patience=5, learning_rate=0.02)


def encode(texts):
    """A vector per text from its words: (n, 64) float32."""
    rng = np.random.default_rng(0)
    words = sorted({word for text in texts for word in text.split() if not word.isdigit()})
    table = {word: rng.standard_normal(64) for word in words}
    vectors = np.stack([sum(table[word] for word in text.split() if word in table) for text in texts])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def run(rows, output: Path, plan: Plan = PLAN, **options):
    return train_tags(rows, encode, output, plan, progress=False, report=lambda line: None, **options)


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_head_learns_and_beats_what_needs_no_training(rows, tmp_path, hidden):
    quality = run(rows, tmp_path, hidden=hidden)
    assert quality["test"]["micro_f1"] > 0.95
    assert quality["test"]["micro_f1"] > 1.5 * quality["baselines"]["most frequent labels"]["micro_f1"]
    head = read_head(tmp_path / "head.safetensors")
    assert head.labels == tuple(sorted({tag for row in rows for tag in row["tags"]}))
    assert (head.hidden_weight is not None) == bool(hidden)
    assert json.loads((tmp_path / "quality.json").read_text()) == json.loads(json.dumps(quality))


def test_a_resumed_run_ends_with_the_same_bytes(rows, tmp_path, monkeypatch):
    run(rows, tmp_path / "whole")
    save = loop._save

    def stop(state, path):
        save(state, path)
        if len(state["history"]) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(rows, tmp_path / "parts")
    monkeypatch.setattr(loop, "_save", save)
    lines = []
    train_tags(rows, encode, tmp_path / "parts", PLAN, progress=False, report=lines.append)
    assert any("resuming after epoch 3" in line for line in lines)
    for name in ("head.safetensors", "quality.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_a_checkpoint_of_another_run_is_refused(rows, tmp_path):
    run(rows, tmp_path)
    with pytest.raises(InputError, match="belongs to a run with other data or settings"):
        run(rows, tmp_path, Plan(epochs=25, patience=5, learning_rate=0.01))


def test_it_stops_once_validation_no_longer_improves(rows, tmp_path):
    quality = run(rows, tmp_path, Plan(epochs=400, patience=2, learning_rate=0.3))
    losses = [epoch["validation_loss"] for epoch in quality["epochs"]]
    assert len(losses) < 400
    assert int(np.argmin(losses)) == len(losses) - 3


def test_rows_held_out_are_measured_and_rare_labels_are_left_out(rows, tmp_path):
    named = frozenset(row["name"] for row in rows[:50])
    rare = [*rows, {"name": "zzz", "description": "now and only once", "tags": ["rare"]}]
    quality = run(rare, tmp_path, held_out=named)
    assert quality["rows"]["test"] == 50
    assert "rare" not in read_head(tmp_path / "head.safetensors").labels
    assert quality["label_coverage"] == 1.0


def test_unlabelled_rows_and_wrong_columns(rows, tmp_path):
    quality = run([*rows, {"name": "z", "description": "nobody labelled this", "tags": []}], tmp_path / "one")
    assert sum(quality["rows"].values()) == len(rows)
    with pytest.raises(InputError, match="'body'"):
        run(rows, tmp_path / "two", columns=TagColumns(text="body"))
    with pytest.raises(InputError, match="lists of strings"):
        run(rows, tmp_path / "three", columns=TagColumns(labels="synopsis"))
