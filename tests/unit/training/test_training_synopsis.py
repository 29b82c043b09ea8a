"""A decoder learns on a frozen BERT, is stored without it, and goes on where it was stopped."""

import json
from pathlib import Path

import pytest

from llmrec_plugin.errors import SourceError
from llmrec_plugin.export.grafting import complete, read_base
from llmrec_plugin.training import loop
from llmrec_plugin.training.loop import Plan
from llmrec_plugin.training.synopsis import Size, gain, score_texts, train_synopsis

PLAN = Plan(epochs=16, patience=6, learning_rate=8e-3)
SIZE = Size(decoder_layers=1, source_tokens=24, target_tokens=6, batch=32)
FILES = ("base.json", "decoder.safetensors", "quality.json", "examples.json")


def run(rows, bert: Path, output: Path, plan: Plan = PLAN, report=lambda line: None):
    return train_synopsis(rows, f"path:{bert}", output, plan, size=SIZE, evaluated=30, progress=False, report=report)


@pytest.fixture(scope="module")
def trained(rows, bert_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    return output, run(rows, bert_folder, output)


def test_a_decoder_learns_to_write_what_the_text_says(trained):
    output, quality = trained
    assert quality["test"]["greedy"]["rouge_l"] > 0.6  # the best text that is the same for all would reach 0.2
    assert quality["test"]["greedy"]["rouge_l"] > quality["test"]["first sentence"]["rouge_l"]
    assert set(quality["test"]) == {
        "greedy", "beam 4", "first sentence", "first 12 words", "synopsis of the nearest training text",
    }  # fmt: skip
    assert json.loads((output / "quality.json").read_text()) == json.loads(json.dumps(quality))
    assert read_base(output).quality["test"] == quality["test"]


def test_a_resumed_run_ends_with_the_same_bytes(rows, bert_folder, trained, tmp_path, monkeypatch):
    save = loop._save

    def stop(state, path):
        save(state, path)
        if len(state["history"]) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(rows, bert_folder, tmp_path)
    monkeypatch.setattr(loop, "_save", save)
    lines = []
    run(rows, bert_folder, tmp_path, report=lines.append)
    assert any("resuming after epoch 2" in line for line in lines)
    assert all((tmp_path / name).read_bytes() == (trained[0] / name).read_bytes() for name in FILES)


def test_the_stored_decoder_is_completed_and_writes_the_same(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = complete(trained[0], tmp_path / "whole")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    example = json.loads((trained[0] / "examples.json").read_text())[0]
    inputs = tokenizer(example["text"], return_tensors="pt", truncation=True, max_length=SIZE.source_tokens)
    written = network.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, max_new_tokens=6
    )
    assert tokenizer.decode(written[0], skip_special_tokens=True) == example["greedy"]
    assert "[UNK]" not in example["greedy"]


def test_a_decoder_that_was_changed_is_refused(trained, tmp_path):
    for name in ("base.json", "decoder.safetensors"):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    content = bytearray((tmp_path / "decoder.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "decoder.safetensors").write_bytes(content)
    with pytest.raises(SourceError, match="expected sha256"):
        complete(tmp_path, tmp_path / "whole")


def test_shares_of_empty_and_rambling_texts():
    scores = score_texts(["a b", "c", "d"], ["a b", "", "d d d"])
    assert scores["empty"] == pytest.approx(1 / 3)
    assert scores["rambling"] == pytest.approx(1 / 3)
    assert scores["words"] == pytest.approx(5 / 3)


def test_the_gain_is_that_of_the_means_and_its_interval_knows_what_is_certain():
    truth = ["a small tool"] * 20
    better = gain(truth, ["a small tool"] * 20, ["tool"] * 20)
    assert better["low"] == pytest.approx(better["mean"]) == pytest.approx(0.5)
    mixed = gain(truth, ["a small tool", "nothing"] * 10, ["nothing", "a small tool"] * 10)
    assert mixed["mean"] == pytest.approx(0)
    assert mixed["low"] < 0 < mixed["high"]
