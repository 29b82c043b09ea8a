"""What the models would have to read: counted once for all features that share it, without what is cached."""

import numpy as np
import pytest
from samples import bound, embedding

from llmrec_plugin.feast.estimates import Encoding
from llmrec_plugin.runtime.rawrows import Rows


def _rows(titles, notes):
    zeros = np.zeros(len(titles), np.int64)
    return Rows(list(range(len(titles))), zeros, zeros, {"title": titles, "note": notes}, zeros)


@pytest.fixture
def two(tiny):
    """Two features that encode alike, of different columns."""
    return [
        bound(embedding(), tiny.id),
        bound(embedding(name="item_note_embedding", text="{note}"), tiny.id),
    ]


def test_texts_of_features_that_encode_alike_count_once(new_runner, two):
    runner = new_runner()
    runner.compute(two[0], {"title": ["red"]}, "batch")
    work = Encoding(runner, two)
    work.add(_rows(["red", "blue"], ["green", "red"]))
    work.add(_rows(["blue"], [""]))
    assert (work.texts, work.compute, work.is_exact) == (3, 2, True)
    assert work.tokens == 6  # a word each, [CLS] and [SEP]
    assert 0 < work.seconds() < 60


def test_nothing_to_compute_costs_no_time_and_loads_no_model(new_runner, two, monkeypatch):
    work = Encoding(new_runner(), two)
    monkeypatch.setattr(work, "run", lambda texts: pytest.fail("a model ran"))
    work.add(_rows(["", None], [None, ""]))
    assert (work.texts, work.compute, work.tokens, work.seconds()) == (0, 0, 0, 0.0)
