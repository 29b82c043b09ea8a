"""Nothing of a label's own moment, and nothing later, is ever read for it."""

import numpy as np
import pandas as pd
import pytest

from llmrec_plugin.interactions import Dataset, split_dataset
from llmrec_plugin.systems.means import Means, auc, rating_scores
from llmrec_plugin.systems.past import newest_before, timeline


def naive(keys, moments, event_keys, event_moments, last_n):
    found = []
    for key, moment in zip(keys, moments, strict=True):
        earlier = [n for n, (k, m) in enumerate(zip(event_keys, event_moments, strict=True)) if k == key and m < moment]
        newest = sorted(earlier, key=lambda n: (event_moments[n], n), reverse=True)[:last_n]
        found.append(newest + [-1] * (last_n - len(newest)))
    return np.array(found).reshape(len(keys), last_n)


@pytest.mark.parametrize("seed", range(20))
def test_the_newest_earlier_events_are_found(seed):
    rng = np.random.default_rng(seed)
    labels, events = rng.integers(0, 30, 2)
    keys, event_keys = (
        np.array([f"k{n}" for n in rng.integers(0, 5, size)], dtype=object) for size in (labels, events)
    )
    moments, event_moments = rng.integers(-5, 5, labels), rng.integers(-5, 5, events)  # many ties
    found = newest_before(keys, moments, event_keys, event_moments, 3)
    assert found.tolist() == naive(keys, moments, event_keys, event_moments, 3).tolist()


def test_moments_may_be_far_apart():
    times = np.array([0, 4_102_444_800_000_000], dtype=np.int64)
    keys = np.array(["a", "b"], dtype=object)
    assert newest_before(keys, times + 1, keys, times, 1).tolist() == [[0], [1]]


def untimed(rows=60):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"user_id": [f"u{n}" for n in rng.integers(0, 6, rows)], "item_id": "i", "rating": 1.0})
    users = pd.DataFrame({"user_id": sorted(set(table.user_id))})
    return Dataset(name="x", interactions=table, items=pd.DataFrame({"item_id": ["i"]}), users=users)


def test_without_times_training_rows_have_a_random_order_and_precede_the_others():
    split = split_dataset(untimed())
    table = timeline(split, seed=1)
    learned = len(split.train)
    assert sorted(table.moment[:learned]) == list(range(learned))
    assert list(table.moment[:learned]) != list(range(learned))
    assert set(table.moment[table.part == 1]) == {learned}
    assert set(table.moment[table.part == 2]) == {learned + 1}
    assert timeline(split, seed=1).equals(table)
    assert not timeline(split, seed=2).equals(table)


def test_with_times_the_moment_is_the_time():
    dataset = untimed()
    times = pd.date_range("2026-01-01", periods=60, tz="UTC").astype("datetime64[us, UTC]")
    dated = Dataset(
        name="x", interactions=dataset.interactions.assign(timestamp=times), items=dataset.items, users=dataset.users
    )
    table = timeline(split_dataset(dated))
    assert (table.moment.to_numpy() == times.astype("int64")).all()
    assert list(table.part.unique()) == [0, 1, 2]


def test_means_of_users_and_items():
    means = Means.fit(["a", "a", "b", "b"], ["x", "y", "x", "y"], np.array([5.0, 3.0, 3.0, 1.0]), shrink=0)
    assert means.predict(["a", "b", "new", "new"], ["x", "y", "x", "new"]).tolist() == [5, 1, 4, 3]


def test_means_at_the_moment_know_only_earlier_events():
    means = Means.fit(["a", "b"], ["x", "x"], np.array([4.0, 4.0]), shrink=1)
    events = pd.DataFrame({"user_id": "c", "item_id": "x", "rating": [2.0, 5.0], "moment": [1, 2]})
    keys = np.array(["c"] * 3, dtype=object)
    predicted = means.predict_at(keys, np.array(["x"] * 3, dtype=object), np.array([1, 2, 3]), events)
    assert predicted.tolist() == pytest.approx([4, 4 - 2 / 2, 4 - 1 / 3])


def test_auc_counts_ties_half():
    assert auc(np.array([1.0, 2, 3]), np.array([False, False, True])) == 1
    assert auc(np.array([1.0, 1, 1, 1]), np.array([False, True, False, True])) == 0.5
    assert auc(np.array([1.0, 2, 2, 0]), np.array([False, True, False, False])) == pytest.approx(2.5 / 3)
    assert "auc" not in rating_scores(np.ones(2), np.ones(2), liked=1)
