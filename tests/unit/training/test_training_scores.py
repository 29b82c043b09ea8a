"""Scores on cases that are counted by hand."""

import numpy as np
import pytest

from llmrec_plugin.training.scores import best_thresholds, f1_scores, nearest, rouge_l


def test_f1_over_pairs_and_over_labels():
    truth = np.array([[1, 0, 0], [1, 1, 0]], dtype=bool)
    found = np.array([[1, 0, 1], [0, 1, 0]], dtype=bool)
    scores = f1_scores(truth, found)
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["micro_f1"] == pytest.approx(2 / 3)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)  # the third label is in no row
    assert scores["labels_per_row"] == pytest.approx(1.5)
    assert f1_scores(truth, np.zeros_like(truth))["micro_f1"] == 0


def test_a_threshold_separates_and_rare_labels_share_one():
    truth = np.zeros((40, 2), dtype=bool)
    truth[:20, 0] = truth[:2, 1] = True
    probabilities = np.full((40, 2), 0.1, dtype=np.float32)
    probabilities[:20, 0] = 0.3
    probabilities[:2, 1] = 0.9
    own, shared = best_thresholds(truth, probabilities)
    assert 0.1 < own < 0.3
    assert shared == own  # of all pairs: 0.2 loses nothing
    assert ((probabilities >= [own, shared]) == truth).all()


def test_nearest_gives_rows_and_products_in_order():
    vectors = np.eye(4, dtype=np.float32)
    rows, products = nearest(np.array([[0.1, 0.9, 0, 0.3]], dtype=np.float32), vectors, 2)
    assert rows.tolist() == [[1, 3]]
    np.testing.assert_allclose(products, [[0.9, 0.3]])


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("police killed the gunman", "the gunman kill police", 0.5),
        ("fast web server", "Fast, Web-Server!", 1.0),
        ("a b c d", "a c", 2 * 2 / 6),
        ("one", "two", 0.0),
        ("", "", 0.0),
    ],
)
def test_rouge_l(reference, candidate, expected):
    assert rouge_l(reference, candidate) == pytest.approx(expected)
