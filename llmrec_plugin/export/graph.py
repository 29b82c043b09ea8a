"""The ONNX graph: Optimum's export of the transformer, then pooling and normalization as graph nodes.

With the pooling inside, whoever runs the graph gets finished vectors: one output ``embedding``,
(batch, dims) float32. `llmrec_plugin.export.reference` holds the same formulas in PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.errors import DeclarationError, SourceError
from llmrec_plugin.export.shapes import fold_shapes
from llmrec_plugin.export.toolchain import quiet, require
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.specs import EncoderModel

OUTPUT = "embedding"
TOKENS = "last_hidden_state"
"""The token vectors, (batch, length, dims) float32: what the transformer gives and the pooling takes."""

OPSET = 18
"""Fixed, so that the same weights give the same graph; the first where all reductions take `axes` as an input."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
MASKED_OUT = -1e9
"""Stands in for padding under ``max``: below every activation, and finite even for a row that is all padding."""

POOLING = "pooling/"
"""Begins the names of the nodes behind the transformer: pooling, normalization, rotation."""


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A finished graph on disk.

    Attributes:
        path: Where it is.
        inputs: Names of its inputs, each (batch, length) int64.
    """

    path: Path
    inputs: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The graph and, above 2 GB, the file with its weights; all in one folder."""
        return tuple(sorted(self.path.parent.glob(f"{self.path.name}*")))


def build_graph(model: EncoderModel, source: Path, scratch: Path, target: Path) -> Graph:
    """Writes the graph of the weights in `source` into the folder `target`; equal weights give equal bytes.

    Args:
        model: Gives pooling, normalization and dims.
        source: Folder with config.json and safetensors weights.
        scratch: Folder for Optimum's own output.
        target: Folder for the result.

    Raises:
        SourceError: Optimum cannot export this architecture.
        DeclarationError: The graph takes other inputs or gives vectors of another length.
    """
    main_export = require("optimum.exporters.onnx", "optimum-onnx").main_export
    onnx = require("onnx")
    try:
        with quiet():
            main_export(
                str(source),
                output=scratch,
                task="feature-extraction",
                library_name="transformers",
                opset=OPSET,
                device="cpu",
                dtype="fp32",
                local_files_only=True,
                trust_remote_code=False,
                do_validation=False,  # it only warns; the parity gate compares and refuses
            )
    except (OSError, ValueError, KeyError, ImportError) as exc:
        raise SourceError(
            f"model {model.name!r}: Optimum cannot export the model in {source}: {exc} Only architectures that Optimum "
            "knows can be exported; code that comes with a model is never run."
        ) from exc
    graph = onnx.load(scratch / GRAPH)
    inputs = tuple(item.name for item in graph.graph.input)
    if not {"input_ids", "attention_mask"} <= set(inputs) <= set(INPUTS):
        raise DeclarationError(
            f"model {model.name!r}: the graph takes {', '.join(inputs)}; supported are {', '.join(INPUTS)}."
        )
    split = is_split(scratch / GRAPH)  # Optimum splits where one file would pass protobuf's 2 GB
    if not split:  # the run of so large a model takes so long that small nodes do not count
        fold_shapes(graph)
    add_pooling(graph, model)
    remove_labels(graph, "encoder")
    save_graph(graph, target / GRAPH, split=split)
    return Graph(path=target / GRAPH, inputs=inputs)


def is_split(path: Path) -> bool:
    """Whether the graph at `path` has its weights in a file of their own."""
    return _weights(path).is_file()


def save_graph(graph: Any, path: Path, *, split: bool) -> None:
    """Writes an ONNX model to `path`, its weights into a file beside it if `split`, and checks what was written."""
    onnx = require("onnx")
    _weights(path).unlink(missing_ok=True)  # onnx overwrites none
    onnx.save_model(graph, path, save_as_external_data=split, location=_weights(path).name if split else None)
    onnx.checker.check_model(str(path))


def _weights(path: Path) -> Path:
    return path.with_name(f"{path.name}_data")


def rotate_graph(path: Path, axes: np.ndarray) -> None:
    """Multiplies ``embedding`` of the graph at `path`, in place, by `axes`, (dims, dims) float32."""
    onnx = require("onnx")
    split = is_split(path)
    graph = onnx.load(path)
    last = next(node for node in graph.graph.node if OUTPUT in node.output)
    last.output[0] = f"{POOLING}unrotated"
    matrix = onnx.numpy_helper.from_array(axes, f"{POOLING}axes")
    graph.graph.initializer.append(matrix)
    name = f"{POOLING}rotation"
    graph.graph.node.append(onnx.helper.make_node("MatMul", [last.output[0], matrix.name], [OUTPUT], name=name))
    save_graph(graph, path, split=split)


def add_pooling(graph: Any, model: EncoderModel) -> None:
    """Replaces the outputs of an ONNX model, in place, by ``embedding``.

    Raises:
        DeclarationError: There are no token vectors of the declared length to pool.
    """
    onnx = require("onnx")
    tokens = next((item for item in graph.graph.output if item.name == TOKENS), None)
    dims = tokens.type.tensor_type.shape.dim[-1].dim_value if tokens else 0
    if tokens is None or dims not in (0, model.dims):  # 0: the exporter left the length open
        raise DeclarationError(
            f"model {model.name!r} declares dims={model.dims}, but its token vectors have {dims or 'no'} dims."
        )
    nodes = _Nodes()
    pooled = _POOLINGS[model.pooling](nodes, TOKENS, "attention_mask")
    if model.normalize:
        norm = nodes.add("ReduceL2", pooled, nodes.ints(1), keepdims=1)  # (batch, 1)
        pooled = nodes.add("Div", pooled, nodes.add("Max", norm, nodes.float(1e-12)))
    nodes.add("Identity", pooled, output=OUTPUT)
    graph.graph.node.extend(nodes.nodes)
    graph.graph.initializer.extend(nodes.constants)
    del graph.graph.output[:]
    shape = ["batch_size", model.dims]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, shape))


class _Nodes:
    """Collects nodes and constants; every method gives the name of the value it made."""

    def __init__(self) -> None:
        self._onnx = require("onnx")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = f"{POOLING}{len(self.nodes)}_{operator}"
        output = output or name
        self.nodes.append(self._onnx.helper.make_node(operator, list(inputs), [output], name=name, **attributes))
        return output

    def ints(self, *values: int) -> str:
        return self._constant(self._onnx.TensorProto.INT64, [len(values)], values)

    def float(self, value: float) -> str:
        return self._constant(self._onnx.TensorProto.FLOAT, [], [value])

    def _constant(self, dtype: int, shape: list[int], values: Any) -> str:
        name = f"{POOLING}constant_{len(self.constants)}"
        self.constants.append(self._onnx.helper.make_tensor(name, dtype, shape, values))
        return name


# Each takes tokens (batch, length, dims) float32 and mask (batch, length) int64, and gives (batch, dims) float32.


def _mean(nodes: _Nodes, tokens: str, mask: str) -> str:
    total = nodes.add("ReduceSum", _without_padding(nodes, tokens, mask, 0.0), nodes.ints(1), keepdims=0)
    weights = nodes.add("Cast", mask, to=nodes._onnx.TensorProto.FLOAT)
    count = nodes.add("ReduceSum", weights, nodes.ints(1), keepdims=1)  # (batch, 1)
    return nodes.add("Div", total, nodes.add("Max", count, nodes.float(1e-9)))


def _max(nodes: _Nodes, tokens: str, mask: str) -> str:
    return nodes.add("ReduceMax", _without_padding(nodes, tokens, mask, MASKED_OUT), nodes.ints(1), keepdims=0)


def _cls(nodes: _Nodes, tokens: str, mask: str) -> str:
    return _token_at_maximum(nodes, tokens, nodes.add("Cast", mask, to=nodes._onnx.TensorProto.FLOAT))


def _last_token(nodes: _Nodes, tokens: str, mask: str) -> str:
    weights = nodes.add("Cast", mask, to=nodes._onnx.TensorProto.FLOAT)
    # The running count of real tokens reaches its maximum first at the last of them.
    return _token_at_maximum(nodes, tokens, nodes.add("CumSum", weights, nodes.ints(1)))


def _token_at_maximum(nodes: _Nodes, tokens: str, scores: str) -> str:
    first = nodes.add("ArgMax", scores, axis=1, keepdims=1)  # (batch, 1), the first of equals
    return nodes.add("GatherND", tokens, first, batch_dims=1)


def _without_padding(nodes: _Nodes, tokens: str, mask: str, fill: float) -> str:
    # Selects instead of multiplying by the mask: a NaN at a padded position must not spread.
    real = nodes.add("Cast", nodes.add("Unsqueeze", mask, nodes.ints(2)), to=nodes._onnx.TensorProto.BOOL)
    return nodes.add("Where", real, tokens, nodes.float(fill))


_POOLINGS = {"mean": _mean, "max": _max, "cls": _cls, "last_token": _last_token}


def remove_labels(graph: Any, name: str) -> None:
    """Drops what says how and where the graph was made but does not compute, and would change its hash."""
    graph.producer_name, graph.producer_version, graph.doc_string = "llmrec-plugin", "", ""
    del graph.metadata_props[:]
    graph.graph.name, graph.graph.doc_string = name, ""
    del graph.graph.value_info[:]
    for item in (*graph.graph.node, *graph.graph.initializer, *graph.graph.input):
        item.doc_string = ""
        del item.metadata_props[:]
