"""The harness tells what helps from what does not, on data where it is known."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from ranking_data import dataset, knows, knows_the_answer, noise

from llmrec_plugin.errors import InputError
from llmrec_plugin.evaluation.experiment import Arm, Plan, measure
from llmrec_plugin.evaluation.features import FunctionSet, Noise, Shuffled, Stale
from llmrec_plugin.evaluation.page import page
from llmrec_plugin.evaluation.rankers import DeepFm, LambdaMart
from llmrec_plugin.evaluation.report import table
from llmrec_plugin.evaluation.summary import summary
from llmrec_plugin.evaluation.windows import Catalogue, LeakError, Rows, windows
from llmrec_plugin.interactions import split_dataset

PLAN = Plan(seeds=4, negatives=30, validation_negatives=40, most_training_lists=200, most_lists=80)
TREES = LambdaMart(trees=25, grid=({"num_leaves": 6, "min_data_in_leaf": 50},))


def function_set(function, **options):
    return FunctionSet(name=function.__name__, function=function, options=options)


def lists(*, timed, seed=0):
    data = dataset(timed=timed, seed=seed)
    catalogue = Catalogue.of(data)
    return windows(catalogue, split_dataset(data), list_events=6)


def arms():
    known = function_set(knows)
    permutation = np.random.default_rng(0).permutation(120)
    return [
        Arm(name="base"),
        Arm(name="taste", sets=(known,)),
        Arm(name="taste, shuffled", sets=(Shuffled(inner=known, permutation=permutation),), control_of="taste",
            control="shuffled"),
        Arm(name="taste, random", sets=(Noise(inner=known, seed=1),), control_of="taste", control="random"),
        Arm(name="noise", sets=(function_set(noise),)),
    ]  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["timed", "untimed"])
def result(request):
    train, validation, test = lists(timed=request.param)
    perfect = {
        name: {str(test.catalogue.items[item]): 1.0 for item in test.relevant[query]}
        for query, name in enumerate(test.names())
    }
    measured = measure(train, validation, test, arms(), [TREES], PLAN, runs={"oracle": perfect})
    return summary(measured, arms(), PLAN, test)


def gain(result, arm, ranker="lightgbm"):
    return result["rankers"][ranker][arm]["difference"]["all"]["ndcg"]


def test_a_feature_that_helps_is_found(result):
    assert gain(result, "taste")["low"] > 0.1
    assert gain(result, "taste")["low"] <= gain(result, "taste")["mean"] <= gain(result, "taste")["high"]


@pytest.mark.parametrize("arm", ["noise", "taste, shuffled", "taste, random"])
def test_what_means_nothing_shows_no_gain(result, arm):
    assert gain(result, arm)["low"] <= 0
    assert gain(result, arm)["mean"] < gain(result, "taste")["mean"] / 5


def test_an_arm_is_compared_with_its_controls(result):
    over = result["rankers"]["lightgbm"]["taste"]["over_control"]
    assert set(over) == {"taste, shuffled", "taste, random"}
    assert all(difference["all"]["ndcg"]["low"] > 0 for difference in over.values())


def test_a_run_from_outside_is_measured_by_the_same_rules(result):
    oracle = result["baselines"]["oracle"]["all"]
    assert oracle["ndcg"]["mean"] == pytest.approx(1)
    assert oracle["auc"]["mean"] == pytest.approx(1)
    assert result["baselines"]["random"]["all"]["auc"]["mean"] == pytest.approx(0.5, abs=0.08)
    assert "popularity" in result["baselines"]


def test_a_slice_without_lists_has_no_numbers_and_the_others_add_up(result):
    assert set(result["slices"]) >= {"all", "warm items", "cold items", "warm users", "cold users"}
    of_users = sum(result["slices"][name]["lists"] for name in ("warm users", "tail users", "cold users"))
    assert of_users == result["protocol"]["lists"]
    for name, about in result["slices"].items():
        value = result["rankers"]["lightgbm"]["base"]["metrics"][name]["ndcg"]["mean"]
        assert (value is None) == (about["lists"] == 0)


def test_the_result_is_json_and_a_table(result):
    assert json.loads(json.dumps(result)) == result
    shown = table(result)
    assert "lightgbm: taste, shuffled" in shown
    assert "ndcg@10 - base" in shown
    assert max(map(len, shown.splitlines()[:-2])) < 120


def test_the_page_is_well_formed_and_needs_nothing_from_outside(result):
    text = page(result)
    root = ElementTree.fromstring(text.partition("\n")[2])
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert {"svg", "circle", "table"} <= tags
    assert not tags & {"script", "link", "img", "iframe", "object", "image", "use"}
    outside = {"src", "href", "{http://www.w3.org/1999/xlink}href"}
    assert not [name for element in root.iter() for name in element.attrib if name in outside]
    assert "url(" not in text
    assert "@import" not in text
    assert "<b>taste</b> helps lightgbm" in text
    assert "<b>noise</b> shows no effect on lightgbm" in text


def test_names_are_escaped_in_the_page(result):
    changed = json.loads(json.dumps(result).replace("taste", "<script>&"))
    ElementTree.fromstring(page(changed).partition("\n")[2])


def test_the_same_seed_gives_the_same_numbers():
    train, validation, test = lists(timed=False)
    plan = replace(PLAN, seeds=1, most_lists=20)
    first, again = (measure(train, validation, test, arms()[:2], [TREES], plan) for _ in range(2))
    for key, values in first.scores.items():
        np.testing.assert_array_equal(values, again.scores[key])
    other = measure(train, validation, test, arms()[:1], [TREES], replace(plan, seed=5, most_lists=80))
    assert other.lists != first.lists


def test_a_feature_that_looks_ahead_stops_the_run():
    train, validation, test = lists(timed=True)
    with pytest.raises(LeakError, match=r"'knows_the_answer'.*later than their labels"):
        measure(train, validation, test, [Arm(name="base"), Arm(name="x", sets=(function_set(knows_the_answer),))],
                [TREES], PLAN)  # fmt: skip


def test_deepfm_finds_the_feature_and_reads_ids():
    train, validation, test = lists(timed=False)
    ranker = DeepFm(epochs=5, batch=256, hidden=(16,), grid=({"learning_rate": 1e-2, "weight_decay": 1e-4},))
    plan = replace(PLAN, seeds=1, negatives=20)
    measured = measure(train, validation, test, arms()[:2], [ranker], plan)
    assert gain(summary(measured, arms()[:2], plan, test), "taste", "deepfm")["mean"] > 0.05
    again = measure(train, validation, test, arms()[:1], [ranker], plan)
    np.testing.assert_array_equal(measured.scores["deepfm", "base"], again.scores["deepfm", "base"])


def test_candidates_of_a_recall_stage_have_a_ceiling():
    train, validation, test = lists(timed=True)
    plan = replace(PLAN, seeds=1, candidates=40)
    measured = measure(train, validation, test, arms()[:1], [TREES], plan)
    assert 0.2 < measured.ceiling < 1
    result = summary(measured, arms()[:1], plan, test)
    assert "40 candidates of a recall stage" in table(result)
    assert result["rankers"]["lightgbm"]["base"]["metrics"]["all"]["recall"]["mean"] <= measured.ceiling


def test_stale_features_end_in_the_middle_of_training():
    _, _, test = lists(timed=True)
    seen = []

    def spy(window, rows):
        seen.append(window.history.time.max())
        return noise(window, rows)

    moment = int(np.median(test.snapshot.time))
    rows = Rows.of([np.arange(3)] * len(test))
    Stale(inner=function_set(spy), moment=moment).columns(test, rows)
    assert seen[0] < moment


def test_data_without_test_lists_is_refused():
    train, validation, test = lists(timed=True)
    with pytest.raises(InputError, match="no lists"):
        measure(train, validation, test.part(np.zeros(0, dtype=int)), arms()[:1], [TREES], PLAN)
