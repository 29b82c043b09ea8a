"""The head of a `LabelModel` as a file, in numpy and as graph nodes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec_plugin.errors import SourceError
from llmrec_plugin.export.graph import OUTPUT, is_split, save_graph
from llmrec_plugin.export.toolchain import require

HEAD = "labels/"
"""Begins the names of the nodes behind the pooling."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """From an encoder's vector to a logit per label.

    Attributes:
        labels: What the logits are of.
        thresholds: Least probability of each label, (labels,) float32.
        weight: (labels, dims), or (labels, hidden) where there is a hidden layer; float32.
        bias: (labels,) float32.
        hidden_weight: (hidden, dims) float32 of a layer with ReLU before the linear one, or None.
        hidden_bias: (hidden,) float32, or None.
    """

    labels: tuple[str, ...]
    thresholds: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    hidden_weight: np.ndarray | None = None
    hidden_bias: np.ndarray | None = None

    def logits(self, vectors: np.ndarray) -> np.ndarray:
        """The logits of (n, dims) float32, (n, labels) float32."""
        if self.hidden_weight is not None:
            vectors = np.maximum(vectors @ self.hidden_weight.T + self.hidden_bias, 0)
        return np.asarray(vectors @ self.weight.T + self.bias, dtype=np.float32)

    def check_fits(self, dims: int, owner: str) -> None:
        """Checks that all shapes fit a vector of `dims`.

        Raises:
            SourceError: They do not.
        """
        count, width = len(self.labels), dims
        shapes = {"weight": self.weight, "bias": self.bias, "thresholds": self.thresholds}
        expected: dict[str, tuple[int, ...]] = {"bias": (count,), "thresholds": (count,)}
        if self.hidden_weight is not None and self.hidden_bias is not None:
            width = len(self.hidden_weight)
            shapes |= {"hidden_weight": self.hidden_weight, "hidden_bias": self.hidden_bias}
            expected |= {"hidden_weight": (width, dims), "hidden_bias": (width,)}
        expected["weight"] = (count, width)
        wrong = {name: values.shape for name, values in shapes.items() if values.shape != expected[name]}
        if wrong or (self.hidden_weight is None) != (self.hidden_bias is None) or len(set(self.labels)) < count:
            raise SourceError(
                f"{owner}: expected {count} distinct labels and tensors of the shapes {expected}; wrong are {wrong}."
            )


def read_head(path: Path) -> Head:
    """The head in a safetensors file, as `LabelModel` describes it.

    Raises:
        SourceError: It cannot be read, or a tensor or the labels are missing.
    """
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as stored:
            tensors = {name: stored.get_tensor(name).astype(np.float32) for name in stored.keys()}  # noqa: SIM118
            metadata = stored.metadata() or {}
        labels = json.loads(metadata["labels"])
        if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
            raise ValueError("labels must be a JSON list of strings")
        return Head(labels=tuple(labels), **tensors)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as exc:
        raise SourceError(
            f"{path} is no head: {exc!r}. Expected a safetensors file with weight, bias, thresholds and, in its "
            "metadata, the labels as a JSON list, as `llmrec train tags` writes it."
        ) from exc


def write_head(head: Head, path: Path) -> None:
    """Writes a head in float16; equal heads give equal bytes."""
    tensors = {"weight": head.weight, "bias": head.bias, "thresholds": head.thresholds}
    if head.hidden_weight is not None and head.hidden_bias is not None:
        tensors |= {"hidden_weight": head.hidden_weight, "hidden_bias": head.hidden_bias}
    halves = {name: np.ascontiguousarray(values, dtype=np.float16) for name, values in tensors.items()}
    metadata = {"labels": json.dumps(head.labels, ensure_ascii=False)}  # one key: the order of several is not fixed
    require("safetensors.numpy", "safetensors").save_file(halves, path, metadata=metadata)


def append_head(path: Path, head: Head) -> None:
    """Makes the output of the encoder's graph at `path`, in place, the logits of `head`, (batch, labels) float32."""
    onnx = require("onnx")
    split = is_split(path)
    graph = onnx.load(path)
    last = next(node for node in graph.graph.node if OUTPUT in node.output)
    last.output[0] = value = f"{HEAD}vector"

    def linear(given: str, name: str, weight: np.ndarray, bias: np.ndarray | None, output: str) -> str:
        constants = [(f"{HEAD}{name}_weight", weight), (f"{HEAD}{name}_bias", bias)]
        for constant, values in constants:
            graph.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.float32), constant))
        inputs = [given, *(constant for constant, _ in constants)]
        graph.graph.node.append(onnx.helper.make_node("Gemm", inputs, [output], name=f"{HEAD}{name}", transB=1))
        return output

    if head.hidden_weight is not None:
        value = linear(value, "hidden", head.hidden_weight, head.hidden_bias, f"{HEAD}hidden_sums")
        graph.graph.node.append(onnx.helper.make_node("Relu", [value], [f"{HEAD}active"], name=f"{HEAD}relu"))
        value = f"{HEAD}active"
    linear(value, "linear", head.weight, head.bias, OUTPUT)
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(head.labels)
    save_graph(graph, path, split=split)
