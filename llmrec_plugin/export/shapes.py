"""Shape arithmetic of a graph, worked out when it is exported instead of in every run.

PyTorch's exporter spells out how long things are: in each layer of a BERT some sixteen nodes take shapes apart, put
them together for a ``Reshape``, and derive the constant by which attention is scaled. They are a third of the nodes
that ONNX Runtime is left with, which counts where a run is short: the request of a single text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from llmrec_plugin.export.toolchain import quiet, require

_log = logging.getLogger(__name__)

Shape: TypeAlias = tuple[int | str, ...]
"""A length that is known, or the name of one that differs from run to run, such as ``batch_size``; empty: no name."""

_NO_END = 2**31 - 1
"""What a slice that ends where its input ends is given as its end."""
_KEEP, _INFER = 0, -1
"""What ``Reshape`` reads as: the length that is here, and what remains."""


def fold_shapes(model: Any) -> None:
    """Replaces what shapes are computed by, in an ONNX model and in place, by constants. Its results stay the same.

    A ``Reshape`` gets a constant target where all lengths but one are known or lie where they lay; a ``Slice`` or
    ``Gather`` of a ``Shape`` becomes a constant where what it takes is known. What nothing reads any more is removed.

    Args:
        model: A ``ModelProto`` with names for its open lengths. Left as it is where ONNX Runtime cannot infer shapes,
            or if nodes hold graphs of their own.
    """
    onnx = require("onnx")
    graph = model.graph
    if any(attribute.type == onnx.AttributeProto.GRAPH for node in graph.node for attribute in node.attribute):
        return
    try:
        shapes = _infer(model)
    except Exception as exc:  # whatever it meets in a graph that it does not know; slower nodes are no error
        _log.debug("Shapes are computed in every run: %s: %s", type(exc).__name__, exc)
        return
    constants = _constants(graph)
    whole = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Shape" and not node.attribute}
    made: dict[str, Any] = {}
    kept = []
    for node in graph.node:
        if node.op_type in ("Gather", "Slice") and node.input[0] in whole:
            taken = _taken(node, shapes.get(whole[node.input[0]]), constants)
            if taken is not None:
                made[node.output[0]] = taken
                continue
        if node.op_type == "Reshape" and node.input[1] not in constants and not _allows_zero(node):
            target = reshape_target(shapes.get(node.input[0]), shapes.get(node.output[0]))
            if target is not None:
                node.input[1] = "reshape_to_" + "_".join(map(str, target)).replace("-", "m")
                made[node.input[1]] = np.array(target, dtype=np.int64)
        kept.append(node)
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in made.items())
    _replace(graph.node, kept)
    _remove_unread(graph)


def reshape_target(before: Shape | None, after: Shape | None) -> tuple[int, ...] | None:
    """The constant that makes ``Reshape`` turn the one shape into the other.

    Args:
        before: Shape of what it reads.
        after: Shape of what it is to give.

    Returns:
        One number for each length of `after`: itself, 0 for the one at the same place of `before`, or -1 for the one
        that remains. None if more than one remains, or nothing is known.
    """
    if before is None or after is None:
        return None
    target = [
        length if isinstance(length, int) else _KEEP if length and before[place : place + 1] == (length,) else _INFER
        for place, length in enumerate(after)
    ]
    # A length of 0 that is meant would be read as "the one that is here".
    return None if target.count(_INFER) > 1 or 0 in after else tuple(target)


def _infer(model: Any) -> dict[str, Shape]:
    """The shapes of a model's values, by their names, as far as they can be inferred."""
    module = require("onnxruntime.tools.symbolic_shape_infer")
    with quiet():
        # Two lengths that a broadcast brings together are taken to be equal: exporters name lengths, not ones.
        inference = module.SymbolicShapeInference(int_max=_NO_END, auto_merge=True, guess_output_rank=False, verbose=0)
        # The steps of its `infer_shapes`, which writes a file into the working folder when something is left open.
        inference._preprocess(model)
        while inference.run_:
            inference._infer_impl()
        inference._update_output_from_vi()
        inferred = inference.out_mp_.graph
    return {
        value.name: tuple(
            length.dim_value if length.HasField("dim_value") else length.dim_param
            for length in value.type.tensor_type.shape.dim
        )
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.HasField("shape")
    }


def _constants(graph: Any) -> dict[str, np.ndarray]:
    """The integers in a graph that no run changes, by name; weights are left out."""
    onnx = require("onnx")
    tensors = {item.name: item for item in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensors[node.output[0]] = attribute.t
    integers = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return {
        name: onnx.numpy_helper.to_array(tensor) for name, tensor in tensors.items() if tensor.data_type in integers
    }


def _taken(node: Any, shape: Shape | None, constants: dict[str, np.ndarray]) -> np.ndarray | None:
    """What a ``Gather`` or ``Slice`` takes from a shape, int64; None if that is not known."""
    if shape is None or not all(name in constants for name in node.input[1:] if name):
        return None
    lengths = np.array(shape, dtype=object)
    arguments = [constants.get(name) for name in node.input[1:]]
    if node.op_type == "Gather":
        taken = lengths[arguments[0]]
    else:
        start, end, _, step = (None if item is None else item.item() for item in [*arguments, None, None][:4])
        taken = lengths[start:end:step]  # the third would be the axis, and a shape has one
    known = all(isinstance(length, int) for length in np.ravel(taken))
    return np.array(taken, dtype=np.int64) if known else None


def _allows_zero(node: Any) -> bool:
    return any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute)


def _remove_unread(graph: Any) -> None:
    """Removes nodes and constants that lead to no output."""
    read = {item.name for item in graph.output}
    kept = []
    for node in reversed(graph.node):
        if not read.isdisjoint(node.output):
            kept.append(node)
            read.update(node.input)
    _replace(graph.node, kept[::-1])
    _replace(graph.initializer, [item for item in graph.initializer if item.name in read])


def _replace(field: Any, items: Sequence[Any]) -> None:
    """Sets a repeated field; the items may be its own."""
    copies = list(items)
    del field[:]
    field.extend(copies)
