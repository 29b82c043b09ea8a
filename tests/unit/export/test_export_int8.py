"""int8 surgery on small graphs with every kind of activation that an encoder has."""

import numpy as np
import pytest

from llmrec_plugin.export.calibration import calibrate
from llmrec_plugin.export.graph import POOLING
from llmrec_plugin.export.int8 import code_inputs, find_linears, quantize

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")

WIDTH, INNER = 32, 64


def block(seed=0, spread=1.0):
    """Layer normalization -> product -> GELU -> product without bias -> product behind the pooling.

    Args:
        seed: Of the weights.
        spread: How far the normalization's channels differ in size.
    """
    random = np.random.default_rng(seed)
    helper, kind = onnx.helper, onnx.TensorProto
    constants = {
        "gamma": np.exp(random.standard_normal(WIDTH) * spread),
        "beta": random.standard_normal(WIDTH),
        "up": random.standard_normal((WIDTH, INNER)) / 6,
        "up_bias": random.standard_normal(INNER),
        "down": random.standard_normal((INNER, WIDTH)) / 8,
        "axes": np.eye(WIDTH),
        "root": np.sqrt(2.0),
        "one": 1.0,
        "half": 0.5,
    }
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "gamma", "beta"], ["normal"], axis=-1, epsilon=1e-5),
        node("MatMul", ["normal", "up"], ["wide"]),
        node("Add", ["up_bias", "wide"], ["biased"]),
        node("Div", ["biased", "root"], ["scaled"]),
        node("Erf", ["scaled"], ["erf"]),
        node("Add", ["erf", "one"], ["share"]),
        node("Mul", ["biased", "share"], ["twice"]),
        node("Mul", ["twice", "half"], ["gelu"]),
        node("MatMul", ["gelu", "down"], ["narrow"]),
        node("MatMul", ["narrow", "axes"], ["embedding"], name=f"{POOLING}rotation"),
    ]
    shape = ["batch", "length", WIDTH]
    graph = helper.make_graph(
        nodes,
        "block",
        [
            helper.make_tensor_value_info("x", kind.FLOAT, shape),
            helper.make_tensor_value_info("input_ids", kind.INT64, ["batch", "length"]),
        ],
        [helper.make_tensor_value_info("embedding", kind.FLOAT, shape)],
        [onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def tokens(seed, texts, length=12):
    return np.random.default_rng(seed).standard_normal((texts, length, WIDTH)).astype(np.float32)


def feed(values):
    return {"x": values, "input_ids": np.zeros(values.shape[:2], np.int64)}


def run(graph, values):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {item.name for item in session.get_inputs()}
    return session.run(None, {name: value for name, value in feed(values).items() if name in names})[0]


@pytest.fixture
def reduced(tmp_path):
    """The integer form of `block`, and what the float32 form was coded with."""

    def reduced(keep=(), **options):
        graph = block(**options)
        onnx.save(graph, tmp_path / "graph.onnx")
        linears = find_linears(graph)
        names = [linear.activation for linear in linears]
        inputs = [feed(values[None]) for values in tokens(1, 40)]
        coded = code_inputs(graph, linears, calibrate(tmp_path / "graph.onnx", names, inputs, tmp_path))
        quantize(graph, coded, keep=keep)
        onnx.checker.check_model(graph)
        return graph, coded

    return reduced


def operators(graph):
    return [node.op_type for node in graph.graph.node]


def test_products_of_tokens_are_found_with_their_biases_and_those_behind_the_pooling_are_not():
    up, down = find_linears(block())
    assert (up.name, up.activation, up.output) == ("wide", "normal", "biased")
    assert (down.name, down.activation, down.output) == ("narrow", "gelu", "narrow")
    assert up.bias.any()
    assert not down.bias.any()


@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_the_integer_graph_gives_nearly_the_float_graphs_values_on_other_tokens(reduced, spread):
    graph, _ = reduced(spread=spread)
    assert operators(graph).count("MatMulIntegerToFloat") == 2
    values = tokens(7, 5)
    exact = run(block(spread=spread), values)
    error = run(graph, values) - exact
    assert 0 < np.square(error).mean() < 1e-3 * np.square(exact).mean()


def test_the_number_of_tokens_is_taken_once_for_all_products(reduced):
    graph, _ = reduced(spread=2.0)
    shapes = [list(node.input) for node in graph.graph.node if node.op_type == "Shape"]
    assert len(shapes) == 2  # (batch, length), and their product
    assert ["input_ids"] in shapes


def test_each_kind_of_activation_gets_its_coding(reduced):
    _, coded = reduced()
    assert coded["normal"].coding.scale is not None
    assert coded["gelu"].coding.minimum < 0
    assert coded["gelu"].coding.step is None


def test_weights_to_keep_stay_in_float32(reduced):
    graph, _ = reduced(keep=["narrow"])
    assert operators(graph).count("MatMulIntegerToFloat") == 1
    kept, _ = [item for item in graph.graph.initializer if item.name in ("down", "axes")]
    assert kept.name == "down"
    everything, _ = reduced(keep=["wide", "narrow"])
    np.testing.assert_array_equal(run(everything, tokens(7, 2)), run(block(), tokens(7, 2)))


def test_replaced_weights_leave_the_file(reduced):
    names = {item.name for item in reduced()[0].graph.initializer}
    assert {"up", "down", "up_bias"}.isdisjoint(names)
    assert {"wide/int8", "narrow/int8", "axes"} <= names


def test_weights_that_two_products_share_are_coded_for_each(tmp_path):
    graph = block()
    second = onnx.helper.make_node("MatMul", ["x", "up"], ["raw"])
    graph.graph.node.append(second)
    graph.graph.output.append(onnx.ValueInfoProto(name="raw"))
    onnx.save(graph, tmp_path / "graph.onnx")
    linears = find_linears(graph)
    names = [linear.activation for linear in linears]
    inputs = [feed(values[None]) for values in tokens(1, 40)]
    coded = code_inputs(graph, linears, calibrate(tmp_path / "graph.onnx", names, inputs, tmp_path))
    quantize(graph, coded)
    values = tokens(7, 2)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in block().graph.initializer}
    raw = session.run(["raw"], feed(values))[0]
    exact = values @ constants["up"]
    assert np.square(raw - exact).mean() < 1e-3 * np.square(exact).mean()


def test_a_text_has_the_same_values_alone_and_beside_texts_of_any_size(reduced):
    graph, _ = reduced()
    values = tokens(7, 4)
    values[1] *= 1000
    np.testing.assert_array_equal(run(graph, values)[0], run(graph, values[:1])[0])


def test_equal_graphs_and_tokens_give_equal_bytes(reduced):
    assert reduced()[0].SerializeToString() == reduced()[0].SerializeToString()


def test_the_mean_of_a_product_is_kept_though_weights_are_rounded(reduced):
    values = tokens(1, 40)  # what was calibrated on
    error = run(reduced()[0], values) - run(block(), values)
    assert np.abs(error.mean((0, 1))).max() < 0.2 * np.sqrt(np.square(error).mean())


def test_a_sample_of_tokens_is_kept_and_the_range_is_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr("llmrec_plugin.export.calibration.TOKENS", 100)
    onnx.save(block(), tmp_path / "graph.onnx")
    values = tokens(1, 40)
    seen = calibrate(tmp_path / "graph.onnx", ["normal"], [feed(text[None]) for text in values], tmp_path)["normal"]
    normal = (values - values.mean(-1, keepdims=True)) / np.sqrt(values.var(-1, keepdims=True) + 1e-5)
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in block().graph.initializer}
    normal = (normal * constants["gamma"] + constants["beta"]).reshape(-1, WIDTH)
    assert seen.sample.shape == (96, WIDTH)  # every fifth of 480
    np.testing.assert_allclose(seen.sample, normal[::5], atol=1e-5)
    np.testing.assert_allclose(seen.low, normal.min(0), atol=1e-5)
    np.testing.assert_allclose(seen.high, normal.max(0), atol=1e-5)
