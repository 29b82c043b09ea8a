"""Rotary position embeddings (RoFormer, section 3.2), where they can be, inside the fused attention.

An exported graph turns queries and keys with a dozen operations per layer. ``GroupQueryAttention`` does it while it
reads them, with tables of cosines and sines. They are computed by what the exporter wrote for that, given the positions
0, 1, ... instead of those of the tokens: whatever a model does to its frequencies is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from llmrec_plugin.export.toolchain import require
from llmrec_plugin.export.wiring import SWAP_HEADS, Wiring, permutation, reconnect

POSITIONS = "position_ids"

_PREFIX = "rotation/"
_BLOCK = 16
"""The size of a head must be a multiple of this, else ONNX Runtime refuses to rotate it."""


class _Rotation(NamedTuple):
    """``x cos + rotate_half(x) sin``.

    Attributes:
        x: (n, heads, S, head_dim).
        cos: (n, S, head_dim), of the positions.
        sin: Likewise.
    """

    x: str
    cos: str
    sin: str


def rotate_inside(graph: Any, total: str, head_dim: int) -> None:
    """Lets the attentions of an ONNX graph rotate their queries and keys, in place.

    Then nothing reads `POSITIONS` any more. The graph stays as it is if one of them is not preceded by a rotation of
    halves of whole heads, if ONNX Runtime does not rotate heads of this size, or if something else reads the positions.

    Args:
        graph: With a ``GroupQueryAttention`` per layer, each input of which is a ``Reshape`` of a ``Transpose``.
        total: The graph's input that tells how many tokens the longest row has.
        head_dim: Size of a head.
    """
    wiring = Wiring(graph)
    attentions = [node for node in wiring.nodes if node.op_type == "GroupQueryAttention"]
    outputs = [item.name for item in graph.output]
    turned = [name for node in attentions for name in node.input[:2]]
    found = {name: rotation for name in turned if (rotation := _rotation(wiring, name)) is not None}
    if len(found) < len(turned) or head_dim % _BLOCK:
        return
    tables = {node.output[0]: {(found[name].cos, found[name].sin) for name in node.input[:2]} for node in attentions}
    if any(len(pairs) > 1 for pairs in tables.values()):
        return
    if POSITIONS in _needed(wiring, outputs, {name: rotation.x for name, rotation in found.items()}):
        return
    _count_positions(wiring, total)
    for name in sorted({name for pairs in tables.values() for pair in pairs for name in pair}):
        _add_table(wiring, attentions[0], name, head_dim // 2)
    for name, rotation in found.items():
        _pass_by(wiring, name, rotation.x)
    for node in attentions:
        ((cos, sin),) = tables[node.output[0]]
        node.input.extend([_table(cos), _table(sin)])
        next(item for item in node.attribute if item.name == "do_rotary").i = 1
    wiring.prune(outputs)


def _rotation(wiring: Wiring, name: str) -> _Rotation | None:
    """The rotation whose result is `name`, (n, S, heads * head_dim)."""
    for operator in ("Reshape", "Transpose"):
        node = wiring.producer(name, operator)
        if node is None:
            return None
        name = node.input[0]
    total = wiring.producer(name, "Add")
    if total is None:
        return None
    straight, turned = (wiring.producer(item, "Mul") for item in total.input)
    if straight is None or turned is None:
        return None
    if _half_turned(wiring, turned.input[0]) is None:
        straight, turned = turned, straight
    x = _half_turned(wiring, turned.input[0])
    cos, sin = (wiring.producer(node.input[1], "Unsqueeze") for node in (straight, turned))
    if x is None or straight.input[0] != x or cos is None or sin is None:
        return None
    return _Rotation(x, cos.input[0], sin.input[0])


def _half_turned(wiring: Wiring, name: str) -> str | None:
    """`x` where `name` is concat(-second half of x, first half of x)."""
    joined = wiring.producer(name, "Concat")
    if joined is None or len(joined.input) != 2:
        return None
    negative = wiring.producer(joined.input[0], "Neg")
    halves = [wiring.producer(name, "Slice") for name in (negative.input[0] if negative else "", joined.input[1])]
    sources = {half.input[0] if half is not None else None for half in halves}
    return sources.pop() if len(sources) == 1 else None


def _needed(wiring: Wiring, outputs: Iterable[str], instead: Mapping[str, str]) -> set[str]:
    """All values that lead to `outputs`, if some values are made of others than they are."""
    needed, left = set(outputs), list(outputs)
    while left:
        name = left.pop()
        node = wiring.producers.get(name)
        sources = [instead[name]] if name in instead else list(node.input) if node is not None else []
        left += [source for source in sources if source not in needed]
        needed.update(sources)
    return needed


def _count_positions(wiring: Wiring, total: str) -> None:
    """Lets what reads the positions of the tokens, (n, S), read 0, 1, ..., (1, total)."""
    counted, range_, positions = (f"{_PREFIX}{name}" for name in ("total", "range", "positions"))
    first, int64 = wiring.nodes[0], require("onnx").TensorProto.INT64
    zero, one = wiring.number(f"{_PREFIX}zero", 0), wiring.number(f"{_PREFIX}one", 1)
    wiring.add(first, "Cast", [total], [counted], to=int64)
    wiring.add(first, "Range", [zero, counted, one], [range_])
    wiring.add(first, "Unsqueeze", [range_, wiring.ints(f"{_PREFIX}rows", 0)], [positions])
    for node in wiring.nodes:
        reconnect(node, POSITIONS, positions)


def _add_table(wiring: Wiring, before: Any, name: str, width: int) -> None:
    """Makes a table, (total, width), of the cosines or sines `name`, (1, total, 2 * width) with two equal halves."""
    bounds = [wiring.ints(f"{_PREFIX}{at}", at) for at in (0, width, 2)]
    wiring.add(before, "Slice", [name, *bounds], [f"{_table(name)}/half"])
    wiring.add(before, "Squeeze", [f"{_table(name)}/half", wiring.ints(f"{_PREFIX}rows", 0)], [_table(name)])


def _table(name: str) -> str:
    return f"{_PREFIX}{name}"


def _pass_by(wiring: Wiring, name: str, x: str) -> None:
    """Makes `name`, (n, S, heads * head_dim), of `x`, (n, heads, S, head_dim), instead of the rotated `x`."""
    flat = wiring.producers[name]
    swapped = wiring.producer(x, "Transpose")
    if swapped is not None and permutation(swapped) == SWAP_HEADS:
        flat.input[0] = swapped.input[0]
    else:
        wiring.producers[flat.input[0]].input[0] = x
