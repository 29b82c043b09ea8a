"""The fused graph of a causal model: one ``GroupQueryAttention`` per layer in the place of the exported attention.

The graph that Optimum writes concatenates the cache with the new keys and values, repeats them for every query head
and multiplies with a mask: a longer cache in new memory each step, and all rows at one position. ONNX Runtime's
``com.microsoft.GroupQueryAttention`` appends in place, and each row has its own length. Where it can, it also rotates
queries and keys (`llmrec_plugin.export.rotary`). What is around it stays as it was exported. The graph then has

inputs
    ``input_ids`` (n, S) int64; rows of different length are padded on the right, and only without a past;
    ``position_ids`` (n, S) int64, if something other than rotations reads them;
    ``seqlens_k`` (n) int32: tokens of each row after this step, less one;
    ``total_sequence_length`` () int32: tokens of the longest row after this step;
    ``logit_positions`` (m) int64: which of the (n * S) positions are wanted;
    ``past_key_values.{layer}.key`` and ``.value`` (n, kv_heads, capacity, head_dim) float32;
outputs
    ``logits`` (m, vocabulary) float32;
    ``present.{layer}.key`` and ``.value``: bound to the memory of the past, they are the past with the new tokens.

ONNX Runtime refuses more than one row with a past and more than one new token. What follows the last attention is
computed for the wanted positions only (`llmrec_plugin.export.selection`).

Attention is found by its wiring, not by names. Whether what was found is what was meant, the comparison with PyTorch
decides (`llmrec_plugin.export.generation_parity`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.export.rotary import POSITIONS, rotate_inside
from llmrec_plugin.export.selection import LOGIT_POSITIONS, LOGITS, select_tokens
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.export.wiring import SWAP_HEADS, NotFusedError, Wiring, permutation, reconnect
from llmrec_plugin.runtime.session import open_session

PAST, PRESENT = "past_key_values.", "present."
SEQLENS, TOTAL = "seqlens_k", "total_sequence_length"

_FUSED = "fused/"
_RESHAPING = ("Transpose", "Reshape", "Expand", "Unsqueeze", "Identity")


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """The attention of a layer, by the names of its values.

    Attributes:
        query: (n, heads, S, head_dim), before scaling.
        key: Of the new tokens, (n, kv_heads, S, head_dim).
        value: Likewise.
        output: (n, heads, S, head_dim).
        factors: Scalars whose product scales the scores.
        divisors: Scalars by which the scores are divided.
    """

    query: str
    key: str
    value: str
    output: str
    factors: tuple[str, ...]
    divisors: tuple[str, ...]


def fuse_attention(plain: Path, heads: int, windows: Sequence[int | None]) -> Any:
    """The fused form of the causal graph at `plain`, as an ONNX model in memory.

    Args:
        plain: Optimum's graph, with past key values; its folder gets one more small file while this runs.
        heads: Query heads of each layer.
        windows: For each layer how many of the last tokens it sees, the token itself included; None: all.

    Raises:
        NotFusedError: The graph is not wired as expected.
    """
    model = require("onnx").load(plain)
    graph = Wiring(model.graph)
    inputs = {item.name for item in model.graph.input}
    if not {"input_ids", "attention_mask", POSITIONS} <= inputs or f"{PAST}0.key" not in inputs:
        raise NotFusedError(f"its inputs are {', '.join(sorted(inputs))}")
    if any(item.type == item.GRAPH for node in model.graph.node for item in node.attribute):
        raise NotFusedError("it has branches")
    found = [_find_attention(graph, layer) for layer in range(len(windows))]
    scales = _scales(plain, graph, found)
    for layer, (attention, window) in enumerate(zip(found, windows, strict=True)):
        _replace(graph, layer, attention, heads=heads, scale=scales[layer], window=window)
    graph.prune([item.name for item in model.graph.output])
    head_dim = empty_cache(next(item for item in model.graph.input if item.name == f"{PAST}0.key"))[3]
    rotate_inside(model.graph, TOTAL, head_dim)
    select_tokens(model.graph, f"{_FUSED}{len(found) - 1}/attention", heads * head_dim)
    _declare_inputs(model.graph)
    if "com.microsoft" not in {item.domain for item in model.opset_import}:
        model.opset_import.append(require("onnx").helper.make_opsetid("com.microsoft", 1))
    return model


def _find_attention(graph: Wiring, layer: int) -> _Attention:
    """The attention of `layer`: softmax(query keys' + mask) values, over the cache with the new tokens."""
    keys, key = _appended(graph, layer, "key")
    values, value = _appended(graph, layer, "value")
    products = [
        node for node in graph.nodes
        if node.op_type == "MatMul" and _reaches(graph, node.input[1], values) is not None
    ]  # fmt: skip
    if len(products) != 1:
        raise NotFusedError(f"layer {layer} multiplies its values {len(products)} times")
    name = products[0].input[0]
    while (node := graph.producer(name, "Where", "Cast", "Dropout")) is not None:
        name = node.input[2 if node.op_type == "Where" else 0]
    softmax = graph.producer(name, "Softmax")
    if softmax is None:
        raise NotFusedError(f"layer {layer} multiplies its values by something other than a softmax")
    path = _to_scores(graph, softmax.input[0], keys)
    if path is None:
        raise NotFusedError(f"layer {layer} has other scores than products of queries and keys plus a mask")
    scores, factors, divisors = path
    query = scores.input[0]
    while (node := graph.producer(query, "Mul", "Div")) is not None and (parts := graph.unscaled(node)):
        query = parts[0]
        (factors if node.op_type == "Mul" else divisors).append(parts[1])
    factors += _reaches(graph, scores.input[1], keys) or []
    return _Attention(
        query=query, key=key, value=value, output=products[0].output[0],
        factors=tuple(factors), divisors=tuple(divisors),
    )  # fmt: skip


def _appended(graph: Wiring, layer: int, kind: str) -> tuple[str, str]:
    """Name of the cache with the new tokens, and of the new tokens' part."""
    node = graph.producer(f"{PRESENT}{layer}.{kind}", "Concat")
    if node is None or len(node.input) != 2 or node.input[0] != f"{PAST}{layer}.{kind}":
        raise NotFusedError(f"layer {layer} does not append to its {kind} cache")
    return node.output[0], node.input[1]


def _reaches(graph: Wiring, name: str, source: str) -> list[str] | None:
    """The scalars between `source` and `name` if only those and changes of shape are between them, else None."""
    factors = []
    while name != source:
        node = graph.producers.get(name)
        if node is None:
            return None
        if node.op_type in _RESHAPING:
            name = node.input[0]
        elif node.op_type == "Mul" and (parts := graph.unscaled(node)):
            name = parts[0]
            factors.append(parts[1])
        else:
            return None
    return factors


def _to_scores(graph: Wiring, name: str, keys: str) -> tuple[Any, list[str], list[str]] | None:
    """The product with the keys below `name`, and the scalars by which it is multiplied and divided on the way."""
    node = graph.producer(name, "MatMul", "Add", "Where", "Mul", "Div", "Cast")
    if node is None:
        return None
    if node.op_type == "MatMul":
        return (node, [], []) if _reaches(graph, node.input[1], keys) is not None else None
    if node.op_type in ("Mul", "Div"):
        parts = graph.unscaled(node)
        path = _to_scores(graph, parts[0], keys) if parts else None
        if parts and path:
            path[1 if node.op_type == "Mul" else 2].append(parts[1])
        return path
    operands = {"Add": node.input, "Where": node.input[1:], "Cast": node.input}[node.op_type]
    paths = [path for operand in operands if (path := _to_scores(graph, operand, keys))]
    return paths[0] if len(paths) == 1 else None


def _scales(plain: Path, graph: Wiring, found: Sequence[_Attention]) -> list[float]:
    """The number by which each layer's scores are scaled.

    Where it is not a constant, e.g. made from the shape of the query, the graph itself is asked for it.
    """
    names = {name for attention in found for name in (*attention.factors, *attention.divisors)}
    known = {name: value for name in names if (value := graph.constant(name)) is not None}
    computed = sorted(names - set(known))
    known |= _run_for(plain, graph.proto, computed) if computed else {}
    scales = []
    for attention in found:
        factors = [float(known[name].reshape(())) for name in attention.factors]
        divisors = [float(known[name].reshape(())) for name in attention.divisors]
        scales.append(float(np.prod(factors) / np.prod(divisors)))
    return scales


def _run_for(plain: Path, graph: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The values `names` of the graph at `plain`, read while it runs one token."""
    onnx = require("onnx")
    model = onnx.load(plain, load_external_data=False)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    probe = plain.with_name("probe.onnx")  # beside the weights, if those have a file of their own
    onnx.save(model, probe)
    session = open_session(probe, device="cpu")
    probe.unlink()
    feeds = {name: np.full((1, 1), name == "attention_mask", np.int64) for name in _token_inputs(graph)}
    feeds |= {item.name: np.zeros(empty_cache(item), np.float32) for item in graph.input if item.name.startswith(PAST)}
    return dict(zip(names, session.run(list(names), feeds), strict=True))


def _token_inputs(graph: Any) -> list[str]:
    return [item.name for item in graph.input if not item.name.startswith(PAST)]


def empty_cache(item: Any, rows: int = 1, capacity: int = 0) -> tuple[int, int, int, int]:
    """The shape of a cache input, (rows, kv_heads, capacity, head_dim), from its ONNX description."""
    _, heads, _, size = (dim.dim_value for dim in item.type.tensor_type.shape.dim)
    return rows, heads, capacity, size


def _replace(graph: Wiring, layer: int, attention: _Attention, *, heads: int, scale: float, window: int | None) -> None:
    """Puts a GroupQueryAttention in the place of `attention`."""
    cache = next(item for item in graph.proto.input if item.name == f"{PAST}{layer}.key")
    _, kv_heads, _, head_dim = empty_cache(cache)
    if not kv_heads or not head_dim:
        raise NotFusedError(f"layer {layer} leaves the shape of its cache open")
    # A copy may stand between the concatenation and the graph's output.
    for kind in ("key", "value"):
        graph.rename_output(f"{PRESENT}{layer}.{kind}", f"{_FUSED}{layer}/unused_{kind}")
    product = graph.producers[attention.output]
    inputs = []
    for kind, name in (("query", attention.query), ("key", attention.key), ("value", attention.value)):
        prefix = f"{_FUSED}{layer}/{kind}"
        swapped = graph.producer(name, "Transpose")
        if swapped is not None and permutation(swapped) == SWAP_HEADS:
            name = swapped.input[0]
        else:
            graph.add(product, "Transpose", [name], [f"{prefix}_swapped"], perm=SWAP_HEADS)
            name = f"{prefix}_swapped"
        graph.add(product, "Reshape", [name, graph.ints(f"{_FUSED}flat", 0, 0, -1)], [f"{prefix}_flat"])
        inputs.append(f"{prefix}_flat")
    outputs = [f"{_FUSED}{layer}/attention", f"{PRESENT}{layer}.key", f"{PRESENT}{layer}.value"]
    local = {} if window is None else {"local_window_size": window}
    graph.add(
        product,
        "GroupQueryAttention",
        [*inputs, f"{PAST}{layer}.key", f"{PAST}{layer}.value", SEQLENS, TOTAL],
        outputs,
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=scale,
        do_rotary=0,
        **local,
    )
    apart = graph.ints(f"{_FUSED}heads_{head_dim}", 0, 0, heads, head_dim)
    readers = graph.consumers[attention.output]
    if len(readers) == 1 and readers[0].op_type == "Transpose" and permutation(readers[0]) == SWAP_HEADS:
        graph.add(product, "Reshape", [outputs[0], apart], [f"{_FUSED}{layer}/apart"])
        swapped_back = readers[0].output[0]
        readers[0].output[0] = f"{_FUSED}{layer}/unused_output"
        product.output[0] = f"{_FUSED}{layer}/unused_product"
        for reader in graph.consumers[swapped_back]:
            reconnect(reader, swapped_back, f"{_FUSED}{layer}/apart")
    else:
        graph.add(product, "Reshape", [outputs[0], apart], [f"{_FUSED}{layer}/apart"])
        product.output[0] = f"{_FUSED}{layer}/unused_product"
        graph.add(product, "Transpose", [f"{_FUSED}{layer}/apart"], [attention.output], perm=SWAP_HEADS)


def _declare_inputs(graph: Any) -> None:
    """Replaces the mask by lengths, and names the dimensions.

    Raises:
        NotFusedError: Something other than attention reads the mask or the cache.
    """
    onnx = require("onnx")
    readers: Mapping[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    caches = [item for item in graph.input if item.name.startswith(PAST)]
    if readers["attention_mask"] or any(len(readers[item.name]) != 1 for item in caches):
        raise NotFusedError("something other than its attention reads the mask or the cache")
    info, ints = onnx.helper.make_tensor_value_info, onnx.TensorProto
    kept = [
        info("input_ids", ints.INT64, ["rows", "tokens"]),
        *([info(POSITIONS, ints.INT64, ["rows", "tokens"])] if readers[POSITIONS] else []),
        info(SEQLENS, ints.INT32, ["rows"]),
        info(TOTAL, ints.INT32, []),
        info(LOGIT_POSITIONS, ints.INT64, ["logits"]),
    ]
    shapes = {item.name: ["rows", empty_cache(item)[1], "capacity", empty_cache(item)[3]] for item in caches}
    vocabulary = next(item for item in graph.output if item.name == LOGITS).type.tensor_type.shape.dim[-1].dim_value
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.extend([*kept, *(info(name, ints.FLOAT, shape) for name, shape in shapes.items())])
    graph.output.append(info(LOGITS, ints.FLOAT, ["logits", vocabulary or "vocabulary"]))
    graph.output.extend(info(name.replace(PAST, PRESENT), ints.FLOAT, shape) for name, shape in shapes.items())
