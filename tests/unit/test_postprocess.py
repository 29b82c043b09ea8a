"""Vectors as feature values."""

import math

import numpy as np
import pytest
from samples import embedding, history

from llmrec_plugin.pipeline.postprocess import combine, finish, normalize, recency_weights, similarity

VECTORS = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)


def unit(vectors):
    return vectors / np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)


def test_vectors_stay_as_they_are_when_nothing_is_declared():
    np.testing.assert_array_equal(finish(embedding(normalize=False), VECTORS, already_normalized=False), VECTORS)


def test_vectors_that_are_normalized_already_are_not_touched():
    np.testing.assert_array_equal(finish(embedding(), VECTORS, already_normalized=True), VECTORS)


def test_vectors_are_normalized_when_declared():
    np.testing.assert_allclose(finish(embedding(), VECTORS, already_normalized=False), unit(VECTORS), rtol=1e-6)


@pytest.mark.parametrize("already", [True, False])
def test_a_reduction_keeps_the_first_components_and_normalizes_again(already):
    feature = embedding(dims=3, reduction="prefix")
    got = finish(feature, VECTORS, already_normalized=already)
    np.testing.assert_allclose(got, unit(VECTORS[:, :3]), rtol=1e-6)


def test_a_reduction_without_normalization_only_cuts():
    feature = embedding(dims=3, reduction="prefix", normalize=False)
    got = finish(feature, VECTORS, already_normalized=True)
    np.testing.assert_array_equal(got, VECTORS[:, :3])
    assert got.flags.c_contiguous
    assert got.dtype == np.float32


def test_a_zero_row_stays_zero():
    vectors = np.array([[0, 0], [3, 4]], dtype=np.float32)
    np.testing.assert_allclose(normalize(vectors), [[0, 0], [0.6, 0.8]], rtol=1e-6)


def test_normalizing_works_at_the_ends_of_float32():
    vectors = np.array([[3e38, 3e38], [1e-40, 0]], dtype=np.float32)
    np.testing.assert_allclose(normalize(vectors), [[math.sqrt(0.5)] * 2, [1, 0]], rtol=1e-6)


def test_a_row_is_normalized_alike_alone_and_among_others():
    alone = np.concatenate([normalize(row[None]) for row in VECTORS])
    np.testing.assert_array_equal(normalize(VECTORS), alone)


def test_recency_weights_halve_every_half_life_and_sum_to_one():
    np.testing.assert_allclose(recency_weights(3, 1.0), [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(recency_weights(3, 2.0) * (1 + 0.5**0.5 + 0.5), [1, 0.5**0.5, 0.5])
    np.testing.assert_allclose(recency_weights(4, None), [0.25] * 4)


PAIR = [np.array([1, 0], dtype=np.float32), np.array([0, 1], dtype=np.float32)]


def test_events_are_averaged_by_recency():
    # half_life 1: the newest weighs 2/3, the other 1/3
    got = combine(history(normalize=False, half_life=1.0), PAIR)
    np.testing.assert_allclose(got, [2 / 3, 1 / 3], rtol=1e-6)
    assert got.dtype == np.float32


def test_an_averaged_history_has_unit_norm_if_declared():
    np.testing.assert_allclose(combine(history(half_life=1.0), PAIR), [2 / 5**0.5, 1 / 5**0.5], rtol=1e-6)


def test_all_events_weigh_alike_without_a_half_life():
    np.testing.assert_allclose(combine(history(normalize=False), PAIR), [0.5, 0.5])


def test_opposite_events_give_the_zero_vector_not_a_random_direction():
    np.testing.assert_array_equal(combine(history(), [PAIR[0], -PAIR[0]]), [0, 0])


@pytest.mark.parametrize("feature", [embedding(), history(half_life=1.0)])
def test_a_single_vector_stays_as_it_is(feature):
    np.testing.assert_array_equal(combine(feature, PAIR[:1]), PAIR[0])


def dot(left, right):
    return sum(float(a) * float(b) for a, b in zip(left, right, strict=True))


FORMULAS = {
    "dot": dot,
    "cosine": lambda left, right: dot(left, right) / math.sqrt(dot(left, left) * dot(right, right)),
    "euclidean": lambda left, right: math.dist(left, right),
}


@pytest.mark.parametrize("metric", FORMULAS)
def test_similarity_is_the_formula_row_by_row(metric):
    left, right = VECTORS[:10], VECTORS[10:]
    got = similarity(left, right, metric)
    assert got.dtype == np.float32
    expected = [FORMULAS[metric](a.tolist(), b.tolist()) for a, b in zip(left, right, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    alone = [similarity(a[None], b[None], metric)[0] for a, b in zip(left, right, strict=True)]
    np.testing.assert_array_equal(got, np.array(alone))


def test_the_cosine_of_a_zero_vector_is_nan_and_other_rows_are_not_touched():
    zero = np.array([[0, 0], [1, 0]], dtype=np.float32)
    other = np.array([[1, 0], [1, 0]], dtype=np.float32)
    np.testing.assert_array_equal(similarity(zero, other, "cosine"), [np.nan, 1])
    np.testing.assert_array_equal(similarity(zero, other, "dot"), [0, 1])


def test_a_cosine_never_leaves_its_range():
    vectors = np.random.default_rng(1).standard_normal((500, 7)).astype(np.float32)
    assert similarity(vectors, vectors * 3, "cosine").max() <= 1
    assert similarity(vectors, -vectors, "cosine").min() >= -1
