"""Training reads: each label gets the vector of the text that was valid then, and never of a later one."""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.host import Repo

pytestmark = pytest.mark.feast

STORED = "item_text_embedding:item_text_embedding"
SCORE = "query_item_similarity:query_item_similarity"
TITLE = "item_text:title"


def _row(item: str, title: str | None, day: str, created: str | None = None) -> dict[str, Any]:
    times = [datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC) for text in (day, created or day)]
    return {"item": item, "title": title, "note": "old tool", "at": times[0], "created": times[1]}


ROWS = [
    _row("a", "red web server", "2026-01-10"),
    _row("a", "green font", "2026-02-10"),
    _row("a", "fast python library", "2026-03-10"),
    _row("b", "small mail client", "2026-02-01"),
    _row("b", None, "2026-03-01"),
    # Two versions of one moment: the one written later counts.
    _row("c", "yellow game", "2026-02-01", created="2026-02-01"),
    _row("c", "blue game", "2026-02-01", created="2026-02-05"),
]
# (item, time of the label, title valid then)
LABELS = [
    ("a", "2026-03-09T23:59:59", "green font"),
    ("a", "2026-01-10", "red web server"),
    ("a", "2026-02-09", "red web server"),
    ("a", "2026-02-10", "green font"),
    ("a", "2026-12-31", "fast python library"),
    ("b", "2026-02-15", "small mail client"),
    ("b", "2026-03-15", None),
    ("c", "2026-02-20", "blue game"),
]
BEFORE = [("a", "2026-01-09T23:59:59"), ("b", "2026-01-31"), ("unknown", "2026-02-15")]


def _entities(labels: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"item": item, "query": "red web", "event_timestamp": time} for item, time in labels]


@pytest.fixture
def repo(new_repo: Callable[..., Repo]) -> Repo:
    """A repo that was applied and never materialized: training reads need no online store."""
    repo = new_repo()
    repo.export()
    repo.declare()
    repo.write_items(ROWS)
    repo.feast("apply")
    return repo


def _check_labels(repo: Repo, configuration: dict[str, Any] | None = None) -> None:
    rows = _entities([label[:2] for label in LABELS])
    answer = repo.historical([TITLE, STORED, SCORE], rows, configuration=configuration)
    assert [row["row"] for row in answer] == list(range(len(LABELS)))
    query = repo.encode(["red web"])[0]
    for row, (item, time, title) in zip(answer, LABELS, strict=True):
        assert row["title"] == title, (item, time)
        # A row without title still has its note, so it has a text.
        expected = repo.encode([f"{title or ''}. old tool"])[0]
        assert row["item_text_embedding"] == pytest.approx(expected, abs=1e-6), (item, time)
        score = sum(left * right for left, right in zip(query, expected, strict=True))
        assert row["query_item_similarity"] == pytest.approx(score, abs=1e-6), (item, time)


def test_a_label_gets_the_text_that_was_valid_then(repo: Repo) -> None:
    _check_labels(repo)


def test_a_label_before_the_first_text_gets_no_vector(repo: Repo) -> None:
    """Feast's dask store gives null to an entity that it does not know, and leaves out the row of a label that is
    older than every value of its entity. Should it keep such rows one day, they must hold null."""
    answer = repo.historical([STORED], _entities(BEFORE))
    assert [row["item"] for row in answer] == ["unknown"]
    assert [row for row in answer if row["item_text_embedding"] is not None] == []

    mixed = _entities([BEFORE[0], LABELS[1][:2], BEFORE[1]])
    answer = repo.historical([STORED], mixed)
    [found] = [row for row in answer if row["item_text_embedding"] is not None]
    assert found["row"] == 1


def test_a_second_read_computes_nothing(repo: Repo) -> None:
    rows = _entities([label[:2] for label in LABELS])
    first = repo.historical([STORED], rows)
    [run] = repo.runs()
    assert (run.mode, run.rows, run.texts, run.computed) == ("historical", len(ROWS), len(ROWS), len(ROWS))
    # The table is as new as the file, so it is not even opened for writing.
    assert repo.historical([STORED], rows) == first
    assert len(repo.runs()) == 1


def test_a_rewritten_file_is_seen_and_costs_only_its_new_texts(repo: Repo) -> None:
    rows = _entities([("a", "2026-12-31"), ("new", "2026-12-31")])
    before, unknown = repo.historical([STORED], rows)
    repo.write_items([*ROWS, _row("a", "new sound editor", "2026-04-01"), _row("new", "green font", "2026-04-01")])
    assert unknown["item_text_embedding"] is None
    changed, added = repo.historical([STORED], rows)
    assert before["item_text_embedding"] == pytest.approx(repo.encode(["fast python library. old tool"])[0], abs=1e-6)
    assert changed["item_text_embedding"] == pytest.approx(repo.encode(["new sound editor. old tool"])[0], abs=1e-6)
    assert added["item_text_embedding"] == pytest.approx(repo.encode(["green font. old tool"])[0], abs=1e-6)
    assert (repo.runs()[-1].cached, repo.runs()[-1].computed) == (len(ROWS), 1)
    [past] = repo.historical([STORED], _entities([("a", "2026-02-09")]))
    assert past["item_text_embedding"] == pytest.approx(repo.encode(["red web server. old tool"])[0], abs=1e-6)


def test_a_copied_repo_reads_its_own_file(repo: Repo, tmp_path: Path) -> None:
    copied = repo.copy(tmp_path / "copied")  # the original, whose folder the registry names, is still there
    copied.write_items([_row("a", "new sound editor", "2026-01-01")])
    for place, title in ((copied, "new sound editor"), (repo, "fast python library")):
        [row] = place.historical([STORED], _entities([("a", "2026-12-31")]))
        assert row["item_text_embedding"] == pytest.approx(repo.encode([f"{title}. old tool"])[0], abs=1e-6)


def test_a_new_model_gives_new_training_values(repo: Repo) -> None:
    _check_labels(repo)
    repo.export(seed=1)
    # What is published keeps its model until it is published again.
    [row] = repo.historical([STORED], _entities([("a", "2026-12-31")]))
    assert row["item_text_embedding"] != pytest.approx(repo.encode(["fast python library. old tool"])[0], abs=1e-3)
    repo.feast("apply")
    _check_labels(repo)


def test_full_feature_names_change_names_and_no_value(repo: Repo) -> None:
    rows = _entities([label[:2] for label in LABELS])
    short = repo.historical([TITLE, STORED], rows)
    full = repo.historical([TITLE, STORED], rows, full_feature_names=True)
    name = "item_text_embedding"
    assert [row[f"{name}__{name}"] for row in full] == [row[name] for row in short]
    assert [row["item_text__title"] for row in full] == [row["title"] for row in short]


@pytest.mark.parametrize("full", [False, True])
def test_similarities_are_those_of_online_reads(repo: Repo, full: bool) -> None:
    repo.feast("materialize", "2025-01-01", "2026-06-01")
    items = ["a", "b", "c"]
    online = repo.online(
        [STORED, SCORE], [{"item": item, "query": "red web"} for item in items], full_feature_names=full
    )
    rows = _entities([(item, "2026-06-01") for item in items])
    historical = repo.historical([STORED, SCORE], rows, full_feature_names=full)
    for feature in (STORED, SCORE):
        name = feature.replace(":", "__") if full else feature.partition(":")[2]
        assert len(online[name]) == len(historical) == len(items)
        for value, row in zip(online[name], historical, strict=True):
            assert row[name] == pytest.approx(value, abs=1e-6)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("duckdb", "ibis"))), reason="duckdb and ibis-framework are not installed"
)
def test_the_duckdb_store_reads_the_same(repo: Repo) -> None:
    path = repo.folder / "feature_store.yaml"
    path.write_text(path.read_text() + "offline_store: {type: duckdb}\n")
    repo.feast("apply")
    _check_labels(repo)
