"""What a reduced model costs, on vectors worked out by hand."""

import numpy as np
import pytest

from llmrec_plugin.errors import QualityError
from llmrec_plugin.export.quality import check, measure, nearest, overlap
from llmrec_plugin.export.texts import split

COUNT, DIMS = 60, 40


@pytest.fixture
def vectors():
    values = np.random.default_rng(0).standard_normal((COUNT, DIMS)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture
def texts():
    return split([f"text {number}" for number in range(2 * COUNT)], "here")


@pytest.fixture
def record(declare, tmp_path, texts):
    def record(exact, reduced, **changes):
        model = declare(tmp_path, dims=DIMS, **changes)
        return measure(model, texts, exact, reduced, batching=1e-7)

    return record


def test_equal_vectors_have_a_perfect_record(record, vectors):
    found = record(vectors, vectors)
    assert found.overlap_at_10 == 1
    assert found.cosine_min == pytest.approx(1, abs=1e-6)
    assert found.texts == COUNT
    assert found.texts_from == "here"


def test_the_worst_text_is_the_one_whose_vector_turned_most(record, vectors, texts):
    reduced = vectors.copy()
    reduced[7] = -reduced[7]
    found = record(vectors, reduced)
    assert found.worst_text == texts.measurement[7]
    assert found.cosine_min == pytest.approx(-1, abs=1e-6)
    assert found.cosine_mean == pytest.approx(1 - 2 / COUNT, abs=1e-6)
    assert found.overlap_at_10 < 1


def test_prefixes_are_powers_of_two_from_16_and_lose_neighbors(record, vectors):
    found = record(vectors, vectors).prefix
    assert list(found) == ["16", "32"]
    assert found["16"] < found["32"] < 1
    truth = nearest(vectors, "cosine")
    assert found["32"] == overlap(truth, nearest(vectors[:, :32], "cosine"))


def test_overlap_is_the_mean_share_of_true_neighbors():
    truth = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert overlap(truth, np.array([[4, 3, 9, 9], [5, 6, 7, 8]])) == pytest.approx((0.5 + 1) / 2)


def test_neighbors_follow_the_metric_the_model_was_trained_for():
    vectors = np.array([[1, 0], [10, 10], [1.1, 0.5], [-1, 0]], np.float32)
    assert nearest(vectors, "cosine")[0].tolist() == [2, 1, 3]
    assert nearest(vectors, "dot")[0].tolist() == [1, 2, 3]
    assert nearest(vectors, "euclidean")[0].tolist() == [2, 3, 1]


def test_a_text_is_not_its_own_neighbor(vectors):
    assert not (nearest(vectors, "cosine") == np.arange(COUNT)[:, None]).any()


def test_below_the_floor_the_error_tells_value_floor_worst_text_and_what_to_do(record, vectors, declare, tmp_path):
    reduced = np.random.default_rng(1).permutation(vectors)
    found = record(vectors, reduced, min_overlap=0.9)
    with pytest.raises(QualityError) as caught:
        check(declare(tmp_path, min_overlap=0.9), found)
    for part in (
        f"{found.overlap_at_10:.4f}",
        "min_overlap=0.9",
        repr(found.worst_text),
        "--texts",
        "Nothing was stored",
    ):
        assert part in str(caught.value)


def test_at_the_floor_a_model_passes(record, vectors, declare, tmp_path):
    found = record(vectors, vectors, min_overlap=1)
    check(declare(tmp_path, min_overlap=1), found)
