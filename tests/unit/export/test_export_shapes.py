"""Shape arithmetic that is worked out at export."""

from collections import Counter

import numpy as np
import pytest

from llmrec_plugin.export import graph as graph_module
from llmrec_plugin.export.graph import OPSET, build_graph
from llmrec_plugin.export.shapes import fold_shapes, reshape_target
from llmrec_plugin.pipeline.batching import graph_inputs, pad

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")

LAYERS = 2
ARITHMETIC = ("Shape", "Gather", "Slice", "Concat", "Sqrt")
CPU = ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        (("b", "s", 384), ("b", "s", 12, 32), (0, 0, 12, 32)),
        (("b", "s", 12, 32), ("b", "s", 384), (0, 0, 384)),
        (("b", "s"), ("b*s",), (-1,)),
        (("b", "s"), ("s", "b"), None),
        (("b", 4), (4, "b"), (4, -1)),
        ((8,), (2, 4), (2, 4)),
        (("", ""), ("", ""), None),
        (("b", 0), (0, "b"), None),
        (None, ("b",), None),
        (("b",), None, None),
    ],
    ids=str,
)
def test_a_target_is_constant_where_one_length_at_most_is_open(before, after, target):
    assert reshape_target(before, after) == target


@pytest.fixture(scope="module")
def built(save_encoder, declare, tmp_path_factory):
    """The graph of an architecture as it is exported, and without the folding."""

    def build(architecture):
        folder = tmp_path_factory.mktemp(architecture)
        source = save_encoder(folder / "model", architecture)
        found = {}
        for name in ("folded", "spelled out"):
            (folder / name).mkdir()
            with pytest.MonkeyPatch.context() as patch:
                if name == "spelled out":
                    patch.setattr(graph_module, "fold_shapes", lambda graph: None)
                found[name] = build_graph(declare(source), source, folder / "scratch", folder / name)
        return found["folded"], found["spelled out"]

    return build


def arithmetic(graph):
    counts = Counter(node.op_type for node in graph.graph.node)
    return sum(counts[operator] for operator in ARITHMETIC)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "qwen3"])
def test_layers_compute_fewer_shapes_and_the_same_vectors(built, architecture):
    folded, plain = built(architecture)
    assert folded.inputs == plain.inputs
    left, before = arithmetic(onnx.load(folded.path)), arithmetic(onnx.load(plain.path))
    assert before - left >= 8 * LAYERS
    sessions = [onnxruntime.InferenceSession(str(graph.path), providers=CPU) for graph in (folded, plain)]
    rng = np.random.default_rng(0)
    for lengths in ([1], [40, 3, 17, 1], [9] * 8):
        ids, mask = pad([rng.integers(5, 60, length).tolist() for length in lengths], 0)
        (got,), (expected,) = (session.run(None, graph_inputs(folded.inputs, ids, mask)) for session in sessions)
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_layer_of_bert_is_left_with_what_it_computes(built):
    folded, _ = built("bert")
    inside = [node for node in onnx.load(folded.path).graph.node if "/layer." in node.name]
    assert not {node.op_type for node in inside} & {"Shape", "Gather", "Slice", "Concat"}
    assert any(node.op_type == "Reshape" for node in inside)


def model_of(nodes, inputs, outputs, constants=()):
    helper, kind = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info(name, kind.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind.FLOAT, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(np.array(value), name) for name, value in dict(constants).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def run(model, **inputs):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU).run(None, inputs)


def shape_slice(start, end, *rest):
    """A tensor scaled by some of its own lengths."""
    node = onnx.helper.make_node
    names = ["start", "end", *(name for name, _ in rest)]
    return model_of(
        [
            node("Shape", ["x"], ["shape"]),
            node("Slice", ["shape", *names], ["taken"]),
            node("Cast", ["taken"], ["number"], to=onnx.TensorProto.FLOAT),
            node("Mul", ["x", "number"], ["y"]),
        ],
        {"x": ["b", 2, 3]},
        {"y": ["b", 2, 3]},
        {"start": [start], "end": [end], **{name: [value] for name, value in rest}},
    )


@pytest.mark.parametrize(
    "arguments",
    [(-1, 9), (2, 3), (1, 2, ("axes", 0)), (2, 0, ("axes", 0), ("steps", -2))],
    ids=str,
)
def test_known_lengths_become_constants(arguments):
    x = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    model = shape_slice(*arguments)
    expected = run(model, x=x)
    fold_shapes(model)
    assert "Shape" not in {node.op_type for node in model.graph.node}
    assert not {item.name for item in model.graph.initializer} & {"start", "end"}, "nothing reads them any more"
    np.testing.assert_array_equal(run(model, x=x), expected)


def test_lengths_that_differ_from_run_to_run_are_still_computed():
    model = shape_slice(0, 1)
    before = model.SerializeToString()
    fold_shapes(model)
    assert model.SerializeToString() == before
    for rows in (1, 5):
        assert run(model, x=np.ones((rows, 2, 3), np.float32))[0].max() == rows


def test_a_graph_that_holds_graphs_is_left_alone():
    model = shape_slice(-1, 9)
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["taken"], ["inner"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("inner", onnx.TensorProto.INT64, [1])],
    )
    model.graph.node.append(
        onnx.helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch)
    )
    before = model.SerializeToString()
    fold_shapes(model)
    assert model.SerializeToString() == before


def test_a_graph_that_cannot_be_read_is_left_alone_and_no_file_is_written(caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = shape_slice(-1, 9)
    model.graph.node[2].input[0] = "nothing makes this"
    before = model.SerializeToString()
    with caplog.at_level("DEBUG", "llmrec_plugin.export.shapes"):
        fold_shapes(model)
    assert model.SerializeToString() == before
    assert "Shapes are computed in every run" in caplog.text
    assert not list(tmp_path.iterdir())


def test_what_is_known_is_folded_though_an_operator_is_not_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = shape_slice(-1, 9)
    model.graph.node.append(onnx.helper.make_node("Unheard", ["x"], ["z"], domain="of.another"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    model.opset_import.append(onnx.helper.make_opsetid("of.another", 1))
    fold_shapes(model)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Mul", "Unheard"]
    assert not list(tmp_path.iterdir())
