"""An ONNX graph with its wiring, which is found and changed by what leads to what rather than by names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec_plugin.export.toolchain import require

SWAP_HEADS = [0, 2, 1, 3]
"""Between (n, heads, S, head_dim) and (n, S, heads, head_dim)."""


class NotFusedError(Exception):
    """The graph is not wired so that its attention can be replaced; the text says what is other."""


class Wiring:
    """A graph with its wiring, which follows what is changed through it."""

    def __init__(self, graph: Any) -> None:
        self._onnx = require("onnx")
        self.proto = graph
        self.nodes = list(graph.node)
        self.initializers = {item.name: item for item in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.consumers[name].append(node)

    def producer(self, name: str, *operators: str) -> Any | None:
        """The node that makes `name`, if it is one of `operators`; copies are looked through."""
        node = self.producers.get(name)
        while node is not None and node.op_type == "Identity":
            node = self.producers.get(node.input[0])
        return node if node is not None and node.op_type in operators else None

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a constant."""
        if name in self.initializers:
            return np.asarray(self._onnx.numpy_helper.to_array(self.initializers[name]))
        node = self.producer(name, "Constant")
        values = [item.t for item in node.attribute if item.name == "value"] if node is not None else []
        return np.asarray(self._onnx.numpy_helper.to_array(values[0])) if values else None

    def is_scalar(self, name: str) -> bool:
        """Whether `name` is a number that depends on no data: constants of one element, and shapes."""
        if name in self.initializers:
            return int(np.prod(self.initializers[name].dims)) == 1
        node = self.producers.get(name)
        if node is None or node.op_type == "Shape":
            return node is not None
        if node.op_type == "Constant":
            value = self.constant(name)
            return value is not None and value.size == 1
        return all(self.is_scalar(item) for item in node.input if item)

    def unscaled(self, node: Any) -> tuple[str, str] | None:
        """What a ``Mul`` or ``Div`` scales, and the scalar by which it does."""
        left, right = node.input
        if self.is_scalar(right):
            return left, right
        return (right, left) if node.op_type == "Mul" and self.is_scalar(left) else None

    def add(self, before: Any, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Inserts a node before another."""
        node = self._onnx.helper.make_node(operator, list(inputs), list(outputs), name=outputs[0], **attributes)
        self.nodes.insert(next(row for row, item in enumerate(self.nodes) if item is before), node)

    def ints(self, name: str, *values: int) -> str:
        """The name of a constant, (len(values),) int64, which is added the first time."""
        return self._add_constant(name, np.array(values, np.int64))

    def number(self, name: str, value: int) -> str:
        """The name of a constant, () int64, which is added the first time."""
        return self._add_constant(name, np.array(value, np.int64))

    def _add_constant(self, name: str, values: np.ndarray) -> str:
        if name not in self.initializers:
            constant = self._onnx.numpy_helper.from_array(values, name)
            self.proto.initializer.append(constant)
            self.initializers[name] = constant
        return name

    def rename_output(self, name: str, new: str) -> None:
        """Gives the output `name` of a node another name, leaving its readers with the old one."""
        node = self.producers[name]
        node.output[list(node.output).index(name)] = new

    def prune(self, outputs: Sequence[str]) -> None:
        """Writes the nodes back, without nodes and constants that do not lead to `outputs`."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        kept.reverse()
        constants = [item for item in self.proto.initializer if item.name in needed]
        del self.proto.node[:], self.proto.initializer[:]
        self.proto.node.extend(kept)
        self.proto.initializer.extend(constants)


def reconnect(node: Any, old: str, new: str) -> None:
    """Lets a node read `new` wherever it read `old`."""
    for place, name in enumerate(node.input):
        if name == old:
            node.input[place] = new


def permutation(node: Any) -> list[int]:
    """Of a ``Transpose``."""
    return next((list(item.ints) for item in node.attribute if item.name == "perm"), [])
