"""Values that were read -> figures, with what must stay private and what must not be counted."""

from types import SimpleNamespace

import numpy as np
import pytest

from llmrec_plugin import Choice, Json, Scores, ShortText, Tags, TokenFeature
from llmrec_plugin.reporting.summaries import added_up, drift_figures, token_figures, vector_figures
from llmrec_plugin.runtime.cache import RunReport


def stored(values, keys=None):
    return SimpleNamespace(keys=keys or [f"k{number}" for number in range(len(values))], values=values)


def vectors(*rows):
    return [None if row is None else np.array(row, dtype=np.float32) for row in rows]


def test_zeros_nulls_and_what_is_no_number_stay_out_of_the_norms():
    found = vector_figures(stored(vectors([3, 4], None, [0, 0], [np.nan, 1], [0, 1])), "dot", {"k0": "a text"})
    assert (found.dims, found.zeros, found.not_finite) == (2, 1, 1)
    assert (found.smallest, found.mean, found.largest) == (1, 3, 5)
    assert sum(found.norms.counts) == 2
    assert found.map.keys == ["k0", "k2", "k4"]
    assert found.map.texts == ["a text", "", ""]
    assert found.map.neighbors[2] == [0, 1]
    assert found.map.similarities[2] == [4, 0]
    assert vector_figures(stored(vectors([np.inf, 1])), "dot", None) is None


def test_one_vector_and_only_zeros_have_figures_too():
    alone = vector_figures(stored(vectors([1, 0])), "cosine", None)
    assert alone.map.neighbors == [[]]
    assert alone.map.texts is None
    nothing = vector_figures(stored(vectors([0, 0], [0, 0])), "cosine", None)
    assert (nothing.zeros, nothing.largest) == (2, 0)


def tokens(output):
    return TokenFeature(name="item_words", entity="item", model="writer", output=output, text="{title}")


@pytest.mark.parametrize(
    ("output", "values"),
    [(ShortText(), ["a private text", "another"]), (Json(schema={"type": "object"}), ['{"a":"private"}'])],
)
def test_free_texts_are_counted_and_not_shown_unless_asked(output, values):
    found = token_figures(tokens(output), values, texts=False)
    assert (found.values, found.distinct, found.most_frequent) == (len(values), len(values), None)
    assert found.mean_size == pytest.approx(np.mean([len(value) for value in values]))
    assert ("a private text" in str(token_figures(tokens(output), values, texts=True))) == (found.output == "text")
    assert "private" not in str(found)


def test_tags_and_choices_are_of_a_declared_vocabulary_and_shown():
    tags = token_figures(tokens(Tags(vocabulary=("a", "b", "c"))), [["a", "b"], ["a"], []], texts=False)
    assert tags.most_frequent == [("a", 2), ("b", 1)]
    assert (tags.values, tags.mean_size) == (3, 1)
    choice = token_figures(tokens(Choice(options=("yes", "no"))), ["yes", "yes", "no"], texts=False)
    assert choice.most_frequent == [("yes", 2), ("no", 1)]
    assert choice.mean_size is None


@pytest.mark.parametrize(("of", "values"), [("yes", [0.25, 0.75]), (None, [[0.25, 0.75]])])
def test_scores_have_a_histogram(of, values):
    found = token_figures(tokens(Scores(answers=("yes", "no"), of=of)), values, texts=False)
    assert sum(found.numbers.counts) == 2
    assert (found.numbers.edges[0], found.numbers.edges[-1]) == (0, 1)
    assert found.most_frequent is None


ABOUT = {"served": "a", "other": "b", "role": "waits"}


def test_drift_is_of_entities_with_a_value_under_both():
    left = stored(vectors([1, 0], [0.9, 0.1], [0, 1], None, [1, 1]))
    right = stored(vectors([1, 0], [0.9, 0.1], [1, 0.05], [1, 1], None))
    found = drift_figures(left, right, "cosine", **ABOUT)
    assert (found.compared, found.equal, found.overlap_of) == (3, 2, 2)
    assert found.overlap == 1
    assert found.most_moved == []
    assert found.mean_cosine == pytest.approx((2 + 0.05 / np.hypot(1, 0.05)) / 3)


def test_vectors_of_other_lengths_have_neighbors_in_common_and_no_cosine():
    random = np.random.default_rng(0)
    one = random.normal(size=(30, 4))
    wider = np.concatenate([one, np.zeros((30, 3))], axis=1)
    wider[0] = -wider[0]
    found = drift_figures(stored(vectors(*one)), stored(vectors(*wider)), "cosine", **ABOUT)
    assert found.cosines is None
    assert found.mean_cosine is None
    assert 0.8 < found.overlap < 1
    assert found.most_moved[0][0] == "k0"
    assert sum(found.overlaps) == found.compared == 30


def test_words_are_equal_or_not():
    found = drift_figures(stored([["a"], ["b"], None]), stored([["a"], ["c"], ["d"]]), None, **ABOUT)
    assert (found.compared, found.equal, found.overlap) == (2, 1, None)


def test_runs_of_other_features_are_left_out_and_modes_apart():
    def run(feature, mode, rows):
        report = RunReport.begin(feature, "f", mode)
        return report.plus(RunReport(**{**report.__dict__, "rows": rows, "seconds": 0.5}))

    found = added_up([run("a", "batch", 3), run("a", "batch", 4), run("a", "push", 1), run("b", "batch", 9)], {"a"})
    assert [(each.mode, each.runs, each.rows, each.seconds) for each in found] == [
        ("batch", 2, 7, 1.0),
        ("push", 1, 1, 0.5),
    ]
