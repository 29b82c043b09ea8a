"""Training tables follow their raw files part by part, are joined as a plain loop would, and do not pile up."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import Repo, StepError

pytestmark = pytest.mark.feast

STORED = "item_text_embedding:item_text_embedding"
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def _rows(*rows: tuple[str, str | None, int]) -> list[dict[str, Any]]:
    return [{"item": item, "title": title, "at": START + datetime.timedelta(days=day)} for item, title, day in rows]


def _write_part(repo: Repo, name: str, *rows: tuple[str, str | None, int]) -> None:
    """A file of the raw folder."""
    repo.write_items(_rows(*rows))
    folder = repo.folder / "data" / "parts"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(repo.folder / "data" / "items.parquet", folder / name)


@pytest.fixture
def repo(new_repo: Callable[..., Repo]) -> Repo:
    """A repo whose raw source is a folder of two files."""
    repo = new_repo()
    repo.export()
    repo.declare()
    path = repo.folder / "features.py"
    path.write_text(path.read_text().replace("data/items.parquet", "data/parts"))
    _write_part(repo, "a.parquet", ("a", "red web server", 0), ("b", "green font", 0))
    _write_part(repo, "b.parquet", ("a", "fast python library", 1))
    repo.feast("apply")
    return repo


def _read(repo: Repo, *labels: tuple[str, int], **options: Any) -> list[Any]:
    rows = [
        {"item": item, "event_timestamp": (START + datetime.timedelta(days=day)).isoformat()} for item, day in labels
    ]
    return [row["item_text_embedding"] for row in repo.historical([STORED], rows, **options)]


def _expected(repo: Repo, *titles: str) -> list[Any]:
    return [pytest.approx(vector, abs=1e-6) for vector in repo.encode([f"{title}. " for title in titles])]


@pytest.mark.parametrize("store", ["dask", "duckdb"])
def test_only_the_files_that_changed_are_read_again(repo: Repo, store: str) -> None:
    if store == "duckdb":
        pytest.importorskip("duckdb")
        pytest.importorskip("ibis")
    path = repo.folder / "feature_store.yaml"
    path.write_text(path.read_text() + f"offline_store: {{type: {store}}}\n")
    labels = [("a", 0), ("b", 0), ("a", 5)]
    assert _read(repo, *labels) == _expected(repo, "red web server", "green font", "fast python library")
    assert [run.rows for run in repo.runs()] == [2, 1]

    _write_part(repo, "b.parquet", ("a", "fast python library", 1), ("a", "small mail client", 2))
    _write_part(repo, "c.parquet", ("c", "yellow game", 3))
    answer = _read(repo, *labels, ("c", 5))
    assert answer == _expected(repo, "red web server", "green font", "small mail client", "yellow game")
    assert [run.rows for run in repo.runs()] == [2, 1, 2, 1]

    (repo.folder / "data" / "parts" / "b.parquet").unlink()
    assert _read(repo, ("a", 5)) == _expected(repo, "red web server")
    assert len(repo.runs()) == 4  # the parts of both other files were right


def test_folders_that_name_a_column_are_read(repo: Repo) -> None:
    path = repo.folder / "features.py"
    path.write_text(path.read_text().replace("{title}. {note}", "{title} {color}").replace(
        'Field(name="note", dtype=String),', 'Field(name="note", dtype=String), Field(name="color", dtype=String),'
    ))  # fmt: skip
    for name in ("a.parquet", "b.parquet"):
        (repo.folder / "data" / "parts" / name).unlink()
    _write_part(repo, "color=red/a.parquet", ("a", "web", 0))
    _write_part(repo, "color=green/a.parquet", ("b", "font", 0))
    repo.feast("apply")
    expected = [pytest.approx(vector, abs=1e-6) for vector in repo.encode(["web red", "font green"])]
    assert _read(repo, ("a", 1), ("b", 1)) == expected


def test_a_superseded_state_is_deleted_when_its_readers_have_ended(repo: Repo) -> None:
    tables = repo.root / "home" / "cache" / "training"
    _read(repo, ("a", 0))
    [first] = tables.glob("*/*/")
    _write_part(repo, "b.parquet", ("a", "small mail client", 2))
    _read(repo, ("a", 0))
    [second] = tables.glob("*/*/")
    assert second != first
    assert len(list(second.glob("*.parquet"))) == 2


def test_a_raw_file_without_the_column_is_named(repo: Repo) -> None:
    for name in ("a.parquet", "b.parquet"):
        path = repo.folder / "data" / "parts" / name
        pq.write_table(pq.read_table(path).drop_columns(["note"]), path)
    with pytest.raises(StepError, match="reads column\\(s\\) 'note'"):
        _read(repo, ("a", 0))


def test_a_file_without_rows_is_a_part_without_rows(repo: Repo) -> None:
    _write_part(repo, "b.parquet")
    assert _read(repo, ("a", 5), ("b", 5)) == _expected(repo, "red web server", "green font")


@pytest.mark.parametrize("ttl_days", [36_500, 1])
def test_vectors_are_joined_as_a_plain_loop_would(new_repo: Callable[..., Repo], ttl_days: int) -> None:
    repo = new_repo()
    repo.export()
    repo.declare(ttl_days=ttl_days)
    versions = [("a", day) for day in (0, 1, 3)] + [("b", 1), ("b", 1), ("c", 2), ("c", 2), ("c", 7)]
    rows = _rows(*((item, f"n{number} {'red ' * number}web", day) for number, (item, day) in enumerate(versions)))
    rows[3]["created"] = rows[3]["at"] + datetime.timedelta(hours=2)  # created after the row that follows it
    rows[7]["title"] = None
    repo.write_items(rows)
    repo.feast("apply")
    raw = str(repo.folder / "data" / "items.parquet")
    vectors = repo.encode([f"{row['title'] or ''}. " for row in rows])
    answer = repo.call("training_steps:compare_join", view="item_text_embedding", raw=raw, seed=5, labels=300)
    # Each of two rows of one moment hides the other for good: 3 was created last, 6 comes last.
    assert {position for _, position in answer} == {None, 0, 1, 2, 3, 6, 7}
    for vector, position in answer:
        empty = position is None or rows[position]["title"] is None
        assert vector == (None if empty else pytest.approx(vectors[position], abs=1e-6))


def test_dask_names_vectors_without_pickling_them(repo: Repo) -> None:
    """When dask's own count is 0, `llmrec_plugin.feast.tokens` is needed no more."""
    answer = repo.call("training_steps:count_pickled", rows=10)
    assert answer["pickled"]["dask's"] > 0
    assert answer["pickled"]["ours"] == 0
    assert answer["differs"] == {"same": False, "value": True, "null": True, "length": True}
    assert len(answer["other"]) == 32


def test_a_raw_folder_of_two_schemas_keeps_the_first_files_columns(repo: Repo) -> None:
    path = repo.folder / "data" / "parts" / "b.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("extra", pa.array([1] * len(table))), path)
    assert _read(repo, ("a", 5)) == _expected(repo, "fast python library")
