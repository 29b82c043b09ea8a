"""What was computed from an item's text can be found and erased by its key, to the last byte."""

from __future__ import annotations

import datetime
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.host import Repo, StepError

pytestmark = pytest.mark.feast

AT = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
TITLES = {"a": "red web server", "b": "green font", "c": "fast python library"}
STORED = "item_text_embedding:item_text_embedding"
EXTRA = """
item_title_embedding = EmbeddingFeature(name="item_title_embedding", entity="item", text="{title}", **model)
"""


def _write(repo: Repo, titles: dict[str, str]) -> None:
    repo.write_items([{"item": item, "title": title, "at": AT} for item, title in titles.items()])


def _materialized(repo: Repo, **declared: Any) -> Repo:
    with (repo.folder / "feature_store.yaml").open("a") as file:
        file.write("batch_engine: {type: llmrec_plugin.feast.engine.LLMComputeEngine}\n")
    repo.export()
    repo.declare(**declared)
    _write(repo, TITLES)
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01T00:00:00", "2026-02-01T00:00:00")
    return repo


def _train(repo: Repo) -> list[Any]:
    rows = [{"item": item, "event_timestamp": "2026-02-01T00:00:00+00:00"} for item in TITLES]
    return [row["item_text_embedding"] for row in repo.historical([STORED], rows)]


def _erase(repo: Repo, *arguments: str, fails: bool = False) -> str:
    return repo.call("steps:command_line", arguments=["erase", *arguments], fails=fails)


def _erase_json(repo: Repo, *arguments: str) -> list[dict[str, Any]]:
    output = _erase(repo, *arguments, "--json")
    return json.loads(output[output.index("[") :])


def _files_with(folder: Path, vector: list[float]) -> list[Path]:
    """Files that hold the bytes of a vector, wherever in them."""
    needle = struct.pack(f"<{len(vector)}f", *vector)
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_nothing_of_an_erased_key_is_left_in_any_file(new_repo: Callable[..., Repo]) -> None:
    settings = {"type": "llmrec_plugin.feast.sqlite.LLMRecSqliteOnlineStore", "path": "data/online.db"}
    repo = _materialized(new_repo(online_store=settings), extra=EXTRA)
    _train(repo)
    gone, kept = repo.vectors(["a", "b"])
    assert gone
    assert kept
    places = {path.name.removesuffix("-wal") for path in _files_with(repo.root, gone)}
    assert places >= {"values.sqlite", "online.db", "part-00000.parquet"}

    counted = _erase_json(repo, "item", "a", "--dry-run")
    assert [(item["view"], item["source"], item["online"], item["recorded"]) for item in counted] == [
        ("item_text_embedding", 1, 1, 1),
        ("item_title_embedding", 1, 1, 1),
    ]
    assert counted[0]["cached"] == 1
    assert counted[0]["training"] == 1
    assert _files_with(repo.root, gone)

    assert _erase_json(repo, "item", "a") == counted
    assert _files_with(repo.root, gone) == []
    assert repo.vectors(["a", "b"]) == [None, kept]
    assert _erase_json(repo, "item", "a")[0] == counted[0] | {"online": 0, "recorded": 0, "training": 0, "cached": 0}

    del (titles := dict(TITLES))["a"]
    _write(repo, titles)
    repo.feast("materialize", "2025-01-01T00:00:00", "2026-02-01T00:00:00")
    assert repo.vectors(["a", "b"]) == [None, kept]
    assert [vector is None for vector in _train(repo)] == [True, False, False]
    assert _files_with(repo.root, gone) == []


def test_a_text_that_two_items_share_is_computed_again_for_the_other(new_repo: Callable[..., Repo]) -> None:
    repo = new_repo()
    _materialized(repo)
    _write(repo, TITLES | {"d": TITLES["a"]})
    repo.feast("materialize", "2025-01-01T00:00:00", "2026-02-01T00:00:00")
    before = repo.vectors(["a", "d"])
    assert before[0] == before[1]
    _erase(repo, "item", "a")
    assert repo.vectors(["a", "d"]) == [None, before[0]]
    _write(repo, {"d": TITLES["a"]})
    repo.feast("materialize", "2025-01-01T00:00:00", "2026-02-01T00:00:00")
    assert repo.vectors(["d"]) == [pytest.approx(before[0], abs=1e-6)]  # alone now, not in a batch


@pytest.mark.parametrize("store", ["redis", "our redis", "postgres", "our postgres"])
def test_the_values_leave_other_stores_too(new_repo: Callable[..., Repo], online_store: Any, store: str) -> None:
    repo = _materialized(new_repo("erased", online_store=online_store(store)))
    kept = repo.vectors(["b"])
    assert _erase_json(repo, "item", "a")[0]["online"] == 1
    assert repo.vectors(["a", "b"]) == [None, *kept]
    assert _erase_json(repo, "item", "a")[0]["online"] == 0


def test_rows_that_the_source_has_lost_leave_the_cache_only_with_all_of_the_feature(
    new_repo: Callable[..., Repo],
) -> None:
    repo = _materialized(new_repo())
    [gone] = repo.vectors(["a"])
    assert gone
    del (titles := dict(TITLES))["a"]
    _write(repo, titles)
    assert "see --all-cached" in _erase(repo, "item", "a")
    assert _files_with(repo.root / "home", gone)
    _erase(repo, "item", "a", "--all-cached")
    assert _files_with(repo.root / "home", gone) == []


def test_a_training_table_that_somebody_reads_is_named(new_repo: Callable[..., Repo]) -> None:
    repo = _materialized(new_repo())
    message = repo.call("erasure_steps:erase_while_reading", feature=STORED, items=list(TITLES), erased="a")
    assert "1 state(s) of training tables of 'item_text_embedding'" in message
    assert "Stop the processes" in message
    assert _erase_json(repo, "item", "a")[0]["training"] == 1
    assert _erase_json(repo, "item", "a")[0]["training"] == 0


def test_wrong_names_are_named(new_repo: Callable[..., Repo]) -> None:
    repo = _materialized(new_repo())
    assert "No entity of LLM batch views is named 'items'. Did you mean 'item'?" in _erase(
        repo, "items", "a", fails=True
    )
    with pytest.raises(StepError, match="Give KEYs"):
        _erase(repo, "item")
