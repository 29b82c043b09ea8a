"""Norms, neighbors, maps and drift on vectors whose answers are known."""

import numpy as np
import pytest

from llmrec_plugin.reporting.measures import cosines, histogram, neighbors, overlap, project


def vectors(rows=200, dims=12, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, dims)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_neighbors_are_those_of_a_plain_search(metric):
    found = vectors(700)  # more than one block
    near = neighbors(found, metric, 4)
    exact = found.astype(np.float64)
    for row in (0, 511, 512, 699):
        if metric == "euclidean":
            similar = -np.linalg.norm(exact - exact[row], axis=1)
        else:
            lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(exact[row]) if metric == "cosine" else 1
            similar = exact @ exact[row] / lengths
        similar[row] = -np.inf
        order = np.argsort(-similar)[:4]
        np.testing.assert_array_equal(near.rows[row], order)
        np.testing.assert_allclose(near.similarities[row], similar[order], atol=1e-6)


def test_no_item_is_its_own_neighbor_and_equal_ones_come_in_order():
    near = neighbors(np.ones((4, 3)), "euclidean", 9)
    assert near.rows.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert neighbors(np.ones((1, 3)), "dot").rows.shape == (1, 0)


def test_a_vector_of_zeros_is_near_to_nothing_by_cosine():
    near = neighbors(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.1]]), "cosine", 1)
    assert near.rows[1:].tolist() == [[2], [1]]
    assert near.similarities[0].tolist() == [0]


@pytest.mark.parametrize("shape", [(300, 6), (6, 300)])
def test_the_map_is_the_one_of_a_singular_value_decomposition(shape):
    found = vectors(*shape) * np.linspace(5, 1, shape[1])
    projection = project(found, "dot")
    centered = found - found.mean(axis=0, dtype=np.float64)
    left, lengths, _ = np.linalg.svd(centered, full_matrices=False)
    expected = left[:, :2] * lengths[:2]
    np.testing.assert_allclose(np.abs(projection.points), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(projection.shares, (lengths**2 / (lengths**2).sum())[:2], rtol=1e-5)


def test_the_map_of_a_cosine_feature_is_one_of_directions():
    found = vectors(50, 5)
    lengths = np.linspace(1, 30, 50)[:, None].astype(np.float32)
    np.testing.assert_allclose(project(found * lengths, "cosine").points, project(found, "cosine").points, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (3, 2)])
def test_few_vectors_have_a_map_too(shape):
    projection = project(np.ones(shape), "dot")
    assert projection.points.shape == (shape[0], 2)
    assert np.isfinite(projection.points).all()
    assert projection.shares == (0, 0)


def test_a_rotation_changes_cosines_and_keeps_neighbors():
    found = vectors(100, 8)
    rotation, _ = np.linalg.qr(vectors(8, 8, seed=1))
    turned = found @ rotation
    assert abs(cosines(found, turned).mean()) < 0.5
    kept = overlap(*(neighbors(each, "cosine", 10).rows for each in (found, turned)))
    assert kept.mean() > 0.99
    other = overlap(neighbors(found, "cosine", 10).rows, neighbors(vectors(100, 8, seed=2), "cosine", 10).rows)
    assert other.mean() < 0.3


def test_cosines_with_zeros_are_undefined():
    assert np.isnan(cosines(np.zeros((1, 2)), np.ones((1, 2)))[0])
    assert cosines(np.ones((1, 2)), 3 * np.ones((1, 2)))[0] == pytest.approx(1)


def test_a_histogram_counts_everything():
    counts, edges = histogram(vectors(1000, 1)[:, 0])
    assert sum(counts) == 1000
    assert len(edges) == len(counts) + 1
    assert sum(histogram(np.full(3, 7.0)).counts) == 3
