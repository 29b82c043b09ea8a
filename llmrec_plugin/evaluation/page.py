"""The result as one HTML page without anything from outside: text, tables, and plots as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmrec_plugin.evaluation.report import COLUMNS, heading, interval, note, number
from llmrec_plugin.pages import Html, document, element, joined, plot, shortened, table, text, tick, ticks

_WIDTH, _NAMES, _ROW = 900, 300, 22


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    title = f"Do features help the ranker? {result['data']['name']}"
    return document(title, [element("h1", title), *sections(result)])


def sections(result: dict[str, Any], *, level: int = 2) -> list[Html]:
    """What the page shows below its title, with headings of this level, to be put into other pages, too."""
    k, base = result["protocol"]["k"], result["protocol"]["base"]

    def head(words: str) -> Html:
        return element(f"h{level}", words)

    parts = [element("p", note(result)), element("p", _verdict(result))]
    for ranker, arms in result["rankers"].items():
        parts += [
            head(f"{ranker}: difference of {heading('ndcg', k)} to {base}"),
            _soft(
                "Points are means over users and seeds, lines 95 % intervals. Green or red: the interval "
                "excludes zero. Controls have features of the same shape without the meaning."
            ),
            _forest(arms, ["all"], k),
            head(f"{ranker}: slices"),
            _soft("Items of a slice are ranked among themselves."),
            _forest(
                {name: arm for name, arm in arms.items() if not arm.get("control")},
                _slices(result),
                k,
            ),
            head(f"{ranker}: all metrics"),
            _metrics(arms, "all", k),
            element(
                "details",
                element("summary", "The same for each slice"),
                *(_metrics(arms, label, k) for label in _slices(result)),
            ),
        ]
        if any("over_control" in arm for arm in arms.values()):
            parts += [head(f"{ranker}: arms and their controls"), _controls(arms, k)]
    return [
        *parts,
        head("Rankings without a ranker"),
        table(
            ["", *(heading(metric, k) for metric in COLUMNS)],
            [
                [name, *(number(metrics["all"][metric]["mean"]) for metric in COLUMNS)]
                for name, metrics in result["baselines"].items()
            ],
        ),
        head("Cost"),
        *_cost(result, k),
        head("What was measured"),
        _protocol(result),
    ]


def _verdict(result: dict[str, Any]) -> Html:
    """One sentence for each ranker and arm."""
    said = []
    for ranker, arms in result["rankers"].items():
        for name, arm in arms.items():
            if "difference" not in arm or arm.get("control"):
                continue
            gain = arm["difference"]["all"]["ndcg"]
            word = {"good": "helps", "bad": "harms", "even": "shows no effect on"}[_kind(gain)]
            said.append(joined([element("b", name), f" {word} {ranker}: {interval(gain)}."]))
    return joined(said, "<br/>")


def _forest(arms: dict[str, Any], labels: Sequence[str], k: int) -> Html:
    """Points with intervals, one row for each arm and slice."""
    rows: list[tuple[str, dict[str, Any], bool]] = []
    for name, arm in arms.items():
        for label in labels:
            if "difference" in arm and arm["difference"][label]["ndcg"]["mean"] is not None:
                shown = name if len(labels) == 1 else f"{name}: {label}"
                rows.append((shown, arm["difference"][label]["ndcg"], bool(arm.get("control"))))
    if not rows:
        return _soft("No arm to compare.")
    ends = [float(gain[end]) for _, gain, _ in rows for end in ("low", "high")]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = (high - low) * 0.05 or 0.01
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return _NAMES + (value - low) / (high - low) * (_WIDTH - _NAMES - 190)

    height = _ROW * len(rows) + 34
    drawn = [f"<line class='zero' x1='{x(0):.1f}' x2='{x(0):.1f}' y1='4' y2='{height - 28}'/>"]
    for place in ticks(low, high):
        drawn.append(
            f"<line class='axis' x1='{x(place):.1f}' x2='{x(place):.1f}' y1='{height - 28}' y2='{height - 22}'/>"
        )
        drawn.append(
            f"<text class='label' x='{x(place):.1f}' y='{height - 8}' text-anchor='middle'>{tick(place)}</text>"
        )
    for place, (name, gain, control) in enumerate(rows):
        y = _ROW * place + 16
        color = "var(--control)" if control and _kind(gain) == "even" else f"var(--{_kind(gain)})"
        drawn.append(f"<text x='0' y='{y + 4}'>{shortened(name, _NAMES)}</text>")
        drawn.append(
            f"<line x1='{x(gain['low']):.1f}' x2='{x(gain['high']):.1f}' y1='{y}' y2='{y}' stroke='{color}' "
            "stroke-width='2'/>"
        )
        drawn.append(f"<circle cx='{x(gain['mean']):.1f}' cy='{y}' r='4' fill='{color}'/>")
        drawn.append(f"<text class='label' x='{_WIDTH}' y='{y + 4}' text-anchor='end'>{text(interval(gain))}</text>")
    return plot(_WIDTH, height, f"Difference of {heading('ndcg', k)} with 95 % intervals", drawn)


def _kind(gain: dict[str, Any]) -> str:
    if gain["mean"] is None or gain["low"] <= 0 <= gain["high"]:
        return "even"
    return "good" if gain["mean"] > 0 else "bad"


def _gain(gain: dict[str, Any] | None) -> Html:
    return element("span", interval(gain), class_=_kind(gain)) if gain else Html()


def _slices(result: dict[str, Any]) -> list[str]:
    """The slices that have lists."""
    return [label for label, about in result["slices"].items() if label != "all" and about["lists"]]


def _metrics(arms: dict[str, Any], label: str, k: int) -> Html:
    rows = []
    for name, arm in arms.items():
        gain = arm["difference"][label]["ndcg"] if "difference" in arm else None
        cells = [number(arm["metrics"][label][metric]["mean"]) for metric in COLUMNS]
        rows.append([name, *cells, _gain(gain)])
    return table([label, *(heading(metric, k) for metric in COLUMNS), f"{heading('ndcg', k)} difference"], rows)


def _controls(arms: dict[str, Any], k: int) -> Html:
    rows = [
        [f"{name} over {control}", _gain(difference["all"]["ndcg"])]
        for name, arm in arms.items()
        for control, difference in arm.get("over_control", {}).items()
    ]
    return table(["", f"{heading('ndcg', k)} difference"], rows)


def _cost(result: dict[str, Any], k: int) -> list[Html]:
    rows = []
    for ranker, arms in result["rankers"].items():
        for name, arm in arms.items():
            if "cost" not in arm or arm.get("control"):
                continue
            cost = arm["cost"]
            rows.append(
                [
                    f"{ranker}: {name}",
                    number(cost["seconds"], 1),
                    number(cost["item_bytes"], 0),
                    number(cost["seconds_per_point"], 2),
                    number(cost["item_bytes_per_point"], 1),
                ]
            )
    about = _soft(
        "Seconds of inference for all items and users once, extrapolated from a sample "
        f"without a cache. A point is 0.01 {heading('ndcg', k)}; where no gain is shown, there is no price."
    )
    names = ["", "seconds", "bytes an item", "seconds a point", "bytes an item and point"]
    return [about, table(names, rows) if rows else _soft("Nothing was declared that costs anything.")]


def _protocol(result: dict[str, Any]) -> Html:
    data, slices = result["data"], result["slices"]
    rows = [
        ["interactions, users, items", f"{data['interactions']:,}, {data['users']:,}, {data['items']:,}"],
        ["split", "by time" if data["timed"] else "left out at random, or given"],
        ["relevant", f"rating {data['liked']:g} or more" if data["rated"] else "every interaction"],
        ["share of relevant items among the candidates", f"{result['protocol']['ceiling']:.1%}"],
    ]
    rows += [
        [label, f"{each['definition']} {each['lists']} lists of {each['users']} users"]
        for label, each in slices.items()
    ]
    for ranker, arms in result["rankers"].items():
        chosen: dict[str, list[str]] = {}
        for name, arm in arms.items():
            chosen.setdefault(", ".join(f"{key} {value}" for key, value in arm["params"].items()), []).append(name)
        rows += [[f"{ranker}, settings of {'; '.join(names)}", params] for params, names in chosen.items()]
    return table(["", ""], rows, words=True)


def _soft(words: str) -> Html:
    return element("p", words, class_="soft")
