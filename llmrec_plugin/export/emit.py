"""The ONNX nodes of an integer product; `llmrec_plugin.export.int8` decides where they go."""

from __future__ import annotations

from typing import Any

import numpy as np

from llmrec_plugin.export.coding import Coding
from llmrec_plugin.export.toolchain import require

CONTRIB = "com.microsoft"
TOKENS = "input_ids"
"""The input of every graph whose products are replaced, (batch, length)."""


class Emitter:
    """Collects nodes, constants and shapes that stand for products of a graph.

    Args:
        graph: The ONNX model whose products are replaced.
    """

    def __init__(self, graph: Any) -> None:
        self._onnx = require("onnx")
        self._producers = {name: node for node in graph.graph.node for name in node.output}
        self._constants = {item.name: item for item in graph.graph.initializer}
        self._coded: dict[str, tuple[str, str | None]] = {}
        self._shared: set[str] = set()
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.shapes: list[Any] = []

    def product(
        self,
        activation: str,
        coding: Coding,
        name: str,
        codes: np.ndarray,
        scales: np.ndarray,
        bias: np.ndarray,
        output: str,
    ) -> None:
        """Emits ``output = activation @ weights + bias``.

        Args:
            activation: Name of the activation, (batch, length, k) float32; it is coded once for all its products.
            coding: How it is coded.
            name: Name of the product, which begins the names of what is new.
            codes: (k, n) int8.
            scales: (n,) float32.
            bias: (n,) float32.
            output: Name of the result, (batch, length, n) float32.
        """
        coded, steps = self._codes(activation, coding, len(codes))
        constant_step = 1.0 if coding.step is None else coding.step
        inputs = [
            coded,
            self._constant(f"{name}/int8", codes),
            self._constant(f"int8/step_{constant_step!r}", np.float32(constant_step)),
            self._constant(f"{name}/scales", scales),
            self._zero_point(coding),
            "",  # the weights' zero point is 0
        ]
        added = self._constant(f"{name}/bias", bias)
        if steps is None:
            self._node("MatMulIntegerToFloat", [*inputs, added], output, domain=CONTRIB)
            return
        product = self._node("MatMulIntegerToFloat", inputs, f"{name}/product", domain=CONTRIB)
        scaled = self._node("Mul", [product, steps], f"{name}/scaled")  # (tokens, n) x (tokens, 1)
        shaped = self._node("Reshape", [scaled, self._shape(codes.shape[1])], f"{name}/shaped")
        # ONNX Runtime fuses bias and GELU only where it knows the width.
        dims = ["batch_size", "sequence_length", codes.shape[1]]
        self.shapes.append(self._onnx.helper.make_tensor_value_info(shaped, self._onnx.TensorProto.FLOAT, dims))
        self._node("Add", [shaped, added], output)

    def _codes(self, activation: str, coding: Coding, width: int) -> tuple[str, str | None]:
        """The codes and, where it is not constant, the step of each token, (tokens, 1)."""
        if activation not in self._coded:
            values = activation if coding.shift is None else self._evened(activation, coding)
            if coding.step is None:
                self._coded[activation] = self._per_token(activation, values, coding, width)
            else:
                step = self._constant(f"int8/step_{coding.step!r}", np.float32(coding.step))
                inputs = [values, step, self._zero_point(coding)]
                self._coded[activation] = self._node("QuantizeLinear", inputs, f"{activation}/codes"), None
        return self._coded[activation]

    def _per_token(self, activation: str, values: str, coding: Coding, width: int) -> tuple[str, str]:
        def node(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
            return self._node(operator, inputs, f"{activation}/{name}", **attributes)

        rows = node("Reshape", [values, self._ints(-1, width)], "rows")  # (tokens, k)
        magnitudes = rows if coding.minimum < 0 else node("Abs", [rows], "magnitudes")
        largest = node("ReduceMax", [magnitudes, self._ints(1)], "largest", keepdims=0)  # (tokens,)
        share = node("Mul", [largest, self._float(1 / coding.codes_above)], "share")
        step = node("Max", [share, self._float(coding.smallest_step)], "step")
        codes = node("QuantizeLinear", [rows, step, self._zero_points(coding, step)], "codes", axis=0)
        return codes, node("Unsqueeze", [step, self._ints(-1)], "steps")

    def _evened(self, activation: str, coding: Coding) -> str:
        """A second LayerNormalization, whose weight and bias shift and scale at once."""
        source = self._producers[activation]
        weight, bias = (self._onnx.numpy_helper.to_array(self._constants[name]) for name in source.input[1:3])
        inputs = [
            source.input[0],
            self._constant(f"{activation}/weight", (weight / coding.scale).astype(np.float32)),
            self._constant(f"{activation}/bias", ((bias - coding.shift) / coding.scale).astype(np.float32)),
        ]
        output = self._node("LayerNormalization", inputs, f"{activation}/evened")
        self.nodes[-1].attribute.extend(source.attribute)
        return output

    def _shape(self, width: int) -> str:
        """(batch, length, width)."""
        leading = self._once("Shape", [TOKENS], "int8/leading")
        return self._once("Concat", [leading, self._ints(width)], f"int8/shape_{width}", axis=0)

    def _zero_points(self, coding: Coding, step: str) -> str:
        """The zero point for each token, (tokens,): `step` has as many as that of any activation."""
        tokens = self._once("Shape", [step], "int8/tokens")
        return self._once("Expand", [self._zero_point(coding), tokens], f"int8/zeros_{coding.zero_point}")

    def _zero_point(self, coding: Coding) -> str:
        return self._constant(f"int8/zero_{coding.zero_point}", np.uint8(coding.zero_point))

    def _ints(self, *values: int) -> str:
        return self._constant("int8/ints_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def _float(self, value: float) -> str:
        return self._constant(f"int8/float_{value!r}", np.float32(value))

    def _constant(self, name: str, value: Any) -> str:
        if name not in self.constants:
            self.constants[name] = self._onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def _once(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A node that others share."""
        if output not in self._shared:
            self._shared.add(self._node(operator, inputs, output, **attributes))
        return output

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self._onnx.helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output
