"""What is known when: histories, snapshots, and the leak test."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_data import dataset

from llmrec_plugin.errors import InputError
from llmrec_plugin.evaluation.base import BaseColumns
from llmrec_plugin.evaluation.windows import (
    NEVER,
    Catalogue,
    LeakError,
    Rows,
    check_no_future,
    check_window,
    stale,
    windows,
)
from llmrec_plugin.interactions import Dataset, split_dataset

EVENTS = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdef"), st.integers(0, 30)), min_size=12, max_size=60
)


def made(rows, later=()):
    """Windows of events, and of the same events with more of them after the end."""
    frames = []
    for part in (rows, [*rows, *later]):
        ordered = sorted(part, key=lambda row: row[2])
        seconds = np.array([second for _, _, second in ordered]).astype("datetime64[s]").astype("datetime64[us]")
        frames.append(
            pd.DataFrame(
                {
                    "user_id": [user for user, _, _ in ordered],
                    "item_id": [item for _, item, _ in ordered],
                    "timestamp": pd.Series(seconds).dt.tz_localize("UTC"),
                }
            )
        )
    items, users = pd.DataFrame({"item_id": list("abcdef")}), pd.DataFrame({"user_id": list("uvw")})
    return [Dataset(name="x", interactions=frame, items=items, users=users) for frame in frames]


@settings(max_examples=50, deadline=None)
@given(EVENTS, st.integers(1, 5))
def test_no_list_knows_its_own_future(rows, list_events):
    (data, _) = made(rows)
    catalogue = Catalogue.of(data)
    try:
        trained, validation, test = windows(catalogue, split_dataset(data, validation=0.2, test=0.2),
                                            list_events=list_events)  # fmt: skip
    except InputError:
        return
    for window in (*trained, validation, test):
        for query in range(len(window)):
            past = window.past(query)
            assert (past.time < window.moment[query]).all()
            assert (np.diff(past.time) <= 0).all()
            assert (past.user == window.user[query]).all()
            expected = sum(
                user == catalogue.users[window.user[query]] and second * 1_000_000 < window.moment[query]
                for user, _, second in rows
            )
            assert len(past) == expected
            assert not set(window.relevant[query]) & set(past.item)
        if len(window) and len(window.snapshot):
            assert window.snapshot.time.max() < window.moment.min()


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdef"), st.integers(31, 60)), min_size=1))
def test_what_happens_later_changes_no_column(rows, later):
    """The same training windows, cut at the same moment, whatever comes after it."""
    columns = []
    for data in made(rows, later):
        catalogue = Catalogue.of(data)
        moment = pd.Timestamp(18, unit="s", tz="UTC")
        parts = [data.interactions["timestamp"] < moment, data.interactions["timestamp"] >= moment]
        known, after = (catalogue.log(data.interactions[part]) for part in parts)
        if not len(known) or not len(after):
            return
        from llmrec_plugin.evaluation.windows import _timed

        window = _timed("x", catalogue, known, after.take(after.time <= 30_000_000), 3)
        if not len(window):
            return
        everything = Rows.of([np.arange(6)] * len(window))
        columns.append(BaseColumns().columns(window, everything))
    np.testing.assert_array_equal(columns[0].values, columns[1].values)
    assert columns[0].latest.tolist() == columns[1].latest.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=20))
def test_a_value_from_the_future_is_always_found(pairs):
    moments, latest = np.array(pairs, dtype=np.int64).T
    if (latest > moments).any():
        with pytest.raises(LeakError, match=f"{int((latest > moments).sum())} of {len(pairs)} values"):
            check_no_future(moments, latest, "x")
    else:
        check_no_future(moments, latest, "x")


@pytest.mark.parametrize("timed", [True, False])
def test_a_window_that_holds_its_own_events_is_refused(timed):
    data = dataset(timed=timed)
    catalogue = Catalogue.of(data)
    _, _, test = windows(catalogue, split_dataset(data))
    late = catalogue.log(data.interactions)
    with pytest.raises(LeakError, match="snapshot" if timed else "also known ones"):
        check_window(replace(test, snapshot=late))
    if timed:
        moved = replace(test.history, time=test.history.time + 10**12)
        with pytest.raises(LeakError, match="histories"):
            check_window(replace(test, history=moved))


def test_without_times_no_user_helps_to_make_the_statistics_of_its_own_rows():
    data = dataset(timed=False)
    catalogue = Catalogue.of(data)
    split = split_dataset(data)
    trained, validation, test = windows(catalogue, split)
    for window in trained:
        assert not set(window.snapshot.user) & set(window.user)
        assert (np.diff(window.offsets) > 0).all()
    assert len(set(np.concatenate([window.user for window in trained]))) == len(catalogue.users)
    known = len(split.train) + len(split.validation)
    assert len(test.snapshot) == known
    assert len(validation.snapshot) == len(split.train)


def test_a_part_and_a_stale_history_are_of_the_same_lists():
    data = dataset(timed=True)
    _, _, test = windows(Catalogue.of(data), split_dataset(data))
    part = test.part(np.array([2, 0]))
    assert part.names() == [test.names()[2], test.names()[0]]
    assert part.past(1).time.tolist() == test.past(0).time.tolist()
    old = stale(test, 300_000_000_000)
    assert 0 < len(old.history) < len(test.history)
    assert old.history.time.max() < 300_000_000_000
    assert (old.latest() <= test.latest()).all()
    half = stale(replace(test, catalogue=replace(test.catalogue, timed=False)), 0)
    assert 0.3 < len(half.history) / len(test.history) < 0.7


def test_the_newest_event_of_an_empty_history_is_never():
    data = dataset(timed=True)
    _, _, test = windows(Catalogue.of(data), split_dataset(data))
    empty = test.with_history(np.zeros(len(test.history), dtype=bool))
    assert (empty.latest() == NEVER).all()


def test_ratings_decide_what_is_relevant():
    data = dataset(timed=True, rated=True)
    catalogue = Catalogue.of(data, liked=5)
    _, _, test = windows(catalogue, split_dataset(data))
    rating = data.interactions.set_index(["user_id", "item_id"])["rating"]
    for query in range(len(test)):
        user = catalogue.users[test.user[query]]
        assert all(rating[user, catalogue.items[item]] == 5 for item in test.relevant[query])
        assert all(rating[user, catalogue.items[item]] < 5 for item in test.passed[query])
