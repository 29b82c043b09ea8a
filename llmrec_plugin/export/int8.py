"""int8: the matrix products with constant weights, by surgery on the finished float32 graph.

    x -> code per token -> MatMulIntegerToFloat (uint8 x int8, exact in int32) -> step, scales, bias -> y

Everything else (attention scores, softmax, normalization, pooling) stays in float32. A token's codes depend on that
token alone, so a text's vector does not depend on its batch. ONNX Runtime's own dynamic quantization takes one range
for the whole batch, and its vectors do.

Which codes: `llmrec_plugin.export.coding` for activations, `llmrec_plugin.export.rounding` for weights.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmrec_plugin.export.calibration import Statistics
from llmrec_plugin.export.coding import GELU_MIN, Coding, choose
from llmrec_plugin.export.emit import CONTRIB, Emitter
from llmrec_plugin.export.graph import POOLING
from llmrec_plugin.export.rounding import round_weights
from llmrec_plugin.export.toolchain import require

_BOUNDED = ("Erf", "Gelu", "Relu")
_ELEMENTWISE = ("Mul", "Add", "Div")


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A product with constant weights.

    Attributes:
        node: Its MatMul.
        weights: (k, n) float32.
        bias: (n,) float32; zeros where the graph adds none.
        bias_node: The Add that brings the bias, if there is one.
        output: The value that this product and its bias give.
    """

    node: Any
    weights: np.ndarray
    bias: np.ndarray
    bias_node: Any | None
    output: str

    @property
    def name(self) -> str:
        """Its own name in the graph; weights may be shared, as ALBERT's layers do."""
        return str(self.node.output[0])

    @property
    def activation(self) -> str:
        """The name of the activation it reads."""
        return str(self.node.input[0])


def find_linears(graph: Any) -> list[Linear]:
    """Every product of token vectors with a constant matrix, in the order of the graph."""
    to_array = require("onnx").numpy_helper.to_array
    constants = {item.name: item for item in graph.graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in graph.graph.node:
        if node.op_type != "MatMul" or node.name.startswith(POOLING) or node.input[1] not in constants:
            continue
        weights = to_array(constants[node.input[1]])
        if weights.ndim != 2:
            continue
        bias, bias_node = np.zeros(weights.shape[1], np.float32), None
        following = readers.get(node.output[0], [])
        if len(following) == 1 and following[0].op_type == "Add":
            (other,) = [name for name in following[0].input if name != node.output[0]] or [""]
            if other in constants and list(constants[other].dims) == [weights.shape[1]]:
                bias, bias_node = to_array(constants[other]), following[0]
        output = (bias_node or node).output[0]
        found.append(Linear(node=node, weights=weights, bias=bias, bias_node=bias_node, output=output))
    return found


@dataclass(frozen=True, kw_only=True)
class CodedInput:
    """An activation, its coding, and the products that read it."""

    coding: Coding
    linears: tuple[Linear, ...]
    codes: Mapping[str, tuple[np.ndarray, np.ndarray]]
    biases: Mapping[str, np.ndarray]


def code_inputs(graph: Any, linears: Sequence[Linear], statistics: Mapping[str, Statistics]) -> dict[str, CodedInput]:
    """Chooses the coding of every activation and rounds the weights that meet it, by the activation's name."""
    producers = {name: node for node in graph.graph.node for name in node.output}
    result = {}
    for activation in dict.fromkeys(linear.activation for linear in linears):
        group = tuple(linear for linear in linears if linear.activation == activation)
        seen = statistics[activation]
        coding = choose(
            seen,
            [linear.weights for linear in group],
            normalized=_is_normalized(graph, producers.get(activation)),
            bounded=_is_bounded(activation, producers) and float(seen.low.min()) >= GELU_MIN,
        )
        evened = coding.even(seen.sample).astype(np.float64)
        mean = evened.mean(0)
        centered = evened - mean
        moments = centered.T @ centered / len(evened)
        codes, biases = {}, {}
        for linear in group:
            widened = coding.widen(linear.weights.astype(np.float64))
            codes[linear.name] = round_weights(widened, moments)
            rounded = codes[linear.name][0] * codes[linear.name][1].astype(np.float64)
            # The shift moves into the bias, and so does the mean of what rounding the weights changed.
            shift = 0 if coding.shift is None else coding.shift.astype(np.float64) @ linear.weights
            biases[linear.name] = (linear.bias + shift + mean @ (widened - rounded)).astype(np.float32)
        result[activation] = CodedInput(coding=coding, linears=group, codes=codes, biases=biases)
    return result


def quantize(graph: Any, inputs: Mapping[str, CodedInput], *, keep: Collection[str] = ()) -> None:
    """Replaces products in an ONNX model, in place, by integer ones.

    Args:
        graph: The float32 model that `inputs` was made from.
        inputs: What `code_inputs` gave.
        keep: Names of products to leave in float32.
    """
    replaced = {
        linear.node.output[0]: (coded, linear)
        for coded in inputs.values()
        for linear in coded.linears
        if linear.name not in keep
    }
    dropped = {linear.bias_node.output[0] for _, linear in replaced.values() if linear.bias_node is not None}
    emitter = Emitter(graph)
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.output[0] in replaced:
            coded, linear = replaced[node.output[0]]
            codes, scales = coded.codes[linear.name]
            bias = coded.biases[linear.name]
            emitter.product(linear.activation, coded.coding, linear.name, codes, scales, bias, linear.output)
        elif node.output[0] not in dropped:
            emitter.nodes.append(copy.deepcopy(node))  # clearing the graph empties its own nodes
    used = {name for node in emitter.nodes for name in node.input}
    constants = [item for item in graph.graph.initializer if item.name in used] + list(emitter.constants.values())
    constants = copy.deepcopy(constants)
    del graph.graph.node[:]
    graph.graph.node.extend(emitter.nodes)
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(constants)
    graph.graph.value_info.extend(emitter.shapes)
    if all(item.domain != CONTRIB for item in graph.opset_import):
        graph.opset_import.append(require("onnx").helper.make_opsetid(CONTRIB, 1))


def _is_normalized(graph: Any, producer: Any | None) -> bool:
    """Whether a LayerNormalization over the last axis, with constant weight and bias, gives the value."""
    constants = {item.name for item in graph.graph.initializer}
    return (
        producer is not None
        and producer.op_type == "LayerNormalization"
        and len(producer.input) == 3
        and constants.issuperset(producer.input[1:])
        and all(item.i == -1 for item in producer.attribute if item.name == "axis")
    )


def _is_bounded(value: str, producers: Mapping[str, Any], depth: int = 6) -> bool:
    """Whether GELU or ReLU gives the value, written as one node or in Erf, Mul, Add and Div."""
    producer = producers.get(value)
    if producer is None or depth == 0:
        return False
    if producer.op_type in _BOUNDED:
        return True
    return producer.op_type in _ELEMENTWISE and any(_is_bounded(name, producers, depth - 1) for name in producer.input)
