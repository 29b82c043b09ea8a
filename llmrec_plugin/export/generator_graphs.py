"""The graphs of a generator: Optimum's export with past key values, each weight stored once per graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.errors import SourceError
from llmrec_plugin.export.attention import empty_cache, fuse_attention
from llmrec_plugin.export.graph import OPSET, is_split, remove_labels, save_graph
from llmrec_plugin.export.shapes import fold_shapes
from llmrec_plugin.export.toolchain import quiet, require
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.specs import GeneratorModel, GeneratorTask

ENCODER, DECODER, DECODER_WITH_PAST = "encoder.onnx", "decoder.onnx", "decoder_with_past.onnx"

_TASKS = {"causal": "text-generation-with-past", "seq2seq": "text2text-generation-with-past"}
_FILES: dict[GeneratorTask, dict[str, str]] = {
    "causal": {GRAPH: GRAPH},
    "seq2seq": {
        "encoder_model.onnx": ENCODER,
        "decoder_model.onnx": DECODER,
        "decoder_with_past_model.onnx": DECODER_WITH_PAST,
    },
}
"""Optimum's names, and ours."""


@dataclass(frozen=True, kw_only=True)
class GeneratorGraphs:
    """The graphs of a generator on disk.

    Attributes:
        folder: Where they are.
        layers: Layers with a key-value cache.
        kv_heads: Heads of keys and values of each.
        head_dim: Size of each head.
        vocab_size: Length of the logits.
    """

    folder: Path
    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int


def build_generator(model: GeneratorModel, source: Path, scratch: Path, target: Path) -> GeneratorGraphs:
    """Writes the graphs of the weights in `source` into the folder `target`; equal weights give equal bytes.

    Args:
        model: Gives the task.
        source: Folder with config.json and safetensors weights.
        scratch: Folder for Optimum's own output.
        target: Folder for the result.

    Raises:
        SourceError: Optimum cannot export this architecture.
    """
    main_export = require("optimum.exporters.onnx", "optimum-onnx").main_export
    try:
        with quiet():
            main_export(
                str(source),
                output=scratch,
                task=_TASKS[model.task],
                library_name="transformers",
                opset=OPSET,
                device="cpu",
                dtype="fp32",
                local_files_only=True,
                trust_remote_code=False,
                do_validation=False,  # it only warns; the parity gate compares and refuses
                no_post_process=True,  # no merged decoder; `share_weights` is exact and needs no other package
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as exc:
        raise SourceError(
            f"model {model.name!r}: Optimum cannot export the model in {source} for {_TASKS[model.task]}: {exc} Only "
            "architectures that Optimum knows can be exported; code that comes with a model is never run."
        ) from exc
    onnx = require("onnx")
    for theirs, ours in _FILES[model.task].items():
        graph = onnx.load(scratch / theirs)
        split = is_split(scratch / theirs)
        share_weights(graph)
        if not split:  # as in `llmrec_plugin.export.graph`: a large model's runs are long
            fold_shapes(graph)
        remove_labels(graph, "generator")
        save_graph(graph, target / ours, split=split)
    last = onnx.load(target / list(_FILES[model.task].values())[-1], load_external_data=False).graph
    # A decoder that reads an encoder keeps two caches, of the same shape.
    caches = [item for item in last.input if item.name.endswith(".key") and ".encoder." not in item.name]
    if not caches:
        raise SourceError(f"model {model.name!r}: Optimum exported no key-value cache for the model in {source}.")
    _, kv_heads, _, head_dim = empty_cache(caches[0])
    (logits,) = (item for item in last.output if item.name == "logits")
    return GeneratorGraphs(
        folder=target,
        layers=len(caches),
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=logits.type.tensor_type.shape.dim[-1].dim_value,
    )


def write_fused(plain: Path, target: Path, *, heads: int, windows: Sequence[int | None]) -> None:
    """Writes the fused form of the causal graph `plain` to `target`; see `llmrec_plugin.export.attention`.

    Raises:
        NotFusedError: The graph is not wired as expected.
    """
    model = fuse_attention(plain, heads, windows)
    remove_labels(model, "generator")
    save_graph(model, target, split=is_split(plain))


def share_weights(model: Any) -> None:
    """Lets an ONNX model read each matrix from one place, in place: no copy, and no transposed copy.

    A model whose output shares the matrix of its token embeddings is traced with both.
    """
    onnx = require("onnx")
    graph = model.graph
    matrices = {item.name: item for item in graph.initializer if len(item.dims) == 2}
    read = [node.input[0] for node in graph.node if node.op_type == "Gather" and node.input[0] in matrices]
    tables: dict[str, np.ndarray] = {name: onnx.numpy_helper.to_array(matrices[name]) for name in dict.fromkeys(read)}
    for position, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "MatMul" or node.input[1] not in matrices:
            continue
        name, values = node.input[1], onnx.numpy_helper.to_array(matrices[node.input[1]])
        same = (
            table
            for table, rows in tables.items()
            if rows.shape == values.shape[::-1] and np.array_equal(rows, values.T)
        )
        if table := next(same, None):
            node.input[1] = f"{name}/transposed"
            turned = onnx.helper.make_node("Transpose", [table], [node.input[1]], name=node.input[1], perm=[1, 0])
            graph.node.insert(position, turned)
    inputs = {name for node in graph.node for name in node.input}
    constants = [item for item in graph.initializer if item.name in inputs]
    del graph.initializer[:]
    graph.initializer.extend(constants)
