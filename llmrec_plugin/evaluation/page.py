"""The result as one HTML page without anything from outside: text, tables, and plots as inline SVG."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from llmrec_plugin.evaluation.report import COLUMNS, heading, interval, note, number

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667; --line: #d8dce2; --paper: #fff; --good: #1a7f37;
  --bad: #cf222e; --even: #6e7781; --control: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #333a44; --paper: #12161c;
  --good: #3fb950; --bad: #f85149; --even: #8b949e; --control: #d29922; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: right; padding: 0.25rem 0.5rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--soft); }
.scroll { overflow-x: auto; } .good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } svg .zero { stroke: var(--soft); } svg .label { fill: var(--soft); }
"""
_WIDTH, _NAMES, _ROW = 900, 250, 22


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    k, base = result["protocol"]["k"], result["protocol"]["base"]
    data = result["data"]
    title = f"Do features help the ranker? {data['name']}"
    parts = [f"<h1>{_text(title)}</h1>", f"<p>{_text(note(result))}</p>", f"<p>{_verdict(result)}</p>"]
    for ranker, arms in result["rankers"].items():
        parts += [
            f"<h2>{_text(ranker)}: difference of {heading('ndcg', k)} to {_text(base)}</h2>",
            "<p class='soft'>Points are means over users and seeds, lines 95 % intervals. Green or red: the interval "
            "excludes zero. Controls have features of the same shape without the meaning.</p>",
            _forest(arms, ["all"], k),
            f"<h2>{_text(ranker)}: slices</h2>",
            "<p class='soft'>Items of a slice are ranked among themselves.</p>",
            _forest(
                {name: arm for name, arm in arms.items() if not arm.get("control")},
                [label for label in result["slices"] if label != "all" and result["slices"][label]["lists"]],
                k,
            ),
            f"<h2>{_text(ranker)}: all metrics</h2>",
            _metrics(arms, result, k),
        ]
        if any("over_control" in arm for arm in arms.values()):
            parts += [f"<h2>{_text(ranker)}: arms and their controls</h2>", _controls(arms, k)]
    parts += [
        "<h2>Rankings without a ranker</h2>",
        _table(
            ["", *(heading(metric, k) for metric in COLUMNS)],
            [
                [_text(name), *(number(metrics["all"][metric]["mean"]) for metric in COLUMNS)]
                for name, metrics in result["baselines"].items()
            ],
        ),
        "<h2>Cost</h2>",
        _cost(result, k),
        "<h2>What was measured</h2>",
        _protocol(result),
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'/>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'/>"
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _verdict(result: dict[str, Any]) -> str:
    """One sentence for each ranker and arm."""
    said = []
    for ranker, arms in result["rankers"].items():
        for name, arm in arms.items():
            if "difference" not in arm or arm.get("control"):
                continue
            gain = arm["difference"]["all"]["ndcg"]
            shown = f"{_text(interval(gain))}"
            word = {"good": "helps", "bad": "harms", "even": "shows no effect on"}[_kind(gain)]
            said.append(f"<b>{_text(name)}</b> {word} {_text(ranker)}: {shown}.")
    return "<br/>".join(said)


def _forest(arms: dict[str, Any], labels: Sequence[str], k: int) -> str:
    """Points with intervals, one row for each arm and slice."""
    rows: list[tuple[str, dict[str, Any], bool]] = []
    for name, arm in arms.items():
        for label in labels:
            if "difference" in arm and arm["difference"][label]["ndcg"]["mean"] is not None:
                shown = name if len(labels) == 1 else f"{name}: {label}"
                rows.append((shown, arm["difference"][label]["ndcg"], bool(arm.get("control"))))
    if not rows:
        return "<p class='soft'>No arm to compare.</p>"
    ends = [float(gain[end]) for _, gain, _ in rows for end in ("low", "high")]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = (high - low) * 0.05 or 0.01
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return _NAMES + (value - low) / (high - low) * (_WIDTH - _NAMES - 190)

    height = _ROW * len(rows) + 34
    drawn = [f"<line class='zero' x1='{x(0):.1f}' x2='{x(0):.1f}' y1='4' y2='{height - 28}'/>"]
    for tick in _ticks(low, high):
        drawn.append(
            f"<line class='axis' x1='{x(tick):.1f}' x2='{x(tick):.1f}' y1='{height - 28}' y2='{height - 22}'/>"
        )
        drawn.append(
            f"<text class='label' x='{x(tick):.1f}' y='{height - 8}' text-anchor='middle'>{_tick(tick)}</text>"
        )
    for place, (name, gain, control) in enumerate(rows):
        y = _ROW * place + 16
        color = "var(--control)" if control and _kind(gain) == "even" else f"var(--{_kind(gain)})"
        drawn.append(f"<text x='0' y='{y + 4}'>{_text(name)}</text>")
        drawn.append(
            f"<line x1='{x(gain['low']):.1f}' x2='{x(gain['high']):.1f}' y1='{y}' y2='{y}' stroke='{color}' "
            "stroke-width='2'/>"
        )
        drawn.append(f"<circle cx='{x(gain['mean']):.1f}' cy='{y}' r='4' fill='{color}'/>")
        drawn.append(f"<text class='label' x='{_WIDTH}' y='{y + 4}' text-anchor='end'>{_text(interval(gain))}</text>")
    about = _text(f"Difference of {heading('ndcg', k)} with 95 % intervals")
    return (
        f"<svg viewBox='0 0 {_WIDTH} {height}' role='img' aria-label='{about}' xmlns='http://www.w3.org/2000/svg'>"
        + "".join(drawn)
        + "</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers."""
    raw = (high - low) / 5
    power = 10.0 ** len(str(int(1 / raw))) if raw < 1 else 1.0
    step = next((size / power for size in (0.5, 1, 2, 5, 10, 20, 50, 100) if size / power >= raw), raw)
    first = int(low / step) - 1
    return [place * step for place in range(first, first + 20) if low <= place * step <= high]


def _tick(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if value else "0"


def _kind(gain: dict[str, Any]) -> str:
    if gain["mean"] is None or gain["low"] <= 0 <= gain["high"]:
        return "even"
    return "good" if gain["mean"] > 0 else "bad"


def _metrics(arms: dict[str, Any], result: dict[str, Any], k: int) -> str:
    rows = []
    for label in result["slices"]:
        if not result["slices"][label]["lists"]:
            continue
        for name, arm in arms.items():
            gain = arm["difference"][label]["ndcg"] if "difference" in arm else None
            cells = [number(arm["metrics"][label][metric]["mean"]) for metric in COLUMNS]
            shown = f"<span class='{_kind(gain)}'>{interval(gain)}</span>" if gain else ""
            rows.append([f"{_text(label)}: {_text(name)}", *cells, shown])
    return _table(["", *(heading(metric, k) for metric in COLUMNS), f"{heading('ndcg', k)} difference"], rows)


def _controls(arms: dict[str, Any], k: int) -> str:
    rows = []
    for name, arm in arms.items():
        for control, difference in arm.get("over_control", {}).items():
            gain = difference["all"]["ndcg"]
            shown = f"<span class='{_kind(gain)}'>{interval(gain)}</span>"
            rows.append([f"{_text(name)} over {_text(control)}", shown])
    return _table(["", f"{heading('ndcg', k)} difference"], rows)


def _cost(result: dict[str, Any], k: int) -> str:
    rows = []
    for ranker, arms in result["rankers"].items():
        for name, arm in arms.items():
            if "cost" not in arm or arm.get("control"):
                continue
            cost = arm["cost"]
            rows.append(
                [
                    f"{_text(ranker)}: {_text(name)}",
                    number(cost["seconds"], 1),
                    number(cost["item_bytes"], 0),
                    number(cost["seconds_per_point"], 2),
                    number(cost["item_bytes_per_point"], 1),
                ]
            )
    about = (
        "<p class='soft'>Seconds of inference for all items and users once, extrapolated from a sample "
        f"without a cache. A point is 0.01 {heading('ndcg', k)}; where no gain is shown, there is no price.</p>"
    )
    names = ["", "seconds", "bytes an item", "seconds a point", "bytes an item and point"]
    return about + (_table(names, rows) if rows else "<p class='soft'>Nothing was declared that costs anything.</p>")


def _protocol(result: dict[str, Any]) -> str:
    data, slices = result["data"], result["slices"]
    rows = [
        ["interactions, users, items", f"{data['interactions']:,}, {data['users']:,}, {data['items']:,}"],
        ["split", "by time" if data["timed"] else "left out at random, or given"],
        ["relevant", f"rating {data['liked']:g} or more" if data["rated"] else "every interaction"],
        ["share of relevant items among the candidates", f"{result['protocol']['ceiling']:.1%}"],
    ]
    rows += [
        [_text(label), f"{_text(each['definition'])} {each['lists']} lists of {each['users']} users"]
        for label, each in slices.items()
    ]
    for ranker, arms in result["rankers"].items():
        rows += [
            [
                f"{_text(ranker)}: {_text(name)}",
                _text(", ".join(f"{key} {value}" for key, value in arm["params"].items())),
            ]
            for name, arm in arms.items()
        ]
    return _table(["", ""], rows)


def _table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML."""
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _text(value: str) -> str:
    return html.escape(str(value), quote=True)
