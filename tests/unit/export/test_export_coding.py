"""How activations become 8 bits."""

import numpy as np
import pytest

from llmrec_plugin.export.calibration import Statistics
from llmrec_plugin.export.coding import GELU_MIN, Coding, choose


def statistics(values):
    return Statistics(sample=values, low=values.min(0), high=values.max(0))


def gelu(values):
    from math import erf

    return (values * (1 + np.vectorize(erf)(values / np.sqrt(2))) / 2).astype(np.float32)


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def weights(random):
    return [random.standard_normal((16, 8)).astype(np.float32)]


def relative_error(coding, values, weights):
    exact = coding.even(values) @ coding.widen(weights)
    return np.abs(coding.decoded(values) @ coding.widen(weights) - exact).max() / np.abs(exact).max()


def test_a_channel_far_larger_than_the_others_no_longer_takes_their_range(random, weights):
    values = random.standard_normal((500, 16)).astype(np.float32)
    values[:, 3] = values[:, 3] * 100 + 300
    evened = choose(statistics(values), weights, normalized=True, bounded=False)
    plain = choose(statistics(values), weights, normalized=False, bounded=False)
    assert evened.scale is not None
    assert plain.scale is None
    others = [weights[0].copy()]
    others[0][3] = 0  # what the large channel itself contributes is not the point

    def error(coding):
        exact = values @ others[0]
        widened = coding.widen(others[0])
        found = coding.decoded(values) @ widened + (0 if coding.shift is None else coding.shift @ others[0])
        return np.square(found - exact).mean()

    assert error(evened) < 0.01 * error(plain)


def test_even_channels_get_a_constant_step_and_uneven_tokens_one_for_each(random, weights):
    values = random.uniform(-1, 1, (500, 16)).astype(np.float32)
    assert choose(statistics(values), weights, normalized=True, bounded=False).step is not None
    values[::7] *= 50
    assert choose(statistics(values), weights, normalized=True, bounded=False).step is None


def test_a_constant_step_represents_every_value_that_calibration_saw(random, weights):
    values = random.uniform(-3, 5, (500, 16)).astype(np.float32)
    coding = choose(statistics(values), weights, normalized=True, bounded=False)
    assert coding.step is not None
    assert np.abs(coding.decoded(values) - coding.even(values)).max() <= coding.step / 2 * 1.001


def test_bounded_values_use_nearly_all_codes_for_what_is_positive(random, weights):
    values = gelu(random.standard_normal((500, 16)) * 2)
    coding = choose(statistics(values), weights, normalized=False, bounded=True)
    assert coding.minimum == GELU_MIN
    assert coding.zero_point < 32
    assert relative_error(coding, values, weights[0]) < 0.7 * relative_error(Coding(), values, weights[0])


@pytest.mark.parametrize("size", [1e-30, 0.01, 1.0, 1000.0])
def test_the_smallest_bounded_value_has_a_code_beside_any_largest(size):
    coding = Coding(zero_point=16, minimum=GELU_MIN)
    token = np.array([[size, GELU_MIN, 0.0]], np.float32)
    step = max(size / coding.codes_above, coding.smallest_step)
    assert np.abs(coding.decoded(token) - token).max() <= step / 2 * 1.001


def test_a_token_of_zeros_stays_zero():
    assert not Coding().decoded(np.zeros((2, 4), np.float32)).any()


def test_a_tokens_codes_do_not_depend_on_the_tokens_around_it(random, weights):
    values = random.standard_normal((50, 16)).astype(np.float32) * np.arange(1, 51)[:, None]
    for coding in (
        Coding(),
        choose(statistics(values), weights, normalized=True, bounded=False),
        Coding(zero_point=16, minimum=GELU_MIN),
    ):
        np.testing.assert_array_equal(coding.decoded(values)[7], coding.decoded(values[7:8])[0])
