"""The way of values as a picture: sources and models on the left, views in the middle, services on the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

from llmrec_plugin.pages import Html, plot, shortened, text

if TYPE_CHECKING:
    from llmrec_plugin.feast.lineage import Lineage

Node: TypeAlias = tuple[str, str]
"""Column and name."""

COLUMNS = ("source", "model", "stored view", "on-demand view", "service")
_WIDTHS = (205, 145, 215, 220, 145)
_STEP, _TOP, _LETTER = 22, 34, 6.4


def diagram(features: Sequence[Lineage]) -> Html:
    """Every view with what it reads and who reads it; views of request time that nobody reads are left out."""
    shown = [item for item in features if item.when == "batch" or item.services or not item.view.endswith("_on_demand")]
    edges = list(dict.fromkeys(edge for item in shown for edge in _edges(item, shown)))
    nodes = dict.fromkeys(node for edge in edges for node in edge)
    places = _places(nodes, edges)
    height = _TOP + _STEP * max((row for _, row in places.values()), default=0) + _STEP
    drawn = [
        f"<text class='head' x='{_left(column)}' y='14'>{text(name)}</text>" for column, name in enumerate(COLUMNS)
    ]
    drawn += [_curve(places[left], places[right], left[1]) for left, right in edges]
    for node, (column, row) in places.items():
        name = shortened(_label(node), _WIDTHS[column] - 24)
        drawn.append(f"<text x='{_left(column)}' y='{_TOP + row * _STEP + 4:.1f}'>{name}</text>")
    words = "Which sources and models each view reads, and which on-demand views and services read it; as in the table."
    return plot(sum(_WIDTHS), height, words, drawn)


def _edges(item: Lineage, shown: Iterable[Lineage]) -> list[tuple[Node, Node]]:
    here = ("stored view" if item.when == "batch" else "on-demand view", item.view)
    stored = {other.view for other in shown if other.when == "batch"}
    edges: list[tuple[Node, Node]] = [(("source", source), here) for source in item.source]
    edges += [(("model", model), here) for model, _ in item.models]
    edges += [(("stored view", view), here) for view in item.reads if item.when == "on_demand" and view in stored]
    edges += [(here, ("on-demand view", view)) for view in item.read_by]
    edges += [(here, ("service", service)) for service in item.served_by]
    return edges


def _places(nodes: Iterable[Node], edges: Sequence[tuple[Node, Node]]) -> dict[Node, tuple[int, float]]:
    """Column and row of each node: within a column by the mean row of what leads to it."""
    places: dict[Node, tuple[int, float]] = {}
    for column, name in enumerate(COLUMNS):
        here = [node for node in nodes if node[0] == name]
        before = {node: [places[left][1] for left, right in edges if right == node and left in places] for node in here}
        here.sort(key=lambda node: sum(before[node]) / len(before[node]) if before[node] else -1.0)
        places |= {node: (column, float(row)) for row, node in enumerate(here)}
    most = max((row for _, row in places.values()), default=0.0)
    last = {name: max((row for node, (_, row) in places.items() if node[0] == name), default=0.0) for name in COLUMNS}
    return {node: (column, row + (most - last[node[0]]) / 2) for node, (column, row) in places.items()}


def _curve(left: tuple[int, float], right: tuple[int, float], name: str) -> str:
    start = _left(left[0]) + min(_LETTER * len(_label((COLUMNS[left[0]], name))), _WIDTHS[left[0]] - 24) + 6
    end = _left(right[0]) - 6
    y, to = (_TOP + row * _STEP for _, row in (left, right))
    bend = (end - start) / 2
    return (
        f"<path class='edge' d='M{start:.0f} {y:.1f}C{start + bend:.0f} {y:.1f} {end - bend:.0f} {to:.1f} "
        f"{end:.0f} {to:.1f}'/>"
    )


def _left(column: int) -> int:
    return sum(_WIDTHS[:column])


def _label(node: Node) -> str:
    return PurePosixPath(node[1]).name if node[0] == "source" else node[1]
