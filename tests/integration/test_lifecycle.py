"""`feast plan`, `apply` and `materialize` over the life of a repo, each command in a process of its own."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from integration.host import Repo, StepError

pytestmark = pytest.mark.feast

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
WHOLE = ("2025-01-01", "2026-03-01")
VIEW = "item_text_embedding"
TITLES = ("red web server", "green font", "fast python library", "red web server", "small mail client", "green font")
NAMES = [f"i{number}" for number in range(len(TITLES))]
DISTINCT = len(set(TITLES))


def _items() -> list[dict[str, Any]]:
    return [
        {"item": name, "title": title, "note": "old tool", "at": START + datetime.timedelta(days=number)}
        for number, (name, title) in enumerate(zip(NAMES, TITLES, strict=True))
    ]


@pytest.fixture
def repo(new_repo: Callable[..., Repo]) -> Repo:
    """A repo that was applied and materialized."""
    repo = new_repo()
    repo.export()
    repo.declare()
    repo.write_items(_items())
    repo.feast("apply")
    repo.feast("materialize", *WHOLE)
    return repo


def _equal(vectors: list[Any], expected: list[Any]) -> bool:
    return all(vector == pytest.approx(other, abs=1e-6) for vector, other in zip(vectors, expected, strict=True))


def _values(repo: Repo, template: str = "{title}. {note}") -> list[list[float]]:
    return repo.encode([template.format(title=title, note="old tool") for title in TITLES])


def test_a_repo_that_does_not_change_is_applied_once_and_computed_once(new_repo: Callable[..., Repo]) -> None:
    repo = new_repo()
    repo.export()
    repo.declare()
    repo.write_items(_items())

    assert f"Created feature view {VIEW}" in repo.feast("plan")
    assert f"Created feature view {VIEW}" in repo.feast("apply")
    assert "No changes to registry" in repo.feast("apply")
    assert repo.vectors(NAMES) == [None] * len(NAMES)

    repo.feast("materialize", *WHOLE)
    [run] = repo.runs()
    # A text that occurs twice costs one inference.
    assert (run.rows, run.texts, run.cached, run.computed) == (len(TITLES), DISTINCT, 0, DISTINCT)
    assert _equal(repo.vectors(NAMES), _values(repo))

    # Feast itself reports the raw view again, whose message holds the time at which it was built.
    assert VIEW not in repo.feast("plan")
    assert VIEW not in repo.feast("apply")
    assert repo.call("steps:describe", view=VIEW)["intervals"] == [list(WHOLE)]
    assert _equal(repo.vectors(NAMES), _values(repo))

    repo.feast("materialize-incremental", "2026-04-01")
    repo.feast("materialize", *WHOLE)
    assert sum(run.computed for run in repo.runs()[1:]) == 0
    assert repo.runs()[-1].cached == DISTINCT
    assert _equal(repo.vectors(NAMES), _values(repo))


def test_applying_runs_no_model(new_repo: Callable[..., Repo]) -> None:
    repo = new_repo(LLMREC_DEVICE="cuda")  # there is none: a model that is run is an error
    repo.export()
    repo.declare()
    repo.write_items(_items())
    repo.feast("plan")
    repo.feast("apply")
    with pytest.raises(StepError, match="ProviderError"):
        repo.feast("materialize", *WHOLE)


def test_new_rows_cost_only_their_new_texts(repo: Repo) -> None:
    new = [
        {"item": "i0", "title": "yellow game", "note": "old tool", "at": START + datetime.timedelta(days=70)},
        {"item": "new", "title": "green font", "note": "old tool", "at": START + datetime.timedelta(days=71)},
    ]
    repo.write_items([*_items(), *new])
    repo.feast("materialize-incremental", "2026-04-01")
    run = repo.runs()[-1]
    assert (run.rows, run.cached, run.computed) == (2, 1, 1)
    changed, added, kept = repo.vectors(["i0", "new", "i2"])
    assert _equal(
        [changed, added, kept],
        repo.encode([f"{new[0]['title']}. old tool", "green font. old tool", f"{TITLES[2]}. old tool"]),
    )


@pytest.mark.parametrize("change", ["model", "template", "dims"])
def test_a_change_of_the_numbers_drops_the_old_values_and_recomputes_all(repo: Repo, change: str) -> None:
    before = repo.vectors(NAMES)
    template = "{title}. {note}"
    if change == "model":
        repo.export(seed=1)
    elif change == "dims":
        repo.export(seed=0, dims=12)
        repo.declare(dims=12)
    else:
        template = "{title}"
        repo.declare(template=template)

    plan = repo.feast("plan")
    assert f"Updated feature view {VIEW}" in plan
    assert {"model": "artifact", "template": template, "dims": "12"}[change] in plan
    # A plan changes nothing.
    assert repo.vectors(NAMES) == before

    assert f"Updated feature view {VIEW}" in repo.feast("apply")
    assert repo.vectors(NAMES) == [None] * len(NAMES)
    scores = repo.online(
        ["query_item_similarity:query_item_similarity"], [{"item": name, "query": "red"} for name in NAMES]
    )
    assert scores["query_item_similarity"] == [None] * len(NAMES)
    assert VIEW not in repo.feast("apply")

    repo.feast("materialize-incremental", "2026-04-01")
    run = repo.runs()[-1]
    assert (run.mode, run.rows, run.cached, run.computed) == ("batch", len(TITLES), 0, DISTINCT)
    after = repo.vectors(NAMES)
    assert _equal(after, _values(repo, template))
    assert not _equal([after[0]], [before[0]]) if change != "dims" else len(after[0]) == 12


def test_going_back_to_the_first_model_costs_nothing(repo: Repo) -> None:
    before = repo.vectors(NAMES)
    for seed in (1, 0):
        repo.export(seed=seed)
        repo.feast("apply")
        repo.feast("materialize-incremental", "2026-04-01")
    assert [(run.cached, run.computed) for run in repo.runs()] == [(0, DISTINCT), (0, DISTINCT), (DISTINCT, 0)]
    assert repo.vectors(NAMES) == before


@pytest.mark.parametrize(
    "change", [{"tags": {"owner": "search"}}, {"ttl_days": 20_000}, {"description": "of packages"}]
)
def test_a_change_of_tags_ttl_or_description_keeps_every_value(repo: Repo, change: dict[str, Any]) -> None:
    before = repo.vectors(NAMES)
    known = repo.call("steps:describe", view="item_text_embedding")
    repo.declare(**change)
    assert "Updated feature view" in repo.feast("apply")
    # Feast counts a new version when the raw view or a field's description changed; nothing else does.
    changed = repo.call("steps:describe", view="item_text_embedding")
    assert {**changed, "version": None} == {**known, "version": None}
    assert repo.vectors(NAMES) == before
    repo.feast("materialize-incremental", "2026-04-01")
    assert sum(run.computed for run in repo.runs()[1:]) == 0
    assert repo.vectors(NAMES) == before


def test_a_version_that_is_not_promoted_leaves_the_old_values_in_use(repo: Repo) -> None:
    before = repo.vectors(NAMES)
    repo.export(seed=1)
    repo.feast("apply", "--no-promote")
    assert repo.vectors(NAMES) == before
    repo.feast("apply")
    assert repo.vectors(NAMES) == [None] * len(NAMES)
    repo.feast("materialize-incremental", "2026-04-01")
    assert _equal(repo.vectors(NAMES), _values(repo))


def test_a_failed_materialization_is_resumed(repo: Repo) -> None:
    repo.export(seed=1)
    repo.feast("apply")
    artifacts = repo.root / "home" / "artifacts"
    artifacts.rename(artifacts.with_name("away"))
    with pytest.raises(StepError, match=r"is not on this machine.*export"):
        repo.feast("materialize-incremental", "2026-04-01")
    artifacts.with_name("away").rename(artifacts)
    assert repo.vectors(NAMES) == [None] * len(NAMES)
    repo.feast("materialize-incremental", "2026-04-01")
    assert _equal(repo.vectors(NAMES), _values(repo))
