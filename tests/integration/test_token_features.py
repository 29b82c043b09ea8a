"""Features that a model writes, through Feast: applied, materialized, read online, on demand and as training data."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.host import Repo
from tiny import WORDS, export_tiny

from llmrec_plugin.artifacts import ArtifactStore

pytestmark = pytest.mark.feast

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LABEL = "2026-06-01"
LABELS = ("red", "green", "blue", "fast", "slow")
TITLES = [f"{a} {b}" for a in WORDS[:4] for b in WORDS[4:9]] + [None, "  "]

TAGS = """
from llmrec_plugin import GeneratedEmbeddingFeature, Tags, TokenFeature
item_tags = TokenFeature(
    name="item_tags", entity="item", model="labels", text="{title}", status=True,
    output=Tags(max_items=3, min_score=0.5, ids=True, scores=True), description="what it is about",
)
item_tags_embedding = GeneratedEmbeddingFeature(name="item_tags_embedding", entity="item", of=item_tags, **model)
"""
COLUMNS = ["item_tags", "item_tags_ids", "item_tags_scores"]


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    repo = new_repo("tokens")
    repo.export()
    export_tiny(ArtifactStore([repo.root / "home" / "artifacts"]), name="labels", labels=LABELS)
    repo.declare(extra=TAGS)
    at = (START + datetime.timedelta(hours=number) for number in range(len(TITLES)))
    repo.write_items({"item": f"i{n}", "title": title, "at": next(at)} for n, title in enumerate(TITLES))
    repo.feast("apply")
    return repo


def test_tags_are_the_same_every_way(repo: Repo) -> None:
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    stored = [f"item_tags:{name}" for name in [*COLUMNS, "item_tags_status"]]
    names = [f"i{number}" for number in range(len(TITLES))]
    batch = repo.online(stored, [{"item": name} for name in names])
    assert batch["item_tags_status"] == ["ok"] * 20 + ["empty"] * 2
    assert {len(tags) for tags in batch["item_tags"][:20]} > {1}
    assert batch["item_tags"][20:] == [None, None]
    for tags, ids in zip(batch["item_tags"][:20], batch["item_tags_ids"][:20], strict=True):
        assert [LABELS[i] for i in ids or []] == (tags or [])

    rows = [{"item": name, "event_timestamp": LABEL} for name in names]
    historical = repo.historical(stored, rows, environ={"LLMREC_CACHE": str(repo.root / "historical")})
    on_demand = {
        size: repo.online(
            [f"item_tags_on_demand:item_tags_on_demand{name.removeprefix('item_tags')}" for name in COLUMNS],
            [{"title": title} for title in TITLES],
            environ={"LLMREC_CACHE": str(repo.root / f"on-demand-{size}")},
            rows_per_request=size,
        )
        for size in (1, 7)
    }
    for name in COLUMNS:
        expected = [_close(value) for value in batch[name]]
        assert [_close(row[name]) for row in historical] == expected
        for answer in on_demand.values():
            got = answer["item_tags_on_demand" + name.removeprefix("item_tags")]
            assert [_close(value) for value in got] == expected


def _close(value: list[Any] | None) -> list[Any]:
    """Feast gives an empty list for null or null for an empty list, by the way that it reads."""
    return [round(item, 5) if isinstance(item, float) else item for item in value or []]


def test_a_second_run_computes_nothing(repo: Repo) -> None:
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    before = len(repo.runs())
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    again = [run for run in repo.runs()[before:] if run.feature.startswith("item_tags")]
    assert {run.feature for run in again} == {"item_tags", "item_tags_embedding"}
    assert [run.computed for run in again] == [0, 0]


def test_the_embedding_is_of_the_tags(repo: Repo) -> None:
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    names = [{"item": f"i{number}"} for number in range(20)]
    answer = repo.online(["item_tags:item_tags", "item_tags_embedding:item_tags_embedding"], names)
    texts = [", ".join(tags or []) for tags in answer["item_tags"]]
    expected = iter(repo.encode([text for text in texts if text]))
    for text, vector in zip(texts, answer["item_tags_embedding"], strict=True):
        assert (vector is None) == (not text)
        if vector is not None:
            assert vector == pytest.approx(next(expected), abs=1e-6)


def test_a_process_that_never_saw_the_repo_computes_the_same(repo: Repo, tmp_path: Path) -> None:
    expected = repo.online(["item_tags_on_demand:item_tags_on_demand"], [{"title": title} for title in TITLES[:20]])
    shutil.copy(repo.folder / "data" / "registry.db", tmp_path)
    configuration = {
        "project": "test",
        "provider": "local",
        "registry": str(tmp_path / "registry.db"),
        "online_store": {"type": "sqlite", "path": str(tmp_path / "none.db")},
        "entity_key_serialization_version": 3,
    }
    answer = repo.processes.call(
        "steps:read_online",
        folder=tmp_path,
        environ=repo.environ | {"LLMREC_CACHE": str(tmp_path / "cache")},
        features=["item_tags_on_demand:item_tags_on_demand"],
        rows=[{"title": title} for title in TITLES[:20]],
        configuration=configuration,
    )
    assert answer["item_tags_on_demand"] == expected["item_tags_on_demand"]
