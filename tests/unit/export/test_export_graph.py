"""The pooling nodes, against vectors worked out by hand and against the PyTorch formulas."""

import numpy as np
import pytest

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export.graph import OPSET, add_pooling
from llmrec_plugin.export.reference import pool

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
torch = pytest.importorskip("torch", reason="the export extra is not installed")

TOKENS = np.array([[[1, -6], [3, 2], [5, -4], [7, 8]]] * 3, np.float32)  # (3, 4, 2)
MASK = np.array([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]])  # padded right, left, right
EXPECTED = {
    "mean": [[2, -2], [5, 2], [1, -6]],
    "max": [[3, 2], [7, 8], [1, -6]],
    "cls": [[1, -6], [3, 2], [1, -6]],
    "last_token": [[3, 2], [7, 8], [1, -6]],
}


def token_graph(dims=2, output="last_hidden_state"):
    """A graph that hands its token vectors on."""
    helper, kind = onnx.helper, onnx.TensorProto
    shape = ["batch_size", "sequence_length"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["tokens"], [output])],
        "tokens",
        [
            helper.make_tensor_value_info("tokens", kind.FLOAT, [*shape, dims]),
            helper.make_tensor_value_info("attention_mask", kind.INT64, shape),
        ],
        [helper.make_tensor_value_info(output, kind.FLOAT, [*shape, dims])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def run(model, tokens, mask):
    graph = token_graph()
    add_pooling(graph, model)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"tokens": tokens, "attention_mask": mask})
    return result


@pytest.fixture
def model(declare, tmp_path):
    return lambda pooling, normalize: declare(tmp_path, pooling=pooling, normalize=normalize, dims=2)


@pytest.mark.parametrize("pooling", EXPECTED)
def test_pooling_reads_real_tokens_only_on_either_padding_side(model, pooling):
    np.testing.assert_allclose(run(model(pooling, False), TOKENS, MASK), EXPECTED[pooling])
    reference = pool(torch.from_numpy(TOKENS), torch.from_numpy(MASK), pooling)
    np.testing.assert_allclose(reference.numpy(), EXPECTED[pooling])


@pytest.mark.parametrize("pooling", EXPECTED)
def test_values_at_padding_do_not_count_even_if_they_are_not_numbers(model, pooling):
    tokens = np.where(MASK[..., None] == 1, TOKENS, np.nan).astype(np.float32)
    np.testing.assert_allclose(run(model(pooling, False), tokens, MASK), EXPECTED[pooling])


@pytest.mark.parametrize("pooling", EXPECTED)
def test_normalized_vectors_have_unit_length(model, pooling):
    expected = np.array(EXPECTED[pooling]) / np.linalg.norm(EXPECTED[pooling], axis=1, keepdims=True)
    np.testing.assert_allclose(run(model(pooling, True), TOKENS, MASK), expected, rtol=1e-6)


@pytest.mark.parametrize("pooling", EXPECTED)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_row_of_nothing_but_padding_gives_finite_values(model, pooling, normalize):
    assert np.isfinite(run(model(pooling, normalize), TOKENS, np.zeros_like(MASK))).all()


def test_a_zero_vector_stays_zero_when_normalized(model):
    assert not run(model("mean", True), np.zeros_like(TOKENS), MASK).any()


def test_other_lengths_than_declared_are_refused(model):
    with pytest.raises(DeclarationError, match="dims=2, but its token vectors have 3 dims"):
        add_pooling(token_graph(dims=3), model("mean", True))
    with pytest.raises(DeclarationError, match="have no dims"):
        add_pooling(token_graph(output="logits"), model("mean", True))
