import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import embedding

from llmrec_plugin.errors import ColumnTypeError, MissingColumnError
from llmrec_plugin.runtime import rawrows
from llmrec_plugin.runtime.rawrows import EPOCH, RawRows, concatenate, to_datetime, to_microseconds

SECOND = 1_000_000
ALL = (-(10**15), 10**15)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """Few rows make several batches, partitions and rounds of de-duplication."""
    monkeypatch.setattr(rawrows, "ROWS_PER_BATCH", 3)
    monkeypatch.setattr(rawrows, "ROWS_PER_PARTITION", 4)


def table(rows, *, key=None, at=None):
    """Rows of (key, at, created, title); times in seconds since 1970."""
    at = at or pa.timestamp("us", "UTC")
    keys, ats, created, titles = zip(*rows, strict=True) if rows else ([], [], [], [])
    return pa.table(
        {
            "item": pa.array(keys, key or pa.string()),
            "at": pa.array([None if s is None else s * SECOND for s in ats], pa.timestamp("us")).cast(at, safe=False),
            "made": pa.array([None if s is None else s * SECOND for s in created], pa.timestamp("us", "UTC")),
            "title": pa.array(titles, pa.string()),
        }
    )


def open_rows(dataset, **changes):
    if isinstance(dataset, pa.Table):
        dataset = pads.dataset(dataset)
    return RawRows(dataset, embedding(), **{"key": "item", "timestamp": "at", "created": "made", **changes})


def read(raw, wanted):
    """Positions and rows, as one."""
    parts = list(raw.read(wanted))
    assert all(len(positions) == len(rows) for positions, rows in parts)
    if not parts:
        return [], None
    return np.concatenate([positions for positions, _ in parts]).tolist(), concatenate([rows for _, rows in parts])


def reference(frame, window, covered):
    """The same by pandas on everything at once: positions of the newest rows inside, and in earlier intervals."""
    frame = frame.assign(position=range(len(frame))).dropna(subset=["item", "at"])
    frame = frame[frame["at"] <= window[1]].assign(made=frame["made"].fillna(0))
    newest = frame.sort_values(["at", "made", "position"]).groupby("item", observed=True).tail(1)
    inside = newest["at"].between(*window)
    earlier = ~inside & np.logical_or.reduce([newest["at"].between(*item) for item in covered] or [inside & False])
    return sorted(newest[inside]["position"]), sorted(newest[earlier]["position"])


SECONDS = st.integers(-3, 12)
ROWS = st.lists(
    st.tuples(
        st.none() | st.sampled_from("abcdefgh"),
        st.none() | SECONDS,
        st.none() | st.integers(1, 3),
        st.none() | st.sampled_from(["red", "", "é\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")]),
    ),
    max_size=60,
)
INTERVAL = st.tuples(SECONDS, SECONDS).map(lambda pair: (min(pair) * SECOND, max(pair) * SECOND))
LAYOUTS = st.sampled_from(["table", "row groups", "files", "hive"])
KEYS = st.sampled_from(["str", "large", "dictionary", "int", "binary"])
TIMES = st.sampled_from(
    [pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("ms", "Asia/Tokyo"), pa.timestamp("s")]
)


def lay_out(rows, layout, folder):
    """The rows as a dataset, and as one table in its order."""
    if layout == "table":
        return pads.dataset(rows), rows
    if layout == "row groups":
        pq.write_table(rows, folder / "items.parquet", row_group_size=5)
        return pads.dataset(folder / "items.parquet", format="parquet"), rows
    cut = len(rows) // 3
    parts = [rows.slice(0, cut), rows.slice(cut, 0), rows.slice(cut)]
    for number, part in enumerate(parts):
        place = folder / (f"region={number}" if layout == "hive" else "") / f"{number}.parquet"
        place.parent.mkdir(exist_ok=True)
        pq.write_table(part, place, row_group_size=7)
    return pads.dataset(folder, format="parquet", partitioning="hive"), rows


@settings(max_examples=100)
@given(rows=ROWS, window=INTERVAL, covered=st.lists(INTERVAL, max_size=2), layout=LAYOUTS, key=KEYS, time=TIMES)
def test_the_newest_rows_are_those_of_pandas(tmp_path_factory, rows, window, covered, layout, key, time):
    number = {letter: position - 2 for position, letter in enumerate("abcdefgh")}
    convert = {"int": number.get, "binary": lambda text: text and text.encode()}.get(key, lambda text: text)
    kind = {"large": pa.large_string(), "int": pa.int32(), "binary": pa.binary()}.get(key, pa.string())
    given_rows = table([(convert(row[0]), *row[1:]) for row in rows], key=kind, at=time)
    if key == "dictionary":
        given_rows = given_rows.set_column(0, "item", given_rows["item"].dictionary_encode())
    dataset, given_rows = lay_out(given_rows, layout, tmp_path_factory.mktemp("rows"))
    raw = open_rows(dataset)

    newest = raw.newest(window, covered)
    frame = pd.DataFrame(rows, columns=["item", "at", "made", "title"]).astype({"at": "Int64", "made": "Int64"})
    frame["at"], frame["made"] = frame["at"] * SECOND, frame["made"] * SECOND
    expected = reference(frame, window, covered)
    assert (np.flatnonzero(newest.inside).tolist(), np.flatnonzero(newest.earlier).tolist()) == expected
    assert newest.unreadable == sum(row[0] is None or row[1] is None for row in rows)

    wanted = newest.inside | newest.earlier
    positions, found = read(raw, wanted)
    assert positions == np.flatnonzero(wanted).tolist()
    if positions:
        assert found.keys == [convert(rows[i][0]) for i in positions]
        assert found.at.tolist() == [rows[i][1] * SECOND for i in positions]
        assert found.created.tolist() == [(rows[i][2] or 0) * SECOND for i in positions]
        assert found.columns == {"title": [rows[i][3] for i in positions]}


def test_the_last_created_and_then_the_last_row_wins_a_tie():
    rows = [("a", 5, 2, "x"), ("a", 5, 3, "newest"), ("a", 5, 3, "further down"), ("a", 4, 9, "x"), ("a", 5, None, "x")]
    _, found = read(raw := open_rows(table(rows)), raw.newest(ALL).inside)
    assert found.columns["title"] == ["further down"]
    # Without a created timestamp the last row of the newest time is left.
    _, found = read(raw := open_rows(table(rows), created=""), raw.newest(ALL).inside)
    assert (found.columns["title"], found.created.tolist()) == (["x"], [0])


def test_both_ends_of_the_window_belong_to_it():
    raw = open_rows(table([("a", 1, 1, ""), ("b", 2, 1, ""), ("c", 3, 1, ""), ("d", 4, 1, "")]))
    assert raw.newest((2 * SECOND, 3 * SECOND)).inside.tolist() == [False, True, True, False]


def test_a_row_behind_the_window_does_not_hide_the_one_inside():
    raw = open_rows(table([("a", 1, 1, ""), ("a", 5, 1, ""), ("b", 5, 1, "")]))
    newest = raw.newest((0, 3 * SECOND), [(4 * SECOND, 6 * SECOND)])
    assert (newest.inside.tolist(), newest.earlier.tolist()) == ([True, False, False], [False, False, False])


def test_an_entity_with_a_long_history_has_one_newest_row():
    rows = [("a", number % 97, 1, str(number)) for number in range(500)] + [("b", 1, 1, "")]
    raw = open_rows(table(rows))
    assert np.flatnonzero(raw.newest(ALL).inside).tolist() == [484, 500]  # 484 = 4 * 97 + 96


@pytest.mark.parametrize("entities", [1, 50, 400])
def test_more_partitions_than_allowed_are_shared(monkeypatch, entities):
    monkeypatch.setattr(rawrows, "MAX_PARTITIONS", 3)
    rows = [(f"k{number % entities}", number, 1, "") for number in range(400)]
    inside = open_rows(table(rows)).newest(ALL).inside
    assert np.flatnonzero(inside).tolist() == list(range(400 - entities, 400))


@pytest.mark.parametrize("form", ["table", "file", "folder without rows"])
def test_a_source_without_rows(tmp_path, form):
    nothing = table([])
    if form == "file":
        pq.write_table(nothing, tmp_path / "items.parquet")
        nothing = pads.dataset(tmp_path / "items.parquet")
    elif form.startswith("folder"):
        for name in ("a", "b"):
            pq.write_table(nothing, tmp_path / f"{name}.parquet")
        nothing = pads.dataset(tmp_path, format="parquet")
    raw = open_rows(nothing)
    newest = raw.newest(ALL, [ALL])
    assert (len(newest.inside), len(newest.earlier), newest.unreadable) == (0, 0, 0)
    assert list(raw.read(newest.inside)) == []


def test_a_key_may_be_a_folder_of_a_partitioned_source(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"item={name}").mkdir()
        rows = table([("-", 1, 1, f"old {name}"), ("-", 2, 1, f"new {name}")]).drop_columns("item")
        pq.write_table(rows, tmp_path / f"item={name}" / "0.parquet")
    raw = open_rows(pads.dataset(tmp_path, format="parquet", partitioning="hive"))
    _, found = read(raw, raw.newest(ALL).inside)
    assert (found.keys, found.columns["title"]) == (["a", "b"], ["new a", "new b"])


@pytest.mark.parametrize("unit", ["date32", "date64"])
def test_dates_are_midnight_utc(unit):
    rows = table([("a", 0, 0, ""), ("b", 86_400, 0, "")], at=getattr(pa, unit)())
    _, found = read(raw := open_rows(rows), raw.newest(ALL).inside)
    assert found.at.tolist() == [0, 86_400 * SECOND]


def test_a_timestamp_that_is_no_whole_microsecond_is_cut():
    rows = table([("a", 1, 1, "")])
    rows = rows.set_column(1, "at", pa.array([1_000_001_999], pa.timestamp("ns")))
    _, found = read(raw := open_rows(rows), raw.newest((0, 1_000_001)).inside)
    assert found.at.tolist() == [1_000_001]


def test_columns_have_the_names_that_feast_gives_them():
    rows = table([("a", 1, 2, "red")]).rename_columns(["sku", "when", "since", "label"])
    mapping = {"sku": "item", "when": "at", "since": "made", "label": "title", "other": "else"}
    raw = open_rows(rows, field_mapping=mapping)
    _, found = read(raw, raw.newest(ALL).inside)
    assert (found.keys, found.columns) == (["a"], {"title": ["red"]})
    assert (found.at.tolist(), found.created.tolist()) == ([SECOND], [2 * SECOND])


def test_a_missing_column_is_named():
    rows = table([("a", 1, 1, "")])
    with pytest.raises(MissingColumnError, match=r"'made', 'title'.*have only 'at', 'item'"):
        open_rows(rows.drop_columns(["title", "made"]))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("at", pa.array(["2026-01-01"]), r"expected a timestamp in column 'at', got string\. Convert"),
        ("made", pa.array([1.0]), r"expected a timestamp in column 'made', got double"),
        ("item", pa.array([1.0]), r"expected text or integers in key column 'item', got double\. Convert"),
        (
            "item",
            pa.array([1.5]).dictionary_encode(),
            r"expected text or integers in key column 'item', got double",
        ),
    ],
)
def test_a_column_of_another_type_is_refused(column, values, message):
    rows = table([("a", 1, 1, "")])
    rows = rows.set_column(rows.column_names.index(column), column, values)
    with pytest.raises(ColumnTypeError, match=message):
        open_rows(rows)


def test_a_digest_follows_the_columns_that_the_feature_reads_and_nothing_else():
    rows = [("a", 1, 1, "red"), ("b", 2, 2, "red"), ("c", 1, 1, None), ("d", 1, 1, ""), ("e", 1, 1, "None")]
    _, found = read(raw := open_rows(table(rows)), raw.newest(ALL).inside)
    first, same, *others = found.digests.tolist()
    assert first == same
    assert len({first, *others}) == 4
    _, again = read(raw := open_rows(table(rows[::-1])), raw.newest(ALL).inside)
    assert again.digests.tolist() == found.digests.tolist()[::-1]


def rows_of(count):
    raw = open_rows(table([(f"k{i}", i, i + 1, f"t{i}") for i in range(count)]))
    return read(raw, np.ones(count, dtype=bool))[1]


def content(rows):
    return list(
        zip(
            rows.keys,
            rows.at.tolist(),
            rows.created.tolist(),
            rows.columns["title"],
            rows.digests.tolist(),
            strict=True,
        )
    )


@given(st.lists(st.booleans(), min_size=1, max_size=20), st.data())
def test_rows_are_taken_cut_and_joined_as_lists_are(wanted, data):
    rows = rows_of(len(wanted))
    whole = content(rows)
    taken = rows.take(np.array(wanted))
    assert content(taken) == [row for row, want in zip(whole, wanted, strict=True) if want]
    start, stop = data.draw(st.integers(0, 25)), data.draw(st.integers(0, 25))
    cut = rows.slice(start, stop)
    assert (len(cut), content(cut)) == (len(whole[start:stop]), whole[start:stop])
    assert content(concatenate([rows, cut, taken])) == [*whole, *whole[start:stop], *content(taken)]


@given(st.datetimes(datetime.datetime(1677, 1, 1), datetime.datetime(2262, 1, 1)))
def test_microseconds_and_datetimes_are_exact(moment):
    aware = moment.replace(tzinfo=datetime.UTC)
    assert to_datetime(to_microseconds(moment)) == aware
    assert to_microseconds(moment) == to_microseconds(aware.astimezone(datetime.timezone(datetime.timedelta(hours=9))))


def test_microseconds_begin_in_1970():
    assert (to_microseconds(EPOCH), to_microseconds(datetime.datetime(1970, 1, 1, 0, 0, 1))) == (0, SECOND)


def test_nothing_is_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(rawrows.tempfile, "tempdir", str(tmp_path))
    open_rows(table([(f"k{i}", i, 1, "") for i in range(50)])).newest(ALL)
    assert list(Path(tmp_path).iterdir()) == []
