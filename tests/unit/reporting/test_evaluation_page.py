"""The page of an evaluation, alone and within a report, in a real browser."""

import copy

import pytest

from llmrec_plugin.evaluation.page import page, sections

HOSTILE = "<script>window.broken = 1</script>"
METRICS = ("ndcg", "recall", "hr", "mrr", "auc")


def arm(gain=None, **more):
    metrics = {label: {metric: {"mean": 0.5} for metric in METRICS} for label in ("all", "cold items")}
    if gain is None:
        return {"metrics": metrics, "params": {"leaves": 31}, **more}
    found = {"mean": gain, "low": gain - 0.01, "high": gain + 0.01}
    cost = {"seconds": 1.0, "item_bytes": 10.0, "seconds_per_point": None, "item_bytes_per_point": None}
    difference = {label: {"ndcg": found} for label in ("all", "cold items")}
    return {"metrics": metrics, "params": {"leaves": 31}, "difference": difference, "cost": cost, **more}


@pytest.fixture
def result():
    arms = {
        "base": arm(),
        HOSTILE: arm(0.05, over_control={"control": {"all": {"ndcg": {"mean": 0.1, "low": 0.05, "high": 0.2}}}}),
        "worse": arm(-0.05),
        "control": arm(0.0, control="random"),
    }
    about = {"definition": "all of them.", "lists": 10, "users": 5}
    return {
        "data": {
            "name": HOSTILE, "interactions": 100, "users": 5, "items": 20, "timed": True, "rated": True, "liked": 4.0
        },
        "protocol": {
            "k": 10, "base": "base", "lists": 10, "users": 5, "items_ranked": 20, "seeds": 3, "ceiling": 1.0,
            "plan": {"candidates": None},
        },
        "slices": {"all": about, "cold items": about, "cold users": {**about, "lists": 0, "users": 0}},
        "rankers": {"trees": arms},
        "baselines": {"random": {"all": {metric: {"mean": 0.1} for metric in METRICS}}},
    }  # fmt: skip


def test_a_browser_shows_it_without_a_complaint(result, browser, tmp_path):
    path = tmp_path / "result.html"
    path.write_text(page(result), encoding="utf-8")
    browser.open(path, width=380)
    assert browser.evaluate("document.documentElement.scrollWidth") == 380
    assert browser.evaluate("window.broken") is None
    assert browser.evaluate(
        "[...document.querySelectorAll('svg')].map(svg => svg.querySelectorAll('circle').length)"
    ) == [
        3,
        2,
    ]
    assert browser.evaluate("document.querySelectorAll('details table').length") == 1
    assert "helps trees" in browser.evaluate("document.body.textContent")
    assert browser.complaints == []
    assert browser.requests == []


def test_the_drawing_keeps_points_and_numbers_apart(result, browser, tmp_path):
    path = tmp_path / "result.html"
    path.write_text(page(result), encoding="utf-8")
    browser.open(path)
    ends = browser.evaluate(
        "(svg => [Math.max(...[...svg.querySelectorAll('line:not(.axis)')].map(e => e.getBoundingClientRect().right)),"
        " Math.min(...[...svg.querySelectorAll('text[text-anchor=end]')].map(e => e.getBoundingClientRect().left))])"
        "(document.querySelector('svg'))"
    )
    assert ends[0] < ends[1]


def test_equal_settings_of_arms_are_said_once(result):
    assert page(result).count("leaves 31") == 1
    other = copy.deepcopy(result)
    other["rankers"]["trees"]["worse"]["params"] = {"leaves": 7}
    assert page(other).count("leaves 31") == 1
    assert page(other).count("leaves 7") == 1


def test_within_a_report_its_headings_are_lower(result):
    parts = "".join(sections(result, level=3))
    assert "<h3>" in parts
    assert "<h2>" not in parts
