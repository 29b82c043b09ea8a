"""Metrics of a full ranking, against plain implementations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_plugin.errors import InputError
from llmrec_plugin.evaluation.metrics import METRICS, auc, list_metrics, paired_bootstrap, positions
from llmrec_plugin.systems.mint.evaluation import ndcg as graded_ndcg
from llmrec_plugin.systems.mint.evaluation import ranked

LISTS = st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 0.5000001, 2.0]), st.booleans()), min_size=1, max_size=25)


def plain(scores, relevant, k):
    """By the book: sort keys as trec_eval does, then count."""
    keys = [f"d{place:03d}" for place in range(len(scores))]
    wanted = {key for key, good in zip(keys, relevant, strict=True) if good}
    order = ranked(dict(zip(keys, scores, strict=True)))
    ranks = sorted(order.index(key) + 1 for key in wanted)
    pairs = [(a, b) for a, good in zip(scores, relevant, strict=True) if good
             for b, bad in zip(scores, relevant, strict=True) if not bad]  # fmt: skip
    return {
        "ndcg": graded_ndcg(order, dict.fromkeys(wanted, 1.0), k),
        "recall": sum(rank <= k for rank in ranks) / len(ranks),
        "hr": float(any(rank <= k for rank in ranks)),
        "mrr": 1 / ranks[0],
        "auc": sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs) if pairs else math.nan,
    }


@settings(max_examples=100, deadline=None)
@given(LISTS, st.integers(1, 12))
def test_the_metrics_are_those_of_the_book(rows, k):
    scores, relevant = np.array([score for score, _ in rows]), np.array([good for _, good in rows])
    found = list_metrics(scores, relevant, k)
    if not relevant.any():
        assert np.isnan(found).all()
        return
    expected = plain(scores.tolist(), relevant.tolist(), k)
    np.testing.assert_allclose(found, [expected[name] for name in METRICS], atol=1e-12)


def test_of_equal_scores_the_later_key_is_first():
    assert positions(np.zeros(4), np.array([0, 3])).tolist() == [1, 4]
    assert positions(np.array([1.0, 0.0, 1.0]), np.array([0])).tolist() == [2]


def test_what_has_no_score_is_last():
    scores = np.array([-np.inf, 3.0, -np.inf, 1.0])
    assert positions(scores, np.array([0])).tolist() == [4]
    assert list_metrics(scores, np.array([True, False, False, False]), 3)[0] == 0


def test_nan_has_no_rank():
    with pytest.raises(InputError, match="1 scores are NaN"):
        list_metrics(np.array([np.nan, 1.0]), np.array([True, False]))


def test_auc_of_a_list_with_one_kind_is_nothing():
    assert math.isnan(auc(np.array([1.0, 2.0]), np.array([True, True])))


def test_scikit_learn_agrees_on_auc():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, relevant = np.round(rng.random(500), 1), rng.random(500) < 0.2
    assert auc(scores, relevant) == pytest.approx(roc_auc_score(relevant, scores))


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        _, low, high = paired_bootstrap(rng.normal(0.3, 1.0, 60), samples=400, seed=trial)
        inside += low <= 0.3 <= high
    assert 180 <= inside <= 198


def test_a_difference_that_only_seeds_make_is_not_certain():
    """Models that differ by chance differ on all users alike; without resampling seeds the interval would be narrow."""
    rng = np.random.default_rng(2)
    wrong = 0
    for trial in range(200):
        differences = rng.normal(0, 1, (5, 1)) + rng.normal(0, 0.5, (5, 80))
        _, low, high = paired_bootstrap(differences, samples=400, seed=trial)
        wrong += not low <= 0 <= high
    assert wrong <= 36  # five seeds are few: up to 18 % instead of 5 %; over users alone it would be about 80 %


def test_the_interval_leaves_nan_out_and_depends_on_the_seed_alone():
    values = np.array([0.1, np.nan, 0.3, 0.2])
    assert paired_bootstrap(values) == paired_bootstrap(values)
    assert paired_bootstrap(values)[0] == pytest.approx(0.2)
    assert math.isnan(paired_bootstrap(np.array([np.nan]))[0])
