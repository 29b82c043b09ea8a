"""Texts to calibrate and measure on."""

import gzip
import json

import pytest

from llmrec_plugin.errors import InputError
from llmrec_plugin.export.parity import corpus
from llmrec_plugin.export.texts import MAX_TEXTS, builtin_texts, read_texts

LINES = [f"text {number}" for number in range(120)]


def test_the_built_in_texts_never_measure_what_calibrates():
    texts = builtin_texts()
    assert len(texts.calibration) == len(texts.measurement) == 400
    assert len({*texts.calibration, *texts.measurement}) == 800
    assert not set(corpus()) & set(texts.measurement)
    assert "built-in" in texts.origin


def test_lines_alternate_and_empty_ones_and_repetitions_are_left_out(tmp_path):
    path = tmp_path / "titles.txt"
    path.write_text("\n".join([*LINES, "", "  ", *LINES]), encoding="utf-8")
    texts = read_texts(path)
    assert texts.calibration == tuple(LINES[::2])
    assert texts.measurement == tuple(LINES[1::2])
    assert texts.origin == "titles.txt"


@pytest.mark.parametrize("field", ["text", "description"])
def test_objects_may_be_compressed_and_hold_either_field(tmp_path, field):
    path = tmp_path / "rows.jsonl.gz"
    rows = [json.dumps({field: line, "name": "x"}) for line in LINES] + [json.dumps({field: None})]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    assert read_texts(path).measurement == tuple(LINES[1::2])


def test_a_long_file_is_thinned_evenly(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("\n".join(f"text {number}" for number in range(MAX_TEXTS * 3)), encoding="utf-8")
    texts = read_texts(path)
    assert len(texts.calibration) + len(texts.measurement) == MAX_TEXTS
    assert texts.measurement[-1] == f"text {MAX_TEXTS * 3 - 3}"


def test_the_hash_depends_on_every_text_and_its_use(tmp_path):
    hashes = set()
    for number, lines in enumerate([LINES, LINES[::-1], [*LINES[:-1], "another"]]):
        path = tmp_path / f"{number}.txt"
        path.write_text("\n".join(lines), encoding="utf-8")
        hashes.add(read_texts(path).sha256)
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("few.txt", b"one\ntwo\n", r"holds 2 different texts, expected at least 100"),
        ("bad.jsonl", b"not json\n", r"cannot be read as texts: .*one text a line"),
        ("other.jsonl", b'{"title": "x"}\n', r"cannot be read as texts: .*description"),
        ("number.jsonl", b'{"text": 3}\n', r"a text must be a string, got 3"),
        ("latin.txt", b"caf\xe9\n", r"Expected UTF-8"),
        ("torn.txt.gz", gzip.compress(b"x\n" * 200, mtime=0)[:20], r"cannot be read as texts"),
    ],
)
def test_files_that_hold_no_texts_are_refused_with_what_is_expected(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(path)
