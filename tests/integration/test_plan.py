"""`llmrec plan` says what the next materialization then does."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from integration.host import Repo
from tiny import WORDS

pytestmark = pytest.mark.feast

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
VIEW = "item_text_embedding"
ROWS = 240
ENGINE = "batch_engine: {type: llmrec_plugin.feast.engine.LLMComputeEngine, chunk_rows: 50}\n"


def _items(rows: int = ROWS) -> list[dict[str, Any]]:
    words = np.random.default_rng(0).choice(WORDS, (rows, 12))
    return [
        {
            "item": f"i{number}",
            "title": " ".join(row[: 2 + number % 11]),
            "at": START + datetime.timedelta(hours=number),
        }
        for number, row in enumerate(words)
    ]


@pytest.fixture
def repo(new_repo: Callable[..., Repo]) -> Repo:
    repo = new_repo()
    with (repo.folder / "feature_store.yaml").open("a") as file:
        file.write(ENGINE)
    repo.export()
    repo.declare(template="{title}")
    repo.write_items(_items())
    return repo


def _plan(repo: Repo, *arguments: str) -> dict[str, Any]:
    [view] = json.loads(repo.call("steps:command_line", arguments=["plan", "--json", *arguments]))
    assert view["view"] == VIEW
    return view


def _check(plan: dict[str, Any], **expected: int) -> None:
    assert {name: plan[name] for name in expected} == expected


def test_a_plan_counts_what_the_run_then_does(repo: Repo) -> None:
    texts = len({row["title"] for row in _items()})
    plan = _plan(repo)  # before the first apply, like `feast plan`
    _check(plan, entities=ROWS, rows=ROWS, new=ROWS, changed=0, unchanged=0, late=0, texts=texts, compute=texts)
    assert plan["seconds"] > 0
    assert plan["memory_bytes"] > 2**20
    assert repo.runs() == []

    repo.feast("apply")
    assert _plan(repo)["tokens"] == plan["tokens"]
    repo.feast("materialize-incremental", "2026-02-01", "--views", VIEW)
    [run] = repo.runs()
    assert (run.rows, run.texts, run.computed, run.tokens) == (ROWS, texts, texts, plan["tokens"])
    _check(_plan(repo), entities=ROWS, rows=0, texts=0, compute=0, tokens=0)


def test_a_plan_tells_new_changed_and_cached_rows_apart(repo: Repo) -> None:
    repo.feast("apply")
    repo.feast("materialize-incremental", "2026-02-01", "--views", VIEW)
    items = _items()
    items[3] |= {"title": "red red red"}  # corrected in place
    items[4] |= {"title": items[5]["title"]}  # corrected to a text that is cached
    items[6] |= {"title": "blue blue blue", "at": datetime.datetime(2026, 2, 2, tzinfo=datetime.UTC)}
    items.append({"item": "late", "title": "new new new", "at": START})
    repo.write_items(items)
    expected = {"entities": ROWS + 1, "rows": 4, "new": 1, "changed": 3, "late": 3, "texts": 4, "cached": 1}
    plan = _plan(repo, VIEW)
    _check(plan, **expected, compute=3)

    repo.feast("materialize-incremental", "2026-03-01", "--views", VIEW)
    run = repo.runs()[-1]
    assert (run.rows, run.texts, run.cached, run.computed, run.tokens) == (4, 4, 1, 3, plan["tokens"])

    whole = _plan(repo, "--start", "2025-01-01", "--end", "2026-06-01")
    _check(whole, rows=ROWS + 1, unchanged=ROWS + 1, new=0, changed=0, compute=0)


def test_a_plan_leaves_out_what_an_interrupted_run_has_written(repo: Repo) -> None:
    repo.feast("apply")
    repo.call("steps:materialize_and_die", view=VIEW, writes=2)
    _check(_plan(repo), entities=ROWS, done=100, rows=ROWS - 100, new=ROWS - 100)
    repo.feast("materialize-incremental", "2026-02-01", "--views", VIEW)
    assert repo.runs()[-1].rows == ROWS - 100
    _check(_plan(repo, "--start", "2025-01-01"), done=0, rows=ROWS, unchanged=ROWS)


def test_a_plan_of_another_model_counts_every_row_before_it_is_applied(repo: Repo) -> None:
    repo.feast("apply")
    repo.feast("materialize-incremental", "2026-02-01", "--views", VIEW)
    repo.export(seed=1)
    plan = _plan(repo)
    _check(plan, rows=ROWS, new=ROWS, cached=0, compute=plan["texts"])


def test_a_plan_knows_what_a_rollout_has_filled(repo: Repo) -> None:
    path = repo.folder / "feature_store.yaml"
    path.write_text(path.read_text().replace("registry: {", "registry: {enable_online_feature_view_versioning: true, "))
    repo.feast("apply")
    repo.feast("materialize-incremental", "2026-02-01", "--views", VIEW)
    repo.export(seed=1)
    repo.feast("apply")
    _check(_plan(repo), rows=ROWS, new=ROWS)
    repo.feast("materialize-incremental", "2026-02-01", "--views", VIEW, "--version", "v1")
    _check(_plan(repo), entities=ROWS, rows=0)


def test_tokens_of_a_sample_are_within_two_percent(repo: Repo) -> None:
    items = _items(4000)
    for number, item in enumerate(items):
        item["title"] += f" {number}"
    repo.write_items(items)
    plans = [_plan(repo), json.loads(repo.call("steps:plan_of_sample", texts=2000))]
    assert [plan["tokens_exact"] for plan in plans] == [True, False]
    assert plans[1]["compute"] == plans[0]["compute"] == 4000
    assert plans[1]["tokens"] == pytest.approx(plans[0]["tokens"], rel=0.02)


def test_a_plan_needs_a_repo_and_a_view_of_it(repo: Repo) -> None:
    output = repo.call("steps:command_line", arguments=["plan", "--repo", str(repo.root)], fails=True)
    assert "InputError" in output
    assert "feature_store.yaml" in output
    output = repo.call("steps:command_line", arguments=["plan", "item_text_embeding"], fails=True)
    assert f"Did you mean '{VIEW}'" in output
