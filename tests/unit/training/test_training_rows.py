"""Reading rows, near duplicates, and the split that keeps them together."""

import gzip
import json

import numpy as np
import pytest

from llmrec_plugin.errors import InputError
from llmrec_plugin.training.rows import (
    LARGE_GROUP,
    first_sentence,
    group_rows,
    limited,
    read_rows,
    split_rows,
    stem,
    texts_of,
)


def test_a_folder_is_read_file_by_file_compressed_or_not(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"name": "b"}\n\n')
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"name": "a"}\n{"name": "c"}\n'))
    (tmp_path / "ignored.txt").write_text("no JSON")
    assert [row["name"] for row in read_rows(tmp_path)] == ["a", "c", "b"]
    assert [row["name"] for row in read_rows(tmp_path / "b.jsonl")] == ["b"]


@pytest.mark.parametrize("content", ["", "[1]\n", "no JSON\n"])
def test_what_holds_no_objects_is_refused(tmp_path, content):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(InputError, match="one JSON object a line"):
        read_rows(tmp_path / "rows.jsonl")


def test_texts_lose_runs_of_white_space_and_a_wrong_column_is_named():
    assert texts_of([{"text": " a\n b "}, {"text": None}, {}], "text") == ["a b", "", ""]
    with pytest.raises(InputError, match="'body'"):
        texts_of([{"text": "a"}], "body")


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        (("libfoo-dev", "libfoo2", "foo-doc", "foo", "python3-foo", "foo-common-dbg", "libfoo-1.2-0"), "foo"),
        (("golang-github-x-y-dev", "golang-github-x-y"), "golang-github-x-y"),
    ],
)
def test_packages_of_one_origin_share_a_stem(names, shared):
    assert {stem(name) for name in names} == {shared}


def test_different_packages_have_different_stems():
    names = ["gcc", "gnuplot", "ruby-foo", "r-cran-foo", "doc-base", "2048"]
    assert len({stem(name) for name in names}) == len(names)


def test_near_duplicates_of_near_duplicates_are_one_group():
    sentence = "This library reads and writes files of a rare kind."
    texts = [sentence, f"{sentence} These are the headers.", "Something else entirely.", "Short. One.", "Short. Two."]
    groups = group_rows(texts, ["libfoo-dev", "bar", "libbar3", "a", "b"])
    assert groups[0] == groups[1] == groups[2]  # by the sentence, then by the stem
    assert len({groups[0], groups[3], groups[4]}) == 3  # a short first sentence says nothing
    assert first_sentence("Version 1.2 is here. Really.") == "Version 1.2 is here."


def test_no_group_is_in_two_parts_and_a_large_one_is_only_trained_on():
    groups = np.repeat(np.arange(200), 5)
    groups[-LARGE_GROUP - 1 :] = 0
    split = split_rows(groups, validation=0.1, test=0.2, seed=3)
    parts = [set(groups[rows].tolist()) for rows in (split.train, split.validation, split.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert 0 in parts[0]
    assert sum(split.sizes().values()) == len(groups)
    assert split.left_out.size == 0
    again = split_rows(groups, validation=0.1, test=0.2, seed=3)
    assert all(
        np.array_equal(left, right) for left, right in zip(vars(split).values(), vars(again).values(), strict=True)
    )


def test_rows_held_out_are_the_test_and_their_near_duplicates_are_nowhere():
    groups = np.repeat(np.arange(100), 2)
    held_out = np.zeros(200, dtype=bool)
    held_out[:20:2] = True
    split = split_rows(groups, held_out=held_out)
    assert split.test.tolist() == list(range(0, 20, 2))
    assert split.left_out.tolist() == list(range(1, 20, 2))
    assert not {*split.train, *split.validation} & set(range(20))


def test_a_smaller_split_takes_one_of_each_group_first():
    groups = np.repeat(np.arange(100), np.arange(100) % 5 + 1)
    split = split_rows(groups, seed=1)
    trained = len(set(groups[split.train].tolist()))
    some = limited(split, groups, train=trained, test=7)
    assert len(set(groups[some.train].tolist())) == len(some.train) == trained
    assert len(some.validation) == min(len(split.validation), trained // 10)
    assert len(some.test) == 7
    assert set(some.train) <= set(split.train)
    assert set(some.test) <= set(split.test)
    whole = limited(split, groups, train=None, test=None)
    assert whole.sizes() == split.sizes()


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match="give more rows"):
        split_rows(np.zeros(5, dtype=np.int64))


def test_rows_may_lie_beside_others_and_keep_their_types(tmp_path):
    rows = [{"name": "a", "tags": ["x::y"], "size": 3}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_rows(tmp_path) == rows
