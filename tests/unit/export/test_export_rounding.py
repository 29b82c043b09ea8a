"""8-bit weights: exact in every kernel, and rounded so that errors cancel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_plugin.export.rounding import ACTIVATION_MAX, PAIR_LIMIT, WEIGHT_MAX, largest_pair_sum, round_weights

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")


def worst_weights(kind, rows=64, columns=8):
    """Weights that would saturate if they were simply scaled to the full range."""
    random = np.random.default_rng(0)
    return {
        "all the same": np.ones((rows, columns)),
        "all the same, negative": -np.ones((rows, columns)),
        "large pairs": np.where(np.arange(rows)[:, None] % 8 < 2, 1.0, 0.01) * np.ones((1, columns)),
        "random": random.standard_normal((rows, columns)),
        "odd rows": random.standard_normal((rows - 1, columns)),
    }[kind]


def moments(rows):
    """Strongly correlated inputs, so that much is made good in later rows."""
    inputs = np.random.default_rng(1).standard_normal((500, 4)) @ np.random.default_rng(2).standard_normal((4, rows))
    return inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("kind", ["all the same", "all the same, negative", "large pairs", "random", "odd rows"])
def test_the_kernel_of_this_processor_gives_exact_products_for_the_worst_activations(kind, measured):
    weights = worst_weights(kind)
    codes, _ = round_weights(weights, moments(len(weights)) if measured else None)
    # For each column, activations that add up all its positive, or all its negative, weights.
    activations = np.concatenate([(codes > 0).T, (codes < 0).T]).astype(np.uint8) * ACTIVATION_MAX
    exact = activations.astype(np.int64) @ codes.astype(np.int64)
    np.testing.assert_array_equal(product(activations, codes), exact)


def test_codes_that_break_the_bound_are_what_the_bound_is_for():
    """On processors that clip, the bound is what keeps products exact; elsewhere they are exact without it."""
    codes = np.full((64, 8), WEIGHT_MAX, dtype=np.int8)
    assert largest_pair_sum(codes) == 2 * WEIGHT_MAX > PAIR_LIMIT
    assert largest_pair_sum(codes) * ACTIVATION_MAX > np.iinfo(np.int16).max
    assert np.iinfo(np.int16).max >= PAIR_LIMIT * ACTIVATION_MAX


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 33), spread=st.floats(0.01, 30), measured=st.booleans())
def test_codes_never_break_a_bound(seed, rows, spread, measured):
    random = np.random.default_rng(seed)
    weights = random.standard_normal((rows, 5)) * np.exp(random.standard_normal((rows, 1)) * min(spread, 5))
    codes, scales = round_weights(weights, moments(rows) if measured else None)
    assert codes.dtype == np.int8
    assert scales.dtype == np.float32
    assert np.abs(codes.astype(int)).max() <= WEIGHT_MAX
    assert largest_pair_sum(codes) <= PAIR_LIMIT


def test_measured_rounding_gives_smaller_errors_of_the_product_than_nearest_rounding():
    random = np.random.default_rng(3)
    inputs = random.standard_normal((2000, 32)) @ random.standard_normal((32, 32))  # correlated
    weights = random.standard_normal((32, 16))

    def error(moments):
        codes, scales = round_weights(weights, moments)
        return np.square(inputs @ (codes * scales - weights)).mean()

    assert error(inputs.T @ inputs / len(inputs)) < 0.6 * error(None)


def test_zero_columns_and_inputs_that_never_vary_give_finite_codes():
    codes, scales = round_weights(np.zeros((6, 3)), np.zeros((6, 6)))
    assert not codes.any()
    assert np.isfinite(scales).all()


def product(activations, codes):
    """uint8 x int8 as an artifact computes it."""
    helper, kind, constant = onnx.helper, onnx.TensorProto, onnx.numpy_helper.from_array
    one = np.ones(codes.shape[1], np.float32)
    constants = {"w": codes, "one": np.float32(1), "scales": one, "zero": np.uint8(0)}
    node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "scales", "zero"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", kind.UINT8, ["rows", len(codes)])],
        [helper.make_tensor_value_info("y", kind.FLOAT, ["rows", codes.shape[1]])],
        [constant(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": activations})[0]
