"""Graphs as they are exported, with fused attention for GPUs; compared on the CPU."""

import dataclasses
import logging
from collections import Counter

import numpy as np
import onnx
import pytest

from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.export.graph import build_graph
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.pipeline.batching import graph_inputs, pad
from llmrec_plugin.runtime import fusion
from llmrec_plugin.runtime.fusion import fuse, fused_graph

onnxruntime = pytest.importorskip("onnxruntime")
LAYERS = 2
POOLINGS = {"bert": "mean", "roberta": "cls", "distilbert": "max"}


@pytest.fixture(scope="module")
def graphs(save_encoder, declare, tmp_path_factory):
    """The exported graph of an architecture, exported once: its file and its inputs."""
    made = {}

    def graph(architecture):
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            scratch, target = folder / "scratch", folder / "artifact"
            scratch.mkdir()
            target.mkdir()
            source = save_encoder(folder / "model", architecture)
            model = declare(source, pooling=POOLINGS.get(architecture, "mean"))
            made[architecture] = target / GRAPH, build_graph(model, source, scratch, target).inputs
        return made[architecture]

    return graph


def vectors(graph, names, side):
    """Ragged batches, and padding wherever it is allowed."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    found = []
    for lengths in ([1], [40, 3, 17, 1], [9] * 8):
        ids, mask = pad([rng.integers(5, 60, length).tolist() for length in lengths], 0, side)
        found.append(session.run(None, graph_inputs(names, ids, mask))[0])
    return np.concatenate(found)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", POOLINGS)
def test_a_fused_graph_computes_the_same_vectors(graphs, tmp_path, architecture, side):
    graph, names = graphs(architecture)
    fused = tmp_path / GRAPH
    onnx.save(fuse(onnx.load(graph), right_padded=side == "right"), fused)
    operators = Counter(node.op_type for node in onnx.load(fused).graph.node)
    assert (operators["Attention"] + operators["MultiHeadAttention"], operators["Softmax"]) == (LAYERS, 0)
    assert operators["SkipLayerNormalization"] == 2 * LAYERS
    assert operators["BiasGelu"] == LAYERS
    assert sum(operators.values()) < len(onnx.load(graph).graph.node) / 3
    expected, got = vectors(graph, names, side), vectors(fused, names, side)
    cosines = np.sum(expected * got, axis=1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(got, axis=1)
    assert cosines.min() >= 0.99999
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_float16_weights_are_fused_too(graphs):
    """As when half of a graph's precision is dropped: float16 inside, float32 in and out."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph, _ = graphs("bert")
    half = convert_float_to_float16(onnx.load(graph), keep_io_types=True)
    fused = fuse(half, right_padded=True).graph
    types = {item.name: item.data_type for item in fused.initializer}
    attention = [node for node in fused.node if node.op_type == "Attention"]
    assert len(attention) == LAYERS
    assert {types[name] for node in attention for name in node.input[1:3]} == {onnx.TensorProto.FLOAT16}
    assert [item.type.tensor_type.elem_type for item in fused.output] == [onnx.TensorProto.FLOAT]


def test_pooling_hides_attention_from_the_optimizer(graphs):
    """Why `fuse` sets the pooling aside: if this fails, it need not any more."""
    from onnxruntime.transformers.optimizer import optimize_model

    graph, _ = graphs("bert")
    statistics = optimize_model(onnx.load(graph), "bert", opt_level=0).get_fused_operator_statistics()
    assert (statistics["Attention"], statistics["SkipLayerNormalization"]) == (0, 0)


@pytest.fixture
def artifact(graphs, tiny):
    """The exported BERT as an artifact."""
    graph, names = graphs("bert")
    return Artifact(graph.parent, dataclasses.replace(tiny.manifest, model="bert", inputs=names, files={GRAPH: "0"}))


def test_a_graph_is_fused_once_and_kept_beside_no_artifact(artifact, tmp_path, monkeypatch):
    before = sorted(artifact.folder.iterdir()), artifact.path(GRAPH).read_bytes()
    path = fused_graph(artifact, tmp_path / "cache")
    assert path.is_relative_to(tmp_path / "cache")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert (sorted(artifact.folder.iterdir()), artifact.path(GRAPH).read_bytes()) == before
    monkeypatch.setattr(fusion, "fuse", lambda *_, **__: pytest.fail("fused again"))
    assert fused_graph(artifact, tmp_path / "cache") == path


def test_a_graph_that_is_left_unfused_is_not_used(graphs, artifact, tmp_path, caplog):
    """Qwen3 is no BERT: its attention has other patterns."""
    graph, names = graphs("qwen3")
    other = Artifact(graph.parent, dataclasses.replace(artifact.manifest, model="qwen3", inputs=names))
    assert fused_graph(other, tmp_path) is None
    assert "qwen3 runs without fused attention: " in caplog.text
    assert not list(tmp_path.iterdir())


def test_weights_beside_a_graph_are_not_fused(artifact, tmp_path, caplog):
    large = Artifact(
        artifact.folder,
        dataclasses.replace(artifact.manifest, files={GRAPH: "0", f"{GRAPH}_data": "0"}),
    )
    assert fused_graph(large, tmp_path) is None
    assert "its weights lie beside the graph, in model.onnx_data" in caplog.text


def test_a_cache_folder_that_cannot_be_written_is_told(artifact, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert fused_graph(artifact, tmp_path / "file") is None
    assert "bert runs without fused attention: " in caplog.text


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"Attention": 1, "Softmax": 1, "SkipLayerNormalization": 4}, "1 of 2 attentions were fused"),
        ({"SkipLayerNormalization": 4}, "0 of 2 attentions were fused"),
        ({"Attention": 2, "SkipLayerNormalization": 1}, "1 normalizations were fused, expected one per attention"),
        ({"Attention": 2, "SkipLayerNormalization": 4, "Erf": 1}, "1 of 2 GELUs were left unfused"),
    ],
)
def test_what_was_left_unfused_is_told(after, message):
    with pytest.raises(ValueError, match=message):
        fusion._check(Counter(Softmax=2, Erf=2), Counter(after))
