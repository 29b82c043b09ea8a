"""Which tokens the end of a causal graph is computed for: those whose logits are asked for.

Behind the attention of the last layer every token goes its own way, and no cache is fed any more. A token of a prompt
that is followed by another one needs nothing of that: not the product with the vocabulary, and not the rest of the
last layer, which is most of a layer. So wanted tokens are taken out where the last attention ends.
"""

from __future__ import annotations

from typing import Any

from llmrec_plugin.export.wiring import NotFusedError, Wiring, reconnect

LOGITS = "logits"
LOGIT_POSITIONS = "logit_positions"

_PREFIX = "selected/"
_ELEMENTWISE = frozenset({
    "Abs", "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Gelu", "Identity", "Max", "Min", "Mul", "Neg", "Pow",
    "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh", "Where",
})  # fmt: skip
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_OVER_AN_AXIS = frozenset({"LayerNormalization", "ReduceMean", "ReduceSum", "Split"})
_SIZE_AXES = (-1, 2)
"""The last axis of (n, S, size)."""


def select_tokens(graph: Any, attention: str, width: int) -> None:
    """Lets an ONNX graph compute logits for the tokens in a new value ``logit_positions``, in place.

    Args:
        graph: With an output ``logits``, (n, S, vocabulary). Afterwards it is (m, vocabulary), and reads
            ``logit_positions``, (m) int64: positions among all n * S tokens.
        attention: The value in which the last attention ends, (n, S, width).
        width: Its size.

    Raises:
        NotFusedError: The logits are no product of a hidden state with the vocabulary.
    """
    wiring = Wiring(graph)
    product, table, is_transposed = _vocabulary(wiring)
    size = int(table.dims[1] if is_transposed else table.dims[0])
    hidden = product.input[0]
    while (node := wiring.producer(hidden, "Reshape")) is not None:
        hidden = node.input[0]
    merged = _merged(wiring, attention)
    region = _region(wiring, merged, hidden) if merged is not None else None
    if region is None:  # it is not known that every token goes its own way
        _take(wiring, hidden, size, [product])
    else:
        inside = {name for node in region for name in node.output}
        read = {name for node in region for name in node.input if name not in inside and not _is_fixed(wiring, name)}
        for name in sorted(read):
            _take(wiring, name, width if name == merged else size, [node for node in region if name in node.input])
        product.input[0] = hidden
    rows = f"{_PREFIX}rows"
    wiring.add(product, "Reshape", [product.input[0], wiring.ints(f"{_PREFIX}flat", -1, size)], [rows])
    product.input[0] = rows
    if is_transposed:
        # Two dimensions allow a product with the table of the token embeddings as it is, without a transposed copy.
        output = product.output[0]
        product.output[0] = f"{_PREFIX}unused"
        wiring.add(product, "Gemm", [rows, table.name], [output], transB=1)
    wiring.prune([item.name for item in graph.output])


def _vocabulary(wiring: Wiring) -> tuple[Any, Any, bool]:
    """The product that makes the logits, the constant with the vocabulary, and whether that is read transposed."""
    name = LOGITS
    while (node := wiring.producer(name, "Cast", "Mul", "Div", "Tanh", "Add", "MatMul")) is not None:
        if node.op_type == "MatMul":
            turned = wiring.producer(node.input[1], "Transpose")
            table = wiring.initializers.get(turned.input[0] if turned is not None else node.input[1])
            if table is not None:
                return node, table, turned is not None
            break
        # The other operand, if there is one, is a constant: a bias, a scale.
        name = next((item for item in node.input if wiring.constant(item) is None), "")
    raise NotFusedError("its logits are no product of a hidden state with the vocabulary")


def _merged(wiring: Wiring, attention: str) -> str | None:
    """The attention with its heads side by side, where the graph takes it up: behind one last ``Reshape``."""
    (apart,) = wiring.consumers[attention]
    readers = [node for node in wiring.consumers[apart.output[0]] if node.op_type != "Shape"]
    return readers[0].output[0] if len(readers) == 1 and readers[0].op_type == "Reshape" else None


def _region(wiring: Wiring, start: str, end: str) -> list[Any] | None:
    """The nodes from `start` to `end`, if each treats every token by itself."""
    behind = {start}
    for node in wiring.nodes:
        if not behind.isdisjoint(node.input):
            behind.update(node.output)
    needed, region = {end}, []
    for node in reversed(wiring.nodes):
        if not needed.isdisjoint(node.output) and not behind.isdisjoint(node.output) and start not in node.output:
            region.append(node)
            needed.update(node.input)
    region.reverse()
    lengths: set[str] = set()
    for node in region:
        if node.op_type == "Shape" or all(name in lengths or _is_fixed(wiring, name) for name in node.input):
            lengths.update(node.output)
        elif not _treats_tokens_alone(wiring, node, lengths):
            return None
    return region if start in needed and end in behind else None


def _treats_tokens_alone(wiring: Wiring, node: Any, lengths: set[str]) -> bool:
    if node.op_type in _ELEMENTWISE:
        return not any(wiring.is_scalar(name) and not _is_fixed(wiring, name) for name in node.input if name)
    if node.op_type in _PRODUCTS:
        return _is_fixed(wiring, node.input[1])
    if node.op_type == "Reshape":  # its target must follow how many tokens there are
        return node.input[1] in lengths or _is_fixed(wiring, node.input[1])
    if node.op_type in _OVER_AN_AXIS:
        attributes = {item.name: item for item in node.attribute}
        if "axis" in attributes:
            return attributes["axis"].i in _SIZE_AXES
        axes = wiring.constant(node.input[1]) if node.op_type.startswith("Reduce") and len(node.input) > 1 else None
        return axes is not None and axes.size == 1 and axes.item() in _SIZE_AXES
    return False


def _is_fixed(wiring: Wiring, name: str) -> bool:
    """Whether no run changes a value; what is left out counts, too."""
    while (node := wiring.producers.get(name)) is not None and node.op_type in ("Identity", "Transpose"):
        name = node.input[0]
    return not name or name in wiring.initializers or (node is not None and node.op_type == "Constant")


def _take(wiring: Wiring, name: str, size: int, readers: list[Any]) -> None:
    """Gives `readers`, in their order, the wanted tokens of a value (n, S, size): (1, m, size)."""
    flat, taken = f"{_PREFIX}{name}/flat", f"{_PREFIX}{name}"
    wiring.add(readers[0], "Reshape", [name, wiring.ints(f"{_PREFIX}to_{size}", 1, -1, size)], [flat])
    wiring.add(readers[0], "Gather", [flat, LOGIT_POSITIONS], [taken], axis=1)
    for reader in readers:
        reconnect(reader, name, taken)
