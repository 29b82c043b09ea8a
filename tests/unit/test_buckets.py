"""Batches of few shapes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_plugin.pipeline import buckets
from llmrec_plugin.pipeline.batching import plan_batches
from llmrec_plugin.pipeline.buckets import BATCH_COST, bucket

LENGTHS = st.lists(st.integers(0, 60), max_size=60)


def tokens(batches, lengths, step):
    """Tokens of the batches once padded."""
    return sum(
        rows * length
        for rows, length in (bucket(len(batch), max(lengths[batch].max(), 1), step, 10_000) for batch in batches)
    )


@given(LENGTHS, st.integers(1, 300), st.sampled_from([2, 4, 8, 16]))
def test_every_sequence_is_in_one_batch_whose_padded_shape_is_within_the_budget(lengths, budget, step):
    batches = plan_batches(lengths, budget, step)
    assert sorted(np.concatenate([[], *batches]).tolist()) == list(range(len(lengths)))
    flat = [lengths[i] for batch in batches for i in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in batches:
        rows, length = bucket(len(batch), max(max(lengths[i] for i in batch), 1), step, 10_000)
        assert rows * length <= budget or len(batch) == 1


@given(st.integers(1, 5000), st.integers(1, 600), st.sampled_from([4, 8, 16]), st.sampled_from([128, 510]))
def test_a_bucket_holds_its_batch_and_is_a_multiple_of_the_step(rows, length, step, longest):
    padded_rows, padded_length = bucket(rows, length, step, longest)
    assert rows <= padded_rows < max(2 * rows, rows + step)
    assert length <= padded_length < length + step
    assert padded_rows % step == 0 or padded_rows in (1, 2, 4, 8)
    assert padded_length % step == 0 or padded_length == max(longest, length)


def test_a_bucket_is_no_longer_than_the_model_can_read():
    assert bucket(1, 509, 8, 510) == (1, 510)
    assert bucket(1, 3, 8, 510) == (1, 8)


def test_full_batches_of_a_length_have_one_shape_without_padding():
    batches = plan_batches([16] * 1000, 1024, 8)
    assert [len(batch) for batch in batches] == [64] * 15 + [40]


def test_a_batch_is_cut_where_padding_would_cost_more_than_another_batch():
    short = 2 * BATCH_COST // 8
    assert [len(batch) for batch in plan_batches([256] * 8 + [8] * short, 10**6, 8)] == [8, short]
    assert [len(batch) for batch in plan_batches([16] * 8 + [8] * 8, 10**6, 8)] == [16]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cuts_cost_noticeably_less(seed):
    """The plan does not see that the rest of a group may be shorter than the group."""
    rng = np.random.default_rng(seed)
    lengths, budget, step = rng.integers(1, 64, 400), 4096, 8
    planned = plan_batches(lengths, budget, step)
    shapes = sorted({-(-length // step) * step for length in lengths.tolist()}, reverse=True)
    costs = []
    for size in range(len(shapes)):
        for cuts in itertools.combinations(shapes[1:], size):
            batches = []
            for low, high in itertools.pairwise([*sorted({0, *cuts}), shapes[0] + 1]):
                padded = -(-lengths // step) * step
                group = np.flatnonzero((padded > low) & (padded <= high)) if low else np.flatnonzero(padded <= high)
                batches += cut(group[np.argsort(-lengths[group], kind="stable")], lengths, budget, step)
            costs.append(tokens(batches, lengths, step) + BATCH_COST * len(batches))
    assert tokens(planned, lengths, step) + BATCH_COST * len(planned) <= 1.005 * min(costs)


def cut(group, lengths, budget, step):
    """A group of sequences in full batches, and a rest."""
    if not len(group):
        return []
    rows = max(budget // bucket(1, lengths[group].max(), step, 10_000)[1] // step * step, 1)
    return [group[start : start + rows] for start in range(0, len(group), rows)]


def test_planning_costs_little_for_many_lengths():
    """As many evaluations as pairs of lengths, whatever the number of sequences."""
    calls = []
    original = buckets._cost
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "_cost", lambda *arguments: calls.append(1) or original(*arguments))
        plan_batches(np.random.default_rng(0).integers(1, 257, 20_000), 32_768, 8)
    assert len(calls) == 32 * 33 // 2
