"""Rows as texts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import embedding, history

from llmrec_plugin.errors import InputError, MissingColumnError
from llmrec_plugin.pipeline.assemble import as_list, assemble, clean, to_text

MISSING = [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT]
UNREADABLE = [b"bytes", {"a": 1}, {1, 2}, object(), pd.Timestamp("2024-01-01"), np.zeros((2, 2)), 1j]


def texts(values, text="{title}", **changes):
    return assemble(embedding(text=text, **changes), {"title": values}).rows


# --- cells


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_a_missing_value_is_no_text(value):
    assert to_text(value) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        (np.str_("text"), "text"),
        (7, "7"),
        (7.0, "7"),
        (np.int64(7), "7"),
        (np.float32(7), "7"),
        (-0.0, "0"),
        (2**53 + 1, "9007199254740993"),
        (1e15, "1000000000000000"),
        (0.1, "0.1"),
        (19.99, "19.99"),
        (1e-7, "1e-07"),
        (float("inf"), "inf"),
        (True, "true"),
        (False, "false"),
        (np.True_, "true"),
        (np.False_, "false"),
        ([], ""),
        (["a", None, "", "b"], "a, b"),
        (("a", 1, 2.0, True), "a, 1, 2, true"),
        (np.array(["a", "b"]), "a, b"),
        (np.array([1.0, 2.5], dtype=np.float32), "1, 2.5"),
        ([["a", "b"], "c"], "a, b, c"),
    ],
    ids=repr,
)
def test_a_cell_becomes_text(value, expected):
    assert to_text(value) == expected
    assert type(clean(to_text(value), 100)) is str


@pytest.mark.parametrize("value", UNREADABLE, ids=lambda value: type(value).__name__)
def test_a_cell_that_is_not_text_is_refused_with_its_type(value):
    with pytest.raises(InputError, match=rf"(?s)expected text.*got {type(value).__name__}.*convert the column"):
        to_text(value)


@given(st.integers(-(10**9), 10**9).map(lambda cents: cents / 100))
def test_prices_read_alike_from_a_float64_and_a_float32_column(value):
    if abs(value) < 10**4:  # float32 holds any decimal number of 6 digits
        assert to_text(np.float32(value)) == to_text(value)


@given(st.integers(-(2**53), 2**53))
def test_an_integer_reads_alike_after_pandas_made_it_a_float(value):
    assert to_text(float(value)) == to_text(np.int64(value)) == to_text(value)


def test_only_flat_sequences_are_lists():
    assert as_list([1]) == as_list((1,)) == as_list(np.array([1])) == [1]
    assert (
        as_list("text") is as_list(np.zeros((1, 1))) is as_list(np.array(1)) is as_list({"a"}) is as_list(None) is None
    )


# --- cleaning


def test_control_characters_become_spaces_but_tabs_and_newlines_stay():
    assert texts(["a\x00b\x1fc\x7fd\x85e\r\nf\tg"]) == [("a b c d e \nf\tg",)]


def test_lone_surrogates_become_the_replacement_character():
    assert texts(["a\ud800b\udfff"]) == [("a\ufffdb\ufffd",)]


@pytest.mark.parametrize("text", ["👩‍👩‍👧 🏳️‍🌈", "שלום עולם", "‏مرحبا", "日本語", "e\u0301", "\U0010ffff"])
def test_texts_of_any_script_stay_as_they_are(text):
    assert texts([text]) == [(text,)]


def test_a_very_long_text_is_cut():
    assert texts(["ab" * 50_000], max_chars=5) == [("ababa",)]
    assert texts(["ab" * 50_000], text="1234{title}", max_chars=5) == [("1234a",)]


@given(st.text(st.characters(codec=None), max_size=40), st.integers(1, 50))
def test_a_cleaned_text_is_short_stripped_printable_utf8_and_clean(text, max_chars):
    cleaned = clean(text, max_chars)
    assert len(cleaned) <= max_chars
    assert cleaned == cleaned.strip()
    assert not any(ord(char) < 32 and char not in "\t\n" for char in cleaned)
    cleaned.encode()
    assert clean(cleaned, max_chars) == cleaned


# --- templates


def test_a_template_is_filled_with_its_columns():
    feature = embedding(text="{title}. {tags} ({{id}} {title})")
    rows = assemble(feature, {"tags": [["x", "y"]], "title": [" red "], "other": [1, 2, 3]}).rows
    assert rows == [("red. x, y ({id} red)",)]


def test_user_text_is_never_read_as_a_template():
    assert texts(["{title} {0} {{}} %s"]) == [("{title} {0} {{}} %s",)]


def test_a_missing_column_value_renders_as_nothing():
    feature = embedding(text="{title}. {body}")
    rows = assemble(feature, {"title": ["red", None, float("nan")], "body": [None, "text", pd.NA]}).rows
    assert rows == [("red.",), (". text",), ()]


@pytest.mark.parametrize("value", [*MISSING, "", "  \n ", "\x00", []], ids=repr)
def test_a_row_without_text_is_empty_whatever_the_template_adds(value):
    assembled = assemble(embedding(text="Title: {title}"), {"title": [value, "red"]})
    assert assembled.rows == [(), ("Title: red",)]
    assert assembled.invalid == {}


@pytest.mark.parametrize("value", UNREADABLE, ids=lambda value: type(value).__name__)
def test_an_unreadable_row_is_reported_and_its_neighbours_are_not_touched(value):
    assembled = assemble(embedding(), {"title": ["red", value, "blue"]})
    assert assembled.rows == [("red",), (), ("blue",)]
    assert list(assembled.invalid) == [1]
    assert type(value).__name__ in assembled.invalid[1]


def test_columns_of_any_kind_are_read():
    expected = [("1",), ("2",)]
    for column in ([1, 2], (1.0, 2.0), np.array([1, 2]), pd.Series([1, 2], index=[5, 6]), pd.Series(["1", "2"])):
        assert texts(column) == expected


def test_no_rows_give_no_texts():
    assert assemble(embedding(), {"title": []}).rows == []


def test_a_missing_column_is_an_error_that_names_it():
    with pytest.raises(
        MissingColumnError, match=r"'item_title_embedding' reads column\(s\) 'body'.*only 'id', 'title'"
    ):
        assemble(embedding(text="{title} {body}"), {"title": ["a"], "id": [1]})


def test_columns_of_different_lengths_are_an_error():
    with pytest.raises(InputError, match=r"one length, got \{'title': 2, 'body': 1\}"):
        assemble(embedding(text="{title} {body}"), {"title": ["a", "b"], "body": ["c"]})


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.lists(st.text(max_size=5), max_size=3),
    st.binary(max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8),
    st.sampled_from([embedding(text="{a}-{b}"), history(events="a")]),
)
def test_the_texts_of_a_row_do_not_depend_on_other_rows(rows, feature):
    together = assemble(feature, {"a": [a for a, _ in rows], "b": [b for _, b in rows]})
    for number, (a, b) in enumerate(rows):
        alone = assemble(feature, {"a": [a], "b": [b]})
        assert together.rows[number] == alone.rows[0]
        assert together.invalid.get(number) == alone.invalid.get(0)


# --- histories


def events(values, **changes):
    return assemble(history(**changes), {"events": [values]}).rows[0]


def test_a_history_gives_the_newest_events_first():
    assert events(["new", "mid", "old", "oldest"]) == ("new", "mid", "old")
    assert events(["oldest", "old", "mid", "new"], order="oldest_first") == ("new", "mid", "old")


def test_events_without_text_do_not_count_among_the_last():
    assert events([None, "new", float("nan"), " ", "old", "older"], last_n=2) == ("new", "old")


def test_concat_joins_the_newest_events_and_cuts_the_oldest():
    assert events(["new", "mid", "old"], combine="concat", last_n=2, separator=" | ") == ("new | mid",)
    assert events(["old", "new"], combine="concat", order="oldest_first", max_chars=5) == ("new\no",)


@pytest.mark.parametrize("values", [["a", "b"], ("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], dtype=object)])
def test_events_may_come_in_any_list(values):
    assert events(values) == ("a", "b")


@pytest.mark.parametrize("combine", ["mean", "concat"])
@pytest.mark.parametrize("values", [None, float("nan"), pd.NA, [], [None, ""], np.array([])], ids=repr)
def test_a_history_without_events_is_empty(values, combine):
    assembled = assemble(history(combine=combine), {"events": [values]})
    assert (assembled.rows, assembled.invalid) == ([()], {})


@pytest.mark.parametrize("values", ["one text", "", 3, True, {"a": 1}, ["a", b"b"]], ids=repr)
def test_a_history_that_is_no_list_of_texts_is_invalid(values):
    assembled = assemble(history(), {"events": [["a"], values, ["b"]]})
    assert assembled.rows == [("a",), (), ("b",)]
    assert list(assembled.invalid) == [1]
    assert "expected" in assembled.invalid[1]
