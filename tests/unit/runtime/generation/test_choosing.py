"""Logits -> tokens."""

import numpy as np
import pytest

from llmrec_plugin.runtime.generation.choosing import draw, draws_of, log_normalizers, log_probabilities, repeated
from llmrec_plugin.specs import Decoding


def test_log_probabilities_are_those_of_softmax():
    logits = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32) * 20
    np.testing.assert_allclose(np.exp(log_probabilities(logits)).sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        log_normalizers(logits), np.log(np.exp(logits.astype(np.float64)).sum(axis=1)), rtol=1e-6
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_told_and_its_neighbor_is_not(value):
    logits = np.zeros((2, 4), dtype=np.float32)
    logits[0, 1] = value
    assert np.isfinite(log_normalizers(logits)).tolist() == [False, True]


def test_draws_depend_on_both_seeds_and_nothing_else():
    one = draws_of(Decoding(method="sample", seed=1, max_new_tokens=8), 5)
    assert one.tolist() == draws_of(Decoding(method="sample", seed=1, max_new_tokens=8), 5).tolist()
    assert one.tolist()[:4] == draws_of(Decoding(method="sample", seed=1, max_new_tokens=4), 5).tolist()
    assert one.tolist() != draws_of(Decoding(method="sample", seed=2, max_new_tokens=8), 5).tolist()
    assert one.tolist() != draws_of(Decoding(method="sample", seed=1, max_new_tokens=8), 2**63 - 1).tolist()


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(method="sample"),
        Decoding(method="sample", temperature=0.5),
        Decoding(method="sample", top_k=3),
        Decoding(method="sample", top_p=0.7),
        Decoding(method="sample", top_k=5, top_p=0.8, temperature=1.5),
    ],
)
def test_draws_follow_the_distribution_of_transformers(decoding):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process

    logits = np.random.default_rng(3).standard_normal(12).astype(np.float32) * 1.5
    scores = torch.tensor(logits)[None]
    scores = logits_process.TemperatureLogitsWarper(decoding.temperature)(None, scores)
    if decoding.top_k:
        scores = logits_process.TopKLogitsWarper(decoding.top_k)(None, scores)
    if decoding.top_p < 1:
        scores = logits_process.TopPLogitsWarper(decoding.top_p)(None, scores)
    expected = torch.softmax(scores[0], -1).numpy()
    numbers = (np.arange(20_000) + 0.5) / 20_000
    counts = np.bincount([draw(logits, decoding, float(number)) for number in numbers], minlength=12)
    np.testing.assert_allclose(counts / 20_000, expected, atol=2e-4)


def test_what_would_repeat_an_ngram_is_found():
    assert repeated([1, 2, 3, 1, 2], 3) == [3]
    assert repeated([1, 2, 3, 1, 2], 0) == []
    assert repeated([4, 5], 3) == []
    assert sorted(repeated([4, 5, 4], 1)) == [4, 4, 5]
    assert repeated([1, 2, 1], 2) == [2]
