"""Features that a model writes, through Feast: applied, materialized, read online, on demand and as training data."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_endpoint import ChatEndpoint
from endpoint import serving
from integration.host import HERE, Repo, StepError
from tiny import WORDS, export_tiny

from llmrec_plugin import GeneratorModel
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.export import export_endpoint

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
    # The embedding of the tags may have been materialized first, and then they are there already.
    assert set(batch["item_tags_status"][:20]) <= {"ok", "cached"}
    assert batch["item_tags_status"][20:] == ["empty"] * 2
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


WRITTEN = """
from llmrec_plugin import Choice, Decoding, Prompt, Scores, ShortText, Slot, TokenFeature

title = Slot(name="title", max_tokens=12)
prompt = Prompt(name="colour", version=1, user="Which colour is this?\\n{{title}}\\nColour: ", slots=(title,))
about = dict(entity="item", model="llama", prompt=prompt, status=True)
item_colour = TokenFeature(
    name="item_colour", output=Choice(options=("red", "green", "blue")), decoding=Decoding(max_new_tokens=8), **about
)
item_warmth = TokenFeature(name="item_warmth", output=Scores(answers=(" yes", " no"), of=" yes"), **about)
item_story = TokenFeature(
    name="item_story", output=ShortText(stop=()), fallback="none",
    decoding=Decoding(method="sample", temperature=0.8, top_p=0.9, max_new_tokens=10, seed=3), **about
)
item_rewrite = TokenFeature(
    name="item_rewrite", entity="item", model="bart", text="{title}", output=ShortText(stop=()), fallback="none",
    decoding=Decoding(max_new_tokens=10),
)
"""
NAMES = ["item_colour", "item_warmth", "item_story", "item_rewrite"]


@pytest.fixture(scope="module")
def writers(new_repo: Callable[..., Repo]) -> Repo:
    pytest.importorskip("torch", reason="torch comes with the extra 'export'")
    repo = new_repo("writers")
    repo.export()
    repo.call(
        "exporting:export_tiny_generators",
        paths=[HERE.parent],
        where=str(repo.root / "generators"),
        artifacts=str(repo.root / "home" / "artifacts"),
        architectures=["llama", "bart"],
    )
    repo.declare(extra=WRITTEN)
    at = (START + datetime.timedelta(hours=number) for number in range(len(TITLES)))
    repo.write_items({"item": f"i{n}", "title": title, "at": next(at)} for n, title in enumerate(TITLES))
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2027-01-01", LLMREC_CACHE=str(repo.root / "batch"))
    return repo


def test_what_a_generator_writes_is_the_same_every_way(writers: Repo) -> None:
    stored = [f"{name}:{name}" for name in NAMES]
    items = [f"i{number}" for number in range(len(TITLES))]
    batch = writers.online(stored, [{"item": item} for item in items])
    assert set(batch["item_colour"][:20]) <= {"red", "green", "blue"}
    assert len(set(batch["item_story"][:20])) > 10
    assert all(0 < score < 1 for score in batch["item_warmth"][:20])
    assert all(batch[name][20:] == [None, None] for name in NAMES)

    rows = [{"item": item, "event_timestamp": LABEL} for item in items]
    historical = writers.historical(stored, rows, environ={"LLMREC_CACHE": str(writers.root / "historical")})
    for size in (1, 7):
        on_demand = writers.online(
            [f"{name}_on_demand:{name}_on_demand" for name in NAMES],
            [{"title": title} for title in TITLES],
            environ={"LLMREC_CACHE": str(writers.root / f"on-demand-{size}")},
            rows_per_request=size,
        )
        for name in NAMES:
            assert on_demand[f"{name}_on_demand"] == _equal(batch[name]), (name, size)
    for name in NAMES:
        assert [row[name] for row in historical] == _equal(batch[name]), name


def _equal(values: list[Any]) -> list[Any]:
    return [pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for value in values]


def test_a_second_run_writes_nothing(writers: Repo) -> None:
    cache = writers.root / "batch"
    before = len(writers.runs(cache))
    writers.feast("materialize", "2025-01-01", "2027-01-01", LLMREC_CACHE=str(cache))
    again = {run.feature: run.computed for run in writers.runs(cache)[before:]}
    assert {name: again[name] for name in NAMES} == dict.fromkeys(NAMES, 0)


BEHIND = """
from llmrec_plugin import Prompt, ShortText, Slot, TokenFeature

item_story = TokenFeature(
    name="item_story", entity="item", model="ours", output=ShortText(), status=True,
    prompt=Prompt(name="story", version=1, user="Tell of {{title}}", slots=(Slot(name="title"),)),
)
"""


def _titles() -> ChatEndpoint:
    endpoint = ChatEndpoint()
    endpoint.write = lambda prompt: prompt.partition("<title>")[2].partition("</title>")[0]
    return endpoint


STORY = ["item_story:item_story", "item_story:item_story_status"]


def test_an_endpoint_that_is_down_loses_nothing(new_repo: Callable[..., Repo]) -> None:
    repo = new_repo("behind")
    repo.export()
    model = GeneratorModel(name="ours", source="endpoint:writer@1", task="causal", max_tokens=100, chat=True)
    export_endpoint(model, ArtifactStore([repo.root / "home" / "artifacts"]))
    repo.declare(extra=BEHIND)
    with (repo.folder / "feature_store.yaml").open("a") as settings:
        settings.write("batch_engine: {type: llmrec_plugin.feast.engine.LLMComputeEngine}\n")
    rows = [{"item": f"i{n}", "title": f"red {word}", "at": START} for n, word in enumerate(WORDS[:8])]
    repo.write_items(rows[:6])
    repo.feast("apply")
    asked = [{"item": row["item"]} for row in rows]
    with serving(_titles()) as server:
        up = {"LLMREC_OPENAI_URL": server.url, "LLMREC_OPENAI_RETRIES": "0"}
        repo.feast("materialize", "2025-01-01", "2026-02-01", **up)
        answered = len(server.requests)
    before = repo.online(STORY, asked)
    assert before["item_story"][0] == "RED RED"
    assert before["item_story_status"] == ["ok"] * 6 + [None] * 2

    changed = [{**row, "title": f"blue {row['title']}", "at": START + datetime.timedelta(days=40)} for row in rows]
    repo.write_items([*rows[:6], *changed])
    down = {**up, "LLMREC_OPENAI_TIMEOUT": "1"}
    with pytest.raises(StepError, match="8 of 8 rows got no answer from the model"):
        repo.feast("materialize", "2026-02-01", "2026-06-01", **down)
    after = repo.online(STORY, asked)
    assert after["item_story"][:6] == before["item_story"][:6]  # better than nothing
    assert after["item_story_status"][6:] == ["invalid"] * 2

    with serving(_titles()) as server:
        repo.feast("materialize", "2026-02-01", "2026-06-01", **{**up, "LLMREC_OPENAI_URL": server.url})
        assert len(server.requests) == 8
    assert answered == 6
    assert repo.online(STORY, asked)["item_story_status"] == ["ok"] * 8
