"""The fused graph, against the graph it was made from: the ways in which an engine runs it."""

from collections import Counter

import numpy as np
import onnx
import pytest
from tiny_generators import HEADS, KV_HEADS, LAYERS, declare_generator, save_generator

from llmrec_plugin.export.attention import SEQLENS, TOTAL, fuse_attention
from llmrec_plugin.export.generator_graphs import build_generator, write_fused
from llmrec_plugin.export.greedy import FusedDecoder, InTwoPieces, PlainDecoder
from llmrec_plugin.export.selection import LOGIT_POSITIONS
from llmrec_plugin.export.wiring import NotFusedError
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.runtime.session import open_session

onnxruntime = pytest.importorskip("onnxruntime")
CAUSAL = ("gpt2", "llama", "qwen3")
ROTATED = ("qwen3",)
"""Inside the attention; GPT-2 has no rotation, and the llama's heads of 8 are too small for that."""
CAPACITY = 64
PAD = 0


@pytest.fixture(scope="module")
def graphs(generator_folder, tmp_path_factory):
    """Folders with the plain and with the fused graph of an architecture, made once."""
    made = {}

    def folders(architecture, windows=(None,) * LAYERS, **config):
        key = (architecture, windows, str(config))
        if key not in made:
            place = tmp_path_factory.mktemp(architecture)
            source = (
                save_generator(place / "model", architecture, **config) if config else generator_folder(architecture)
            )
            plain, fused = place / "plain", place / "fused"
            plain.mkdir()
            fused.mkdir()
            build_generator(declare_generator(source, architecture), source, place / "scratch", plain)
            write_fused(plain / GRAPH, fused / GRAPH, heads=HEADS, windows=windows)
            made[key] = plain, fused
        return made[key]

    return folders


def prompts(*lengths):
    rng = np.random.default_rng(len(lengths))
    return [rng.integers(5, 300, length).tolist() for length in lengths]


def logits(decoder, rows, steps=4):
    """The logits behind `rows` and behind a few more tokens, the same whatever the decoder thinks."""
    tokens = [np.array([10 + step * len(row) % 200 for row in rows]) for step in range(steps)]
    return np.stack([decoder.start(rows), *map(decoder.step, tokens)])


@pytest.mark.parametrize("architecture", CAUSAL)
def test_each_layer_has_one_attention_and_nothing_of_the_mask_is_left(graphs, architecture):
    plain, fused = (onnx.load(folder / GRAPH).graph for folder in graphs(architecture))
    operators = Counter(node.op_type for node in fused.node)
    assert (operators["GroupQueryAttention"], operators["Softmax"]) == (LAYERS, 0)
    assert len(fused.node) < len(plain.node)
    inputs = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in fused.input
    }
    positions = set() if architecture in ROTATED else {"position_ids"}
    assert {name for name in inputs if not name.startswith("past")} == {
        "input_ids", *positions, SEQLENS, TOTAL, LOGIT_POSITIONS,
    }  # fmt: skip
    heads = HEADS if architecture == "gpt2" else KV_HEADS
    assert inputs["past_key_values.1.value"] == ["rows", heads, "capacity", 16 if architecture == "qwen3" else 8]
    assert [item.name for item in fused.output] == ["logits"] + [
        f"present.{layer}.{kind}" for layer in range(LAYERS) for kind in ("key", "value")
    ]


@pytest.mark.parametrize("architecture", CAUSAL)
def test_one_row_is_computed_as_by_the_plain_graph(graphs, architecture):
    plain, fused = graphs(architecture)
    for row in prompts(1, 2, 17, 50):
        expected = logits(PlainDecoder(plain, PAD), [row])
        np.testing.assert_allclose(logits(FusedDecoder(fused, PAD, CAPACITY), [row]), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_rows_of_all_lengths_are_computed_together_as_alone(graphs, architecture):
    plain, fused = graphs(architecture)
    rows = prompts(5, 1, 40, 17, 2)
    expected = np.concatenate([logits(PlainDecoder(plain, PAD), [row]) for row in rows], axis=1)
    np.testing.assert_allclose(logits(FusedDecoder(fused, PAD, CAPACITY), rows), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_prompt_is_continued_behind_a_prefix(graphs, architecture):
    plain, fused = graphs(architecture)
    for row in prompts(2, 9, 50):
        expected = logits(PlainDecoder(plain, PAD), [row])
        actual = logits(InTwoPieces(FusedDecoder(fused, PAD, CAPACITY)), [row])
        np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("architecture", CAUSAL)
def test_logits_are_given_for_the_positions_asked_for(graphs, architecture):
    """As scoring an answer of several tokens needs; here without sharing memory between past and present."""
    plain, fused = graphs(architecture)
    rows = np.array(prompts(9, 9))
    mask, positions = np.ones_like(rows), np.tile(np.arange(9), (2, 1))
    session = open_session(plain / GRAPH, device="cpu")
    past = {item.name: item.shape for item in session.get_inputs() if item.name.startswith("past")}
    empty = {name: np.zeros((2, shape[1], 0, shape[3]), np.float32) for name, shape in past.items()}
    feeds = {"input_ids": rows, "attention_mask": mask, "position_ids": positions, **empty}
    expected = session.run(["logits", "present.1.value"], feeds)
    wanted = np.array([17, 0, 4, 4])  # flat, in any order
    shared = {name: np.zeros((2, shape[1], 12, shape[3]), np.float32) for name, shape in past.items()}
    feeds = {"input_ids": rows, LOGIT_POSITIONS: wanted, **shared}
    feeds |= {} if architecture in ROTATED else {"position_ids": positions}
    feeds |= {SEQLENS: np.full(2, 8, np.int32), TOTAL: np.array(9, np.int32)}
    actual = open_session(fused / GRAPH, device="cpu").run(["logits", "present.1.value"], feeds)
    np.testing.assert_allclose(actual[0], expected[0].reshape(18, -1)[wanted], atol=1e-4)
    assert actual[1].shape[2] == 12
    np.testing.assert_allclose(actual[1][:, :, :9], expected[1], atol=1e-4)


SCALED = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "config",
    [
        {"head_dim": 16},
        {"head_dim": 16, "rope_theta": 100.0, "rope_scaling": {**SCALED, "original_max_position_embeddings": 16}},
        {"head_dim": 16, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 160},
    ],
    ids=["plain", "llama3", "yarn, which scales cosines, too"],
)
def test_an_attention_that_rotates_keeps_the_frequencies_of_the_model(graphs, config):
    plain, fused = graphs("llama", **config)
    attentions = [node for node in onnx.load(fused / GRAPH).graph.node if node.op_type == "GroupQueryAttention"]
    assert [item.i for node in attentions for item in node.attribute if item.name == "do_rotary"] == [1] * LAYERS
    rows = prompts(5, 1, 40, 17, 2)
    expected = np.concatenate([logits(PlainDecoder(plain, PAD), [row]) for row in rows], axis=1)
    np.testing.assert_allclose(logits(FusedDecoder(fused, PAD, CAPACITY), rows), expected, atol=1e-4)
    for row in prompts(50):
        actual = logits(InTwoPieces(FusedDecoder(fused, PAD, CAPACITY)), [row])
        np.testing.assert_allclose(actual, logits(PlainDecoder(plain, PAD), [row]), atol=1e-4)


def test_a_graph_that_reads_positions_elsewhere_goes_on_rotating_by_itself(graphs, tmp_path):
    """A graph that nobody exports: its tokens also have learned positions."""
    plain, _ = graphs("qwen3")
    model = onnx.load(plain / GRAPH)
    table = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(160, 32)).astype(np.float32), "learned")
    model.graph.initializer.append(table)
    words = next(node for node in model.graph.node if node.op_type == "Gather" and node.input[1] == "input_ids")
    at, embedded = list(model.graph.node).index(words), words.output[0]
    words.output[0] = "words"
    learned = onnx.helper.make_node("Gather", ["learned", "position_ids"], ["places"])
    both = onnx.helper.make_node("Add", ["words", "places"], [embedded])
    model.graph.node.insert(at + 1, learned)
    model.graph.node.insert(at + 2, both)
    for name in ("plain", "fused"):
        (tmp_path / name).mkdir()
    onnx.save(model, tmp_path / "plain" / GRAPH)
    write_fused(tmp_path / "plain" / GRAPH, tmp_path / "fused" / GRAPH, heads=HEADS, windows=(None,) * LAYERS)
    assert "position_ids" in {item.name for item in onnx.load(tmp_path / "fused" / GRAPH).graph.input}
    rows = prompts(9)
    expected = logits(PlainDecoder(tmp_path / "plain", PAD), rows)
    np.testing.assert_allclose(logits(FusedDecoder(tmp_path / "fused", PAD, CAPACITY), rows), expected, atol=1e-4)


PRODUCTS = {"gpt2": 4, "llama": 5, "qwen3": 5}
"""Out of the last attention, the feed-forward network, the vocabulary."""


@pytest.mark.parametrize("architecture", CAUSAL)
def test_behind_the_last_attention_only_wanted_tokens_are_computed(graphs, architecture):
    _, fused = graphs(architecture)
    behind, products = {LOGIT_POSITIONS}, 0
    for node in onnx.load(fused / GRAPH).graph.node:
        if not behind.isdisjoint(node.input):
            behind.update(node.output)
            products += node.op_type in ("MatMul", "Gemm")
    assert products == PRODUCTS[architecture]


def test_where_tokens_meet_behind_the_attention_all_are_computed(graphs, tmp_path):
    """A graph that nobody exports: the last network sees the sum of all tokens before."""
    plain, _ = graphs("llama")
    model = onnx.load(plain / GRAPH)
    node = next(node for node in reversed(model.graph.node) if node.name.endswith("/mlp/down_proj/MatMul"))
    at = list(model.graph.node).index(node)
    axis = onnx.numpy_helper.from_array(np.array(1), "sum/axis")
    model.graph.initializer.append(axis)
    model.graph.node.insert(at, onnx.helper.make_node("CumSum", [node.input[0], axis.name], ["sum/output"]))
    model.graph.node[at + 1].input[0] = "sum/output"
    for name in ("plain", "fused"):
        (tmp_path / name).mkdir()
    onnx.save(model, tmp_path / "plain" / GRAPH)
    write_fused(tmp_path / "plain" / GRAPH, tmp_path / "fused" / GRAPH, heads=HEADS, windows=(None,) * LAYERS)
    row = prompts(9)
    expected = PlainDecoder(tmp_path / "plain", PAD).start(row)
    np.testing.assert_allclose(FusedDecoder(tmp_path / "fused", PAD, CAPACITY).start(row), expected, atol=1e-4)
    assert np.abs(expected - PlainDecoder(plain, PAD).start(row)).max() > 1e-2


def test_logits_that_are_made_otherwise_are_named(graphs, tmp_path):
    plain, _ = graphs("llama")
    model = onnx.load(plain / GRAPH)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "before"
    model.graph.node.append(onnx.helper.make_node("Relu", ["before"], ["logits"]))
    onnx.save(model, tmp_path / GRAPH)
    with pytest.raises(NotFusedError, match="its logits are no product of a hidden state with the vocabulary"):
        fuse_attention(tmp_path / GRAPH, HEADS, (None,) * LAYERS)


def test_a_window_hides_what_is_farther_away(graphs):
    plain, fused = graphs("mistral", (8,) * LAYERS, sliding_window=8)
    rows = prompts(3, 8, 9, 30)
    expected = np.concatenate([logits(PlainDecoder(plain, PAD), [row]) for row in rows], axis=1)
    np.testing.assert_allclose(logits(FusedDecoder(fused, PAD, CAPACITY), rows), expected, atol=1e-4)
    actual = logits(InTwoPieces(FusedDecoder(fused, PAD, CAPACITY)), rows[-1:])
    np.testing.assert_allclose(actual, expected[:, -1:], atol=1e-4)
    # Without a window the last row is another.
    model = fuse_attention(plain / GRAPH, HEADS, (None,) * LAYERS)
    whole = fused.with_name("whole")
    whole.mkdir()
    onnx.save(model, whole / GRAPH)
    assert np.abs(logits(FusedDecoder(whole, PAD, CAPACITY), rows) - expected)[:, -1].max() > 1e-2


def test_slots_of_one_buffer_are_filled_at_different_times(graphs):
    """As continuous batching does: a prompt is read into a free slot while other rows are in the middle."""
    plain, fused = graphs("llama")
    first, second = prompts(12, 4)
    decoder = FusedDecoder(fused, PAD, CAPACITY)
    decoder.start([first])
    for token in (11, 12, 13):
        decoder.step(np.array([token]))
    other = FusedDecoder(fused, PAD, CAPACITY)
    other.start([second])
    decoder._cache = {name: np.concatenate([decoder._cache[name], other._cache[name]]) for name in decoder._cache}
    decoder._lengths = np.concatenate([decoder._lengths, other._lengths])
    together = decoder.step(np.array([14, 21]))
    expected = []
    for row, tokens in ((first, (11, 12, 13, 14)), (second, (21,))):
        alone = PlainDecoder(plain, PAD)
        expected.append(alone.start([[*row, *tokens]]))
    np.testing.assert_allclose(together, np.concatenate(expected), atol=1e-4)


def test_onnx_runtime_refuses_several_rows_with_a_past_and_several_tokens(graphs):
    """What an engine has to know. If this fails, ONNX Runtime has learned it, and prefixes can be read in batches."""
    _, fused = graphs("llama")
    decoder = FusedDecoder(fused, PAD, CAPACITY)
    decoder.start(prompts(5, 5))
    with pytest.raises(Exception, match="batch_size must be 1"):
        decoder._run(np.full((2, 3), 9, np.int64), np.array([3, 3]))


def test_other_wiring_is_named(graphs, tmp_path):
    plain, _ = graphs("gpt2")
    model = onnx.load(plain / GRAPH)
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "LogSoftmax"
    onnx.save(model, tmp_path / GRAPH)
    with pytest.raises(NotFusedError, match="layer 0 multiplies its values by something other than a softmax"):
        fuse_attention(tmp_path / GRAPH, HEADS, (None,) * LAYERS)
