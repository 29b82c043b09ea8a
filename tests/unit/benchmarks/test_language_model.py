"""The language model of the evaluation learns from one data set, and the scorer starts from it."""

from dataclasses import replace

import numpy as np
import pytest
from ranking_data import dataset

from llmrec_plugin.interactions import write_atomic

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("transformers", reason="the export extra is not installed")

from benchmarks.evaluation import language_model  # noqa: E402
from benchmarks.evaluation.systems import DataSet  # noqa: E402
from llmrec_plugin.systems.llm_scorer import pointwise_score  # noqa: E402
from llmrec_plugin.systems.llm_scorer.training import example_rows  # noqa: E402
from llmrec_plugin.training.loop import Plan  # noqa: E402
from llmrec_plugin.training.prompts import TrainableGenerator, generator_in  # noqa: E402

DATA = DataSet(name="things", item_text="{title}", candidate="title")


def test_it_learns_to_continue_prompts_and_can_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_PROGRESS", "0")
    data = dataset(timed=False, events=16)
    write_atomic(data, tmp_path / "data")
    settings = replace(DATA.scorer_settings, rows=48, evaluated=16)
    feature = pointwise_score(model="base", answers=settings.answers)

    def loss(folder):
        generator = TrainableGenerator(generator_in(str(folder), chat=False, max_tokens=language_model.LENGTH))
        _, rows = example_rows(data, settings)
        batch = language_model.sequences(generator, feature, rows)
        with torch.inference_mode():
            return language_model.next_token_loss(generator, batch).item(), batch, generator

    plan = Plan(epochs=6, patience=6, learning_rate=5e-3)
    language_model.train_language_model(tmp_path / "data", tmp_path / "model", settings, plan)
    reached, batch, generator = loss(tmp_path / "model")
    shares = np.unique(np.concatenate(batch), return_counts=True)[1] / sum(map(len, batch))
    assert reached < -(shares * np.log(shares)).sum() - 0.3  # it knows more than how frequent tokens are
    yes, no = generator.answers(settings.answers)
    assert {tuple(tokens[-1:]) for tokens in batch} <= {tuple(yes), tuple(no)}
    assert len(yes) == len(no) == 1


def test_batches_have_every_row_and_like_lengths_together():
    rows = [[1] * length for length in range(1, 40)]
    found = language_model.batches(rows, seed=3)
    assert sorted(map(len, (row for batch in found for row in batch))) == list(range(1, 40))
    assert max(len(batch[-1]) - len(batch[0]) for batch in found) < language_model.BATCH
