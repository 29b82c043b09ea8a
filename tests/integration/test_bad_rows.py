"""Rows that cannot be read, or hold anything at all, give null or a vector and leave the other rows alone."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import Repo

pytestmark = pytest.mark.feast

WHOLE = ("2025-01-01", "2026-03-01")
STORED = "item_text_embedding:item_text_embedding"
GOOD = {f"good{number}": (title, None) for number, title in enumerate(["red web server", "green font", "fast python"])}
# item -> title, note. The note is binary in the file, though the repo declares it as text.
WITHOUT_TEXT: dict[str, tuple[str | None, bytes | None]] = {
    "null": (None, None),
    "empty": ("", None),
    "blank": (" \n\t\u00a0", None),
    "only control characters": ("\x00\x01\x7f", None),
}
UNREADABLE = {
    "bytes": ("red web", b"\xff\xfe"),
    "bytes of text": ("red web", b"plain"),
    "empty bytes": ("red web", b""),
}
STRANGE = {
    "very long": ("red web " * 12_500, None),
    "one long word": ("x" * 100_000, None),
    "emoji": ("red 🧑‍💻🏳️‍🌈 web", None),
    "control characters": ("red\x00\x1b[31m web\r\n", None),
    "right to left": ("\u202eשרת אדום", None),
    "combining": ("e\u0301" * 500, None),
    "template": ("{note} {{}} {0.__class__} %s", None),
    "nan": ("nan", None),
}


def _write(repo: Repo, rows: dict[str, tuple[str | None, bytes | None]]) -> None:
    at = [datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)] * len(rows)
    prices = [float("nan") if number % 2 else None for number in range(len(rows))]
    table = pa.table(
        {
            "item": pa.array(rows, pa.string()),
            "title": pa.array([title for title, _ in rows.values()], pa.string()),
            "note": pa.array([note for _, note in rows.values()], pa.binary()),
            "price": pa.array(prices, pa.float64()),
            "event_timestamp": pa.array(at, pa.timestamp("us", "UTC")),
            "created": pa.array(at, pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, repo.folder / "data" / "items.parquet")


def _repo(new_repo: Callable[..., Repo], rows: dict[str, Any]) -> Repo:
    repo = new_repo()
    repo.export()
    repo.declare(
        template="{title} {note} {price}",
        fields='Field(name="price", dtype=Float64)',
    )
    _write(repo, rows)
    repo.feast("apply")
    return repo


@pytest.fixture(scope="module")
def clean(new_repo: Callable[..., Repo]) -> list[Any]:
    """The vectors of the good rows in a repo that has no others."""
    repo = _repo(new_repo, GOOD)
    repo.feast("materialize", *WHOLE, "--views", "item_text_embedding")
    vectors = repo.vectors(list(GOOD))
    assert None not in vectors
    return vectors


@pytest.fixture(scope="module")
def mixed(new_repo: Callable[..., Repo]) -> Repo:
    """A repo in which good rows stand between bad ones."""
    kinds = [iter(kind.items()) for kind in (WITHOUT_TEXT, GOOD, UNREADABLE, STRANGE)]
    rows: dict[str, Any] = {}
    while kinds:
        for kind in list(kinds):
            entry = next(kind, None)
            if entry is None:
                kinds.remove(kind)
            else:
                rows[entry[0]] = entry[1]
    return _repo(new_repo, rows)


def _check(vectors: dict[str, Any], clean: list[Any]) -> None:
    assert [vectors[item] for item in GOOD] == clean
    assert {item for item, vector in vectors.items() if vector is None} == {*WITHOUT_TEXT, *UNREADABLE}


@pytest.mark.parametrize("mode", ["batch", "historical"])
def test_bad_rows_are_null_and_their_neighbours_are_as_without_them(mixed: Repo, clean: list[Any], mode: str) -> None:
    items = [*WITHOUT_TEXT, *GOOD, *UNREADABLE, *STRANGE]
    if mode == "batch":
        printed = mixed.feast("materialize", *WHOLE, "--views", "item_text_embedding")
        vectors = dict(zip(items, mixed.vectors(items), strict=True))
    else:
        rows = [{"item": item, "event_timestamp": "2026-02-01"} for item in items]
        answer = mixed.historical([STORED], rows)
        printed = None
        vectors = {row["item"]: row["item_text_embedding"] for row in answer}
    _check(vectors, clean)
    run = next(run for run in mixed.runs() if run.mode == mode)
    assert (run.rows, run.empty, run.invalid) == (len(items), len(WITHOUT_TEXT), len(UNREADABLE))
    if printed is not None:
        # One warning that counts them and quotes the first.
        assert f"{len(UNREADABLE)} of {len(items)} rows could not be read and are null" in printed
        assert printed.count("could not be read") == 1
        assert "got bytes" in printed


def test_the_same_rows_on_demand(mixed: Repo, clean: list[Any]) -> None:
    feature = "item_text_embedding_on_demand"
    kinds = {**WITHOUT_TEXT, **GOOD, **STRANGE}
    rows = [{"title": title, "note": None, "price": None} for title, _ in kinds.values()]
    vectors = dict(zip(kinds, mixed.online([f"{feature}:{feature}"], rows)[feature], strict=True))
    assert [vectors[item] for item in GOOD] == pytest.approx([pytest.approx(vector, abs=1e-6) for vector in clean])
    assert {item for item, vector in vectors.items() if vector is None} == {*WITHOUT_TEXT}
