"""fp16: the transformer in half precision, for GPUs; inputs and the finished vector stay as they are.

Pooling and vector length stay in float32: half precision has 11 bits, and a sum of squares passes its largest number,
65504. ONNX Runtime's CPU kernels compute such a graph, at no gain, which is how its quality is measured without a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.export.graph import POOLING, TOKENS, is_split, save_graph
from llmrec_plugin.export.toolchain import require

_LARGEST = float(np.finfo(np.float16).max)


def to_half(path: Path) -> None:
    """Converts the graph at `path` in place."""
    onnx = require("onnx")
    split = is_split(path)
    graph = onnx.load(path)
    half, single = f"{POOLING}{TOKENS}_fp16", onnx.TensorProto.FLOAT
    pooling = {name for node in graph.graph.node if node.name.startswith(POOLING) for name in node.input}
    for item in graph.graph.initializer:
        if item.name not in pooling:
            _halve(item)
    nodes = []
    for node in graph.graph.node:
        if not node.name.startswith(POOLING):
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:  # of a Constant or ConstantOfShape
                    _halve(attribute.t)
                elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == single:
                    attribute.i = onnx.TensorProto.FLOAT16
        nodes.append(node)
        if TOKENS in node.output:
            node.output[list(node.output).index(TOKENS)] = half
            cast = onnx.helper.make_node("Cast", [half], [TOKENS], name=f"{POOLING}to_fp32", to=single)
            nodes.append(cast)
    nodes = [
        onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes
    ]  # clearing the graph empties its own
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    del graph.graph.value_info[:]
    save_graph(graph, path, split=split)


def _halve(tensor: Any) -> None:
    """Rounds a float32 tensor, in place; what lies beyond the range, such as the mask of padding, gets its end."""
    onnx = require("onnx")
    if tensor.data_type == onnx.TensorProto.FLOAT:
        values = np.clip(onnx.numpy_helper.to_array(tensor), -_LARGEST, _LARGEST).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
