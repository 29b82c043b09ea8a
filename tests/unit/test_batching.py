"""Batches under a token budget, and padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_plugin import Batch
from llmrec_plugin.errors import InputError
from llmrec_plugin.pipeline.batching import pad, plan_batches

LENGTHS = st.lists(st.integers(0, 60), max_size=50)


@given(LENGTHS, st.integers(1, 200))
def test_every_sequence_is_in_one_batch_within_the_budget_and_longest_first(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert sorted(np.concatenate([[], *batches]).tolist()) == list(range(len(lengths)))
    planned = [[lengths[i] for i in batch] for batch in batches]
    flat = [length for batch in planned for length in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in planned:
        assert len(batch) * max(batch) <= budget or len(batch) == 1


def test_batches_are_filled_up_to_the_budget():
    assert [batch.tolist() for batch in plan_batches([4, 8, 4, 2, 2], 8)] == [[1], [0, 2], [3, 4]]


def test_sequences_of_one_length_keep_their_order():
    assert [batch.tolist() for batch in plan_batches([3] * 5, 6)] == [[0, 1], [2, 3], [4]]


def test_a_sequence_beyond_the_budget_gets_a_batch_of_its_own():
    assert [batch.tolist() for batch in plan_batches([100, 5, 101], 10)] == [[2], [0], [1]]


def test_empty_sequences_are_planned_too():
    assert [batch.tolist() for batch in plan_batches([0, 0], 1)] == [[0], [1]]
    assert plan_batches([], 1) == []


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_that_holds_nothing_is_refused(budget):
    with pytest.raises(InputError, match=f"token_budget must be positive, got {budget}"):
        plan_batches([1], budget)


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[7, 8, 9], [5, 1, 1], [1, 1, 1]], [[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
        ("left", [[7, 8, 9], [1, 1, 5], [1, 1, 1]], [[1, 1, 1], [0, 0, 1], [0, 0, 0]]),
    ],
)
def test_shorter_sequences_are_padded_on_the_side_asked_for(side, ids, mask):
    got = pad([[7, 8, 9], [5], []], 1, side)
    assert [array.tolist() for array in got] == [ids, mask]
    assert [array.dtype for array in got] == [np.int64, np.int64]


def test_padding_nothing_gives_an_empty_batch():
    ids, mask = pad([], 0)
    assert ids.shape == mask.shape == (0, 0)


@pytest.mark.parametrize(("side", "positions"), [("right", [[0, 1, 2], [0, 0, 0]]), ("left", [[0, 1, 2], [0, 0, 0]])])
def test_a_batch_makes_the_inputs_that_a_graph_declares(side, positions):
    batch = Batch(*pad([[5, 6, 7], [8]], 1, side))
    names = ("position_ids", "input_ids", "token_type_ids", "attention_mask")
    inputs = batch.inputs(names)
    assert tuple(inputs) == names
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [8, 1, 1] if side == "right" else [1, 1, 8]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0] if side == "right" else [0, 0, 1]]
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert inputs["position_ids"].tolist() == positions
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.int64)}
