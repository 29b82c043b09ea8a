"""Small plots as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from llmrec_plugin.pages.markup import Html, element, joined, text

_WIDTH = 900


def histogram(counts: Sequence[int], edges: Sequence[float], label: str, *, digits: int = 3) -> Html:
    """Counts of equal bins, as columns.

    Args:
        counts: n counts.
        edges: n + 1 edges of the bins.
        label: What is counted, for those who do not see the plot.
        digits: Decimals of the edges.
    """
    height, top, base = 150, 16, 126
    most = max(counts, default=0) or 1
    width = _WIDTH / len(counts)
    drawn = []
    for place, count in enumerate(counts):
        tall = count / most * (base - top)
        between = f"{edges[place]:.{digits}f} to {edges[place + 1]:.{digits}f}: {count:,}"
        drawn.append(
            f"<rect class='bar' x='{place * width + 1:.1f}' y='{base - tall:.1f}' width='{width - 2:.1f}' "
            f"height='{tall:.1f}'><title>{between}</title></rect>"
        )
    drawn.append(f"<line class='zero' x1='0' x2='{_WIDTH}' y1='{base}' y2='{base}'/>")
    drawn.append(f"<text class='label' x='0' y='11'>up to {most:,} in a bin</text>")
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        value = edges[0] + share * (edges[-1] - edges[0])
        drawn.append(
            f"<text class='label' x='{share * _WIDTH:.0f}' y='{base + 18}' text-anchor='{anchor}'>"
            f"{value:.{digits}f}</text>"
        )
    return plot(_WIDTH, height, label, drawn)


def bars(rows: Sequence[tuple[str, float, str]], label: str, *, names: int = 250) -> Html:
    """Named values from zero on, as bars.

    Args:
        rows: Name, value of at least zero, and how the value is written.
        label: What they are.
        names: Width of the names, in units of 900 for the whole plot.
    """
    step, values = 22, 120
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    drawn = []
    for place, (name, value, written) in enumerate(rows):
        y = step * place
        long = value / most * (_WIDTH - names - values)
        drawn.append(f"<text x='0' y='{y + 15}'>{shortened(name, names)}</text>")
        drawn.append(f"<rect class='bar' x='{names}' y='{y + 4}' width='{long:.1f}' height='14'/>")
        drawn.append(f"<text class='label' x='{names + long + 6:.1f}' y='{y + 15}'>{text(written)}</text>")
    return plot(_WIDTH, step * len(rows) + 4, label, drawn)


def stacked(rows: Sequence[tuple[str, Sequence[tuple[str, int]], str]], label: str, *, names: int = 250) -> Html:
    """Named amounts as parts of their sum, all bars of one length.

    Args:
        rows: Name, (class of the part, amount) in order, and what is written behind the bar.
        label: What they are.
        names: Width of the names, in units of 900 for the whole plot.
    """
    step, long = 22, _WIDTH - names - 200
    drawn = []
    for place, (name, parts, written) in enumerate(rows):
        y = step * place
        total = sum(amount for _, amount in parts) or 1
        drawn.append(f"<text x='0' y='{y + 15}'>{shortened(name, names)}</text>")
        x = float(names)
        for kind, amount in parts:
            width = amount / total * long
            drawn.append(f"<rect class='{text(kind)}' x='{x:.1f}' y='{y + 4}' width='{width:.1f}' height='14'/>")
            x += width
        drawn.append(f"<text class='label' x='{names + long + 8}' y='{y + 15}'>{text(written)}</text>")
    return plot(_WIDTH, step * len(rows) + 4, label, drawn)


def shortened(name: str, width: float) -> Html:
    """A name that fits into `width`, in SVG text; the whole of a cut one is its title."""
    letters = int(width / 6.6)  # of the 12 px font; a little more than the mean letter
    if len(name) <= letters:
        return text(name)
    return joined([name[: letters - 1], "…", element("title", name)])


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    if not high > low:
        return []
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]


def tick(value: float) -> str:
    """A tick's number."""
    return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) > 1e-9 else "0"


def plot(width: float, height: float, label: str, drawn: Iterable[str], **attributes: object) -> Html:
    """An SVG image of what was drawn, which must be escaped already."""
    inner = Html("".join(drawn))
    box = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label, **attributes}
    return element("svg", inner, xmlns="http://www.w3.org/2000/svg", **box)
