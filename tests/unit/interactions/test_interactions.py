"""Atomic files, splits, histories, and interactions of a historical read."""

import time
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from llmrec_plugin.errors import InputError, MissingColumnError
from llmrec_plugin.interactions import (
    Dataset,
    from_historical,
    histories,
    leave_out_split,
    read_atomic,
    split_dataset,
    temporal_split,
    write_atomic,
)


def events(rows, **columns):
    users, items, seconds = zip(*rows, strict=True)
    times = pd.Series(np.array(seconds, dtype="datetime64[s]").astype("datetime64[us]")).dt.tz_localize("UTC")
    return pd.DataFrame({"user_id": users, "item_id": items, **columns, "timestamp": times})


def dataset(interactions, **more):
    tables = {key: pd.DataFrame({f"{key}_id": sorted(set(interactions[f"{key}_id"]))}) for key in ("user", "item")}
    return Dataset(name="toy", interactions=interactions, items=more.get("items", tables["item"]), users=tables["user"])


def written(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return folder


def test_what_is_written_is_read_again(tmp_path):
    times = events([("u", "a", 5), ("u", "b", 5), ("v", "a", 9)], rating=[4.0, np.nan, 0.1])
    items = pd.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ['A  "quoted"\ttitle', None, "ü\nx"],
            "year": [1999.0, np.nan, 0.1],
            "vector": [[0.1, 1e-9], [], [3.0]],
            "words": [["x", "y"], ["z"], []],
        }
    )
    write_atomic(dataset(times, items=items), tmp_path)
    again = read_atomic(tmp_path)
    assert_frame_equal(again.interactions, times)
    assert again.items["title"].tolist() == ['A "quoted" title', None, "ü x"]
    assert again.items["vector"].tolist() == items["vector"].tolist()
    assert again.items["words"].tolist() == ["x y", "z", None]
    np.testing.assert_array_equal(again.items["year"], items["year"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(min_value=-(10**15), max_value=5 * 10**15), min_size=1, max_size=20))
def test_times_keep_their_microseconds(tmp_path_factory, moments):
    folder = tmp_path_factory.mktemp("times")
    times = pd.Series(np.sort(np.array(moments, dtype="int64")).view("datetime64[us]")).dt.tz_localize("UTC")
    data = dataset(pd.DataFrame({"user_id": "u", "item_id": "a", "timestamp": times}))
    write_atomic(data, folder)
    assert_frame_equal(read_atomic(folder).interactions, data.interactions)


def test_a_given_split_is_written_and_read_and_replaces_other_files(tmp_path):
    plain = dataset(events([("u", "a", 1), ("u", "b", 2), ("v", "b", 3)]))
    write_atomic(plain, tmp_path)
    parts = dataset(plain.interactions.assign(part=["train", "valid", "test"]))
    write_atomic(parts, tmp_path)
    assert not (tmp_path / "toy.inter").exists()
    split = split_dataset(read_atomic(tmp_path))
    assert [rows["item_id"].tolist() for rows in (split.train, split.validation, split.test)] == [["a"], ["b"], ["b"]]
    write_atomic(plain, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.inter", "toy.item", "toy.user"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "found none"),
        ({"a_inter": "user_id:token\n", "b_inter": ""}, "a.inter, b.inter"),
        ({"a_train_inter": "user_id:token\n", "a_test_inter": ""}, "a.valid.inter"),
        ({"a_inter": ""}, "line 1"),
        ({"a_inter": "user_id\titem_id:token\n"}, "'user_id'"),
        ({"a_inter": "user_id:token\titem_id:text\n"}, "'item_id:text'"),
        ({"a_inter": "user_id:token\tuser_id:token\n"}, "twice"),
        ({"a_inter": "user_id:token\nu\n"}, "item_id:token"),
        ({"a_inter": "user_id:token\titem_id:token\nu\ta\n\nu\n"}, "line 4: expected 2 cells, got 1"),
        ({"a_inter": "user_id:token\titem_id:token\nu\ta\nu\t\n"}, "line 3: item_id is empty"),
        ({"a_inter": "user_id:token\titem_id:token\trating:float\nu\ta\t1\nu\ta\tgood\n"}, "line 3: rating .*'good'"),
        ({"a_inter": "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\ta\t\n"}, "row 2"),
        ({"a_inter": "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1700000000000\n"}, "milliseconds"),
        ({"a_inter": "user_id:token\titem_id:token\nu\ta\n", "a_item": "item_id:token\nb\nb\n"}, "'b' twice"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, files, message):
    with pytest.raises(InputError, match=message):
        read_atomic(written(tmp_path, **files))


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.inter").write_bytes(b"user_id:token\titem_id:token\nu\t\xff\n")
    with pytest.raises(InputError, match=r"a\.inter is not UTF-8"):
        read_atomic(tmp_path)


def test_a_byte_order_mark_carriage_returns_and_blank_lines_do_no_harm(tmp_path):
    (tmp_path / "a.inter").write_bytes("﻿user_id:token\titem_id:token\r\nu\ta\r\n\r\n".encode())
    (tmp_path / "a.item").write_text("item_id:token\tprice:float\nb\t2\n")
    data = read_atomic(tmp_path)
    assert data.interactions.to_dict("records") == [{"user_id": "u", "item_id": "a"}]
    assert data.items["item_id"].tolist() == ["b", "a"]
    assert data.users["user_id"].tolist() == ["u"]
    assert np.isnan(data.items["price"].iloc[1])


def test_a_key_with_a_space_is_not_written(tmp_path):
    with pytest.raises(InputError, match="'a b'"):
        write_atomic(dataset(events([("u", "a b", 1)])), tmp_path)


def test_a_data_set_has_its_events_in_order_and_with_a_zone():
    rows = events([("u", "a", 2), ("u", "b", 1)])
    with pytest.raises(InputError, match="in order"):
        dataset(rows)
    with pytest.raises(InputError, match="UTC"):
        dataset(rows.assign(timestamp=rows["timestamp"].dt.tz_localize(None)))


def test_texts_are_made_of_columns():
    items = pd.DataFrame({"item_id": ["a", "b"], "title": ["Alien", None], "year": [1979.0, np.nan]})
    data = dataset(events([("u", "a", 1)]), items=items)
    assert data.item_texts("{title} ({year})") == {"a": "Alien (1979)", "b": "()"}
    assert data.user_texts("user {user_id}") == {"u": "user u"}
    with pytest.raises(InputError, match="'plot'"):
        data.item_texts("{plot}")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abc"), st.integers(0, 12)), min_size=1, max_size=40))
def test_a_temporal_split_lets_nothing_look_ahead(rows):
    data = dataset(events(sorted(rows, key=lambda row: row[2])))
    try:
        split = temporal_split(data, validation=0.2, test=0.2)
    except InputError:
        return
    parts = [split.train, split.validation, split.test]
    for earlier, later in pairwise(parts):
        assert earlier["timestamp"].max() < later["timestamp"].min()
    assert_frame_equal(pd.concat(parts, ignore_index=True), data.interactions)


def test_a_temporal_split_has_about_the_shares():
    data = dataset(events([("u", str(second), second) for second in range(1000)]))
    split = temporal_split(data, validation=0.1, test=0.2)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [700, 100, 200]


def test_events_of_one_moment_cannot_be_split():
    with pytest.raises(InputError, match="rows in each part"):
        temporal_split(dataset(events([("u", "a", 1)] * 9)))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("uvw"), min_size=3, max_size=60), st.floats(0.01, 0.6), st.floats(0.01, 0.39))
def test_leaving_out_keeps_something_of_everyone(users, validation, test):
    rows = pd.DataFrame({"user_id": users, "item_id": [str(number) for number in range(len(users))]})
    data = dataset(rows)
    try:
        split = leave_out_split(data, validation=validation, test=test)
    except InputError:
        assert rows["user_id"].value_counts().max() < 3
        return
    assert set(split.train["user_id"]) == set(users)
    found = pd.concat([split.train, split.validation, split.test])
    assert sorted(found["item_id"]) == sorted(rows["item_id"])
    for user, count in rows["user_id"].value_counts().items():
        out = [(part["user_id"] == user).sum() for part in (split.validation, split.test)]
        assert min(out) >= 1 if count >= 3 else max(out) == 0


def test_leaving_out_depends_on_the_seed_alone():
    rows = pd.DataFrame({"user_id": ["u"] * 30, "item_id": [str(number) for number in range(30)]})
    first, again, other = (leave_out_split(dataset(rows), seed=seed).test["item_id"].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("shares", [(0, 0.1), (0.5, 0.5), (1.2, 0.1)])
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(InputError, match="shares"):
        temporal_split(dataset(events([("u", "a", 1)])), validation=shares[0], test=shares[1])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("uv"), st.sampled_from("abcd"), st.integers(0, 5)), min_size=1, max_size=30),
    st.integers(1, 4),
)
def test_a_history_holds_the_past_only(rows, last_n):
    rows = sorted(rows, key=lambda row: row[2])
    expected = [
        [item for user, item, past in rows if user == owner and past < moment][::-1][:last_n]
        for owner, _, moment in rows
    ]
    assert histories(events(rows), last_n) == expected


def test_without_times_the_order_of_rows_is_the_past():
    rows = pd.DataFrame({"user_id": list("uuvu"), "item_id": list("abcd")})
    assert histories(rows, 2) == [[], ["a"], [], ["b", "a"]]


def frame(**columns):
    times = pd.to_datetime(["2026-01-02", "2026-01-01", "2026-01-03"])
    values = {"member": [7, 7, 8], "sku": ["b", "a", "b"], "event_timestamp": times, "stars": [5, 3, 1]}
    return pd.DataFrame({**values, "title": ["B", "A", "B, second edition"], "ctr": [0.1, 0.2, 0.3], **columns})


def test_a_historical_read_is_a_data_set():
    data = from_historical(frame(), user="member", item="sku", label="stars", item_columns=["title"])
    assert data.interactions["item_id"].tolist() == ["a", "b", "b"]
    assert data.interactions["user_id"].tolist() == ["7", "7", "8"]
    assert list(data.interactions.columns) == ["user_id", "item_id", "rating", "timestamp", "ctr"]
    assert data.items.to_dict("records") == [{"item_id": "a", "title": "A"}, {"item_id": "b", "title": "B"}]
    assert str(data.interactions["timestamp"].dt.tz) == "UTC"


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"member": [7, None, 8]}, InputError, "1 rows have no 'member'"),
        ({"stars": [1, None, 2]}, InputError, "no number in 'stars'"),
        ({"user_id": ["x"] * 3}, InputError, "another column named 'user_id'"),
    ],
)
def test_a_historical_read_with_gaps_is_refused(columns, error, message):
    with pytest.raises(error, match=message):
        from_historical(frame(**columns), user="member", item="sku", label="stars")


def test_a_column_that_is_not_in_the_read_is_named():
    with pytest.raises(MissingColumnError, match="'item'"):
        from_historical(frame(), user="member", item="item")


def test_a_hundred_thousand_rows_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    size = 100_000
    moments = pd.Series(np.sort(rng.integers(0, 10**9, size)).astype("datetime64[s]").astype("datetime64[us]"))
    rows = pd.DataFrame(
        {
            "user_id": rng.integers(0, 5000, size).astype(str),
            "item_id": rng.integers(0, 5000, size).astype(str),
            "timestamp": moments.dt.tz_localize("UTC"),
        }
    )
    started = time.process_time()
    write_atomic(dataset(rows), tmp_path)
    data = read_atomic(tmp_path)
    temporal_split(data)
    leave_out_split(data)
    histories(data.interactions, 20)
    assert time.process_time() - started < 10
