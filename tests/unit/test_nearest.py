"""Exact search over blocks of vectors, compared with plain numpy."""

import numpy as np
import pytest

from llmrec_plugin.pipeline import nearest as module
from llmrec_plugin.pipeline.nearest import Block, distances, nearest

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((1000, 12)).astype(np.float32)
KEYS = [f"k{number:04}".encode() for number in range(len(VECTORS))]
QUERY = RNG.standard_normal(12).astype(np.float32)


def _blocks(*sizes):
    start = 0
    for size in sizes:
        yield Block(KEYS[start : start + size], VECTORS[start : start + size])
        start += size


def _expected(metric):
    wide, query = VECTORS.astype(np.float64), QUERY.astype(np.float64)
    if metric == "dot":
        return -(wide @ query)
    if metric == "euclidean":
        return np.sqrt(((wide - query) ** 2).sum(axis=1))
    return 1 - (wide @ query) / np.sqrt((wide**2).sum(axis=1)) / np.sqrt((query**2).sum())


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("sizes", [(1000,), (1, 0, 999), (300, 300, 400)])
@pytest.mark.parametrize("count", [1, 10, 999, 1000, 5000])
def test_the_nearest_are_those_of_a_full_sort_however_the_table_is_cut(metric, sizes, count):
    found = nearest(_blocks(*sizes), QUERY, metric, count)
    expected = _expected(metric)
    order = np.argsort(expected)[:count]
    assert [key for key, _ in found] == [KEYS[i] for i in order]
    assert [distance for _, distance in found] == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_a_table_without_rows_has_no_nearest():
    assert nearest([], QUERY, "cosine", 3) == []
    assert nearest([Block([], np.empty((0, 12), np.float32))], QUERY, "cosine", 3) == []


def test_of_equal_distances_the_earlier_rows_are_taken():
    vectors = np.tile(VECTORS[:1], (600, 1))
    found = nearest([Block(KEYS[:300], vectors[:300]), Block(KEYS[300:600], vectors[300:])], QUERY, "euclidean", 5)
    assert [key for key, _ in found] == KEYS[:5]


def test_zeros_have_no_cosine_and_are_left_out():
    block = Block(KEYS[:3], np.array([[1, 0], [0, 0], [0, 1]], np.float32))
    query = np.array([1, 0], np.float32)
    assert nearest([block], query, "cosine", 3) == [(KEYS[0], 0.0), (KEYS[2], 1.0)]
    assert [key for key, _ in nearest([block], query, "dot", 3)] == [KEYS[0], KEYS[1], KEYS[2]]


def test_euclidean_distances_of_near_vectors_keep_their_digits():
    query = np.full(384, 10, np.float32)
    vectors = query + np.float32(1e-4) * np.eye(2, 384, dtype=np.float32)
    exact = np.linalg.norm((vectors.astype(np.float64) - query), axis=1)
    assert distances(Block(KEYS[:2], vectors), query, "euclidean") == pytest.approx(exact, rel=1e-6)
    assert distances(Block(KEYS[:1], query[None]), query, "euclidean") == [0]


def test_many_rows_are_compared_in_parts(monkeypatch):
    whole = distances(Block(KEYS, VECTORS), QUERY, "euclidean")
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 7)
    assert (distances(Block(KEYS, VECTORS), QUERY, "euclidean") == whole).all()
