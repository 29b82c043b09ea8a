"""The report of a repo in which a second model waits: its figures against the models', and the page in a browser."""

from __future__ import annotations

import contextlib
import datetime
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browsers
from integration.host import Repo
from integration.test_rollouts import FIRST, VIEW, Shop
from tiny import export_tiny

from llmrec_plugin.artifacts import ArtifactStore

pytestmark = pytest.mark.feast

PACKED = "item_title_packed"
EXTRA = f"""
{PACKED} = EmbeddingFeature(
    name="{PACKED}", entity="item", text="{{title}}", storage="float16", status=True, **model
)
from llmrec_plugin import Tags, TokenFeature
item_tags = TokenFeature(
    name="item_tags", entity="item", model="labels", text="{{title}}", status=True, output=Tags(min_score=0.5)
)
"""
SERVICE = """
import feast

ranker = feast.FeatureService(name="ranker", features=[llm["query_item_similarity"]])
"""
LABELS = ("red", "green", "blue", "fast", "slow")
HOSTILE = "<img src=x onerror=alert(1)>"
TITLES = {
    HOSTILE: "red <script>alert(1)</script> server",
    "i1": "green font",
    "i2": "fast python library",
    "i3": "small mail client",
    "i4": "fast web server",
    "i5": "python web library",
    "blank": " ",
}


@pytest.fixture(scope="module")
def shop(new_repo: Callable[..., Repo]) -> Shop:
    """Seven items with the first model, one without a text and one that came later; the second model waits."""
    shop = Shop(new_repo("report"), "file", "planned")
    configuration = shop.repo.folder / "feature_store.yaml"  # on a busy machine an apply takes more than that second
    configuration.write_text(configuration.read_text().replace("cache_ttl_seconds: 1\n", "cache_ttl_seconds: 600\n"))
    rows = [shop._row(item, title, 1) for item, title in TITLES.items()]
    shop.repo.write_items([*rows, shop._row("late", "yellow game", 4)])
    shop.repo.export()
    export_tiny(ArtifactStore([shop.repo.root / "home" / "artifacts"]), name="labels", labels=LABELS)
    shop.repo.declare(extra=EXTRA, template="{title}")
    features = shop.repo.folder / "features.py"
    features.write_text(features.read_text() + SERVICE)
    shop.repo.feast("apply")
    shop.repo.feast("materialize-incremental", FIRST)
    shop.repo.export(seed=1)
    shop.repo.feast("apply")
    shop.fill(1)
    return shop


def report(shop: Shop, *arguments: str) -> str:
    done = shop.repo.call("rollout_steps:llmrec", arguments=["report", *arguments])
    assert done["status"] == 0, done["output"]
    return done["output"]


@pytest.fixture(scope="module")
def figures(shop: Shop) -> dict[str, Any]:
    printed = report(shop, "--json")
    return json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1])


def values_of(figures: dict[str, Any], view: str) -> dict[str, Any]:
    [found] = [values for values in figures["values"] if values["view"] == view]
    return found


def test_lineage_goes_from_the_file_to_the_service(figures: dict[str, Any]) -> None:
    features = {feature["view"]: feature for feature in figures["features"]}
    text = features[VIEW]
    assert text["source"] == ["data/items.parquet"]
    assert text["reads"] == ["item_text"]
    assert text["columns"] == ["title"]
    assert text["entity"] == "item"
    assert [model for model, _ in text["models"]] == ["tiny"]
    assert text["read_by"] == ["query_item_similarity"]
    assert text["served_by"] == []
    assert text["services"] == ["ranker"]
    assert text["materialized_to"].startswith(FIRST)
    assert features["query_item_similarity"]["served_by"] == ["ranker"]
    assert features["query_embedding"]["source"] == ["request"]
    assert features[PACKED]["services"] == []
    assert text["fingerprint"] != features[PACKED]["fingerprint"]


@pytest.mark.parametrize(("view", "statuses"), [(VIEW, {}), (PACKED, {"ok": 6, "empty": 1})])
def test_rows_nulls_and_statuses_are_counted(figures: dict[str, Any], view: str, statuses: dict[str, int]) -> None:
    values = values_of(figures, view)
    assert values["problem"] == ""
    assert {name: values[name] for name in ("entities", "sampled", "found", "null")} == {
        "entities": 8, "sampled": 8, "found": 7, "null": 1
    }  # fmt: skip
    assert values["statuses"] == statuses


@pytest.mark.parametrize("view", [VIEW, PACKED])
def test_neighbors_are_those_of_the_served_model(shop: Shop, figures: dict[str, Any], view: str) -> None:
    items = values_of(figures, view)["vectors"]["map"]
    assert sorted(items["keys"]) == sorted(set(TITLES) - {"blank"})
    assert items["texts"] is None
    shop.repo.export(seed=0)
    vectors = np.array(shop.repo.encode([TITLES[key] for key in items["keys"]]))
    shop.repo.export(seed=1)
    similar = vectors @ vectors.T
    for row, others in enumerate(items["neighbors"]):
        assert len(others) == 5
        assert row not in others
        np.testing.assert_allclose(items["similarities"][row], similar[row, others], atol=2e-3)
        assert sorted(items["similarities"][row], reverse=True) == items["similarities"][row]


def test_the_waiting_model_is_compared_on_the_same_items(shop: Shop, figures: dict[str, Any]) -> None:
    drift = values_of(figures, VIEW)["drift"]
    assert drift["role"] == "waits"
    assert drift["served"] != drift["other"]
    assert (drift["compared"], drift["equal"]) == (6, 0)
    keys = values_of(figures, VIEW)["vectors"]["map"]["keys"]
    both = []
    for seed in (0, 1):
        shop.repo.export(seed=seed)
        both.append(np.array(shop.repo.encode([TITLES[key] for key in keys])))
    expected = np.einsum("ij,ij->i", *both).mean()
    assert drift["mean_cosine"] == pytest.approx(expected, abs=1e-4)
    assert drift["overlap_of"] == 5
    assert drift["overlap"] == 1  # of five others all are neighbors
    assert drift["overlaps"] == [0, 0, 0, 0, 0, 6]
    assert values_of(figures, PACKED)["drift"]["compared"] == 0  # the second model was not run for it


def test_tags_are_counted_as_they_are_stored(shop: Shop, figures: dict[str, Any]) -> None:
    read = shop.repo.online(["item_tags:item_tags", "item_tags:item_tags_status"], [{"item": item} for item in TITLES])
    values = values_of(figures, "item_tags")
    assert values["statuses"] == dict(Counter(read["item_tags_status"]))
    assert values["null"] == read["item_tags"].count(None) == 1
    counts = Counter(tag for tags in read["item_tags"] for tag in tags or [])
    assert dict(values["tokens"]["most_frequent"]) == dict(counts)
    assert values["tokens"]["distinct"] == len(counts) > 0
    assert values["tokens"]["mean_size"] == pytest.approx(counts.total() / 6)


def test_runs_are_added_up(figures: dict[str, Any]) -> None:
    runs = {(run["feature"], run["mode"]): run for run in figures["runs"]}
    assert runs[VIEW, "batch"]["runs"] >= 2
    assert runs[VIEW, "batch"]["rows"] == 14
    assert figures["cache"]["entries"] > 0


def test_few_rows_are_looked_up_and_the_next_run_is_planned_if_asked(shop: Shop) -> None:
    printed = report(shop, "--rows", "3", "--plan", "--json")
    some = json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1])
    assert (values_of(some, VIEW)["entities"], values_of(some, VIEW)["sampled"]) == (8, 3)
    plans = {plan["view"]: plan for plan in some["plan"]}
    assert plans[VIEW]["entities"] == 8
    assert plans[VIEW]["new"] == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from browsers(tmp_path_factory.mktemp("browser"))


def test_the_page_holds_texts_only_if_asked_and_nothing_in_it_runs(
    shop: Shop, figures: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    assert "fast python library" not in json.dumps(figures)
    private, open_ = tmp_path / "private.html", tmp_path / "open.html"
    report(shop, "--output", str(private))
    report(shop, "--output", str(open_), "--texts")
    assert "fast python library" not in private.read_text()
    assert "fast python library" in open_.read_text()
    assert open_.stat().st_size < 100_000
    browser.open(open_)
    assert browser.evaluate(
        "[...document.querySelectorAll('.map')].map(map => map.querySelectorAll('circle').length)"
    ) == [
        6,
        6,
    ]
    browser.evaluate("document.querySelector('.map').scrollIntoView()")
    items = values_of(figures, PACKED)["vectors"]["map"]
    row = items["keys"].index(HOSTILE)
    box = f"document.querySelectorAll('.map circle')[{row}].getBoundingClientRect()"
    browser.move(*browser.evaluate(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})"))
    shown = browser.evaluate("document.querySelector('.map output').textContent")
    assert shown.startswith(HOSTILE + TITLES[HOSTILE])
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.complaints == []
    assert browser.requests == []


def test_what_is_no_repo_or_no_evaluation_is_said(shop: Shop, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"rankers": {}}')
    for arguments, message in (
        (["--repo", str(tmp_path)], "holds no feature_store.yaml"),
        (["--evaluation", str(other)], "has no baselines, data, protocol, slices: expected the result.json"),
    ):
        done = shop.repo.call("rollout_steps:llmrec", arguments=["report", *arguments])
        assert done["status"] == 1
        assert message in done["output"]


def test_a_view_that_the_store_lost_has_a_reason_in_place_of_figures(shop: Shop, tmp_path: Path) -> None:
    other = shop.repo.copy(tmp_path / "other")
    with contextlib.closing(sqlite3.connect(other.folder / "data" / "online.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        lost = [name for name in names if PACKED in name]
        for name in lost:
            database.execute(f'DROP TABLE "{name}"')
    assert lost
    done = other.call("rollout_steps:llmrec", arguments=["report", "--json"])
    assert done["status"] == 0, done["output"]
    printed = done["output"]
    found = json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1])
    assert "Run `feast apply` in this repo" in values_of(found, PACKED)["problem"]
    assert values_of(found, "item_tags")["problem"] == ""


def test_the_time_of_a_report_is_utc(figures: dict[str, Any]) -> None:
    assert datetime.datetime.fromisoformat(figures["made"]).utcoffset() == datetime.timedelta(0)


def test_after_the_switch_the_former_model_is_the_other_one(shop: Shop, figures: dict[str, Any]) -> None:
    shop.repo.feast("materialize-incremental", FIRST, "--views", PACKED, "--version", "v1")
    shop.llmrec("promote")
    printed = report(shop, "--json")
    now = values_of(json.loads(printed[printed.index("{\n") : printed.rindex("}") + 1]), VIEW)
    then = values_of(figures, VIEW)
    assert now["drift"]["role"] == "before"
    assert (now["drift"]["served"], now["drift"]["other"]) == (then["drift"]["other"], then["drift"]["served"])
    assert now["vectors"]["map"]["keys"] == then["vectors"]["map"]["keys"]
    assert now["vectors"]["map"]["points"] != then["vectors"]["map"]["points"]
