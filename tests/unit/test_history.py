"""Event logs as histories."""

from datetime import timedelta

import pandas as pd
import pytest

from llmrec_plugin.errors import InputError, MissingColumnError
from llmrec_plugin.pipeline.history import history_frame

EVENTS = pd.DataFrame(
    [
        ("bob", "b1", "2026-01-05"),
        ("ann", "a2", "2026-01-02"),
        ("ann", "a1", "2026-01-01"),
        ("ann", None, "2026-01-03"),
        ("ann", " ", "2026-01-03"),
        ("ann", "a3", "2026-01-04"),
        ("ann", "a4", "2026-01-04"),
    ],
    columns=["user", "title", "at"],
)
NOW = timedelta(0)


def history(events=EVENTS, **changes):
    return history_frame(events, **{"entity": "user", "text": "title", "timestamp": "at", "last_n": 3, **changes})


def test_each_moment_of_a_user_gives_the_last_texts_newest_first():
    frame = history(delay=NOW)
    assert list(frame.itertuples(index=False, name=None)) == [
        ("ann", ["a1"], pd.Timestamp("2026-01-01", tz="UTC")),
        ("ann", ["a2", "a1"], pd.Timestamp("2026-01-02", tz="UTC")),
        ("ann", ["a4", "a3", "a2"], pd.Timestamp("2026-01-04", tz="UTC")),
        ("bob", ["b1"], pd.Timestamp("2026-01-05", tz="UTC")),
    ]
    assert list(frame.columns) == ["user", "history_texts", "at"]
    assert str(frame["at"].dtype) == "datetime64[us, UTC]"


def test_an_event_is_known_only_after_it_happened():
    labels = pd.DataFrame(
        {"user": ["ann"], "at": pd.to_datetime(["2026-01-02"], utc=True).astype("datetime64[us, UTC]")}
    )
    frame = history().sort_values("at")
    [seen] = pd.merge_asof(labels, frame, on="at", by="user")["history_texts"]
    assert seen == ["a1"]


def test_the_order_of_the_log_does_not_matter_but_at_one_moment():
    one_time = EVENTS.iloc[:-1]
    shuffled = one_time.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(history(one_time), history(shuffled))


def test_no_events_give_no_rows_of_the_right_types():
    frame = history(EVENTS.iloc[:0])
    assert len(frame) == 0
    assert str(frame["at"].dtype) == "datetime64[us, UTC]"


def test_the_log_is_not_changed():
    before = EVENTS.copy(deep=True)
    history()
    pd.testing.assert_frame_equal(EVENTS, before)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"text": "name"}, MissingColumnError, "'name'"),
        ({"last_n": 0}, InputError, "last_n >= 1"),
        ({"delay": timedelta(-1)}, InputError, "delay >= 0"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(changes, error, words):
    with pytest.raises(error, match=words):
        history(**changes)


def test_an_event_without_a_time_is_refused():
    with pytest.raises(InputError, match="1 events have no 'at'"):
        history(EVENTS.assign(at=[None, *EVENTS["at"][1:]]))
