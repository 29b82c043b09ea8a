"""A result as Markdown, put between markers so that documents cannot drift from it.

<!-- encoders:NAME -->
whatever stood here is replaced
<!-- /encoders:NAME -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.encoders.results import EXACT, FEW, NEIGHBORS

Result = Mapping[str, Any]
_MARKED = re.compile(r"(<!-- encoders:([a-z-]+) -->\n).*?(<!-- /encoders:\2 -->)", re.DOTALL)
_OPENING = re.compile(r"<!-- encoders:([a-z-]+) -->")


def update(text: str, result: Result) -> str:
    """The document with every marked block written anew.

    Raises:
        ValueError: A marker names no block, or is not closed.
    """
    opened = _OPENING.findall(text)
    unknown = sorted(set(opened) - set(BLOCKS))
    if unknown:
        raise ValueError(f"No block is called {', '.join(unknown)}. There are: {', '.join(BLOCKS)}.")
    closed = [match.group(2) for match in _MARKED.finditer(text)]
    if closed != opened:
        raise ValueError(
            f"Expected an end to each of the blocks {opened}, found {closed}. Close with <!-- /encoders:... -->."
        )
    return _MARKED.sub(lambda match: f"{match.group(1)}{BLOCKS[match.group(2)](result)}\n{match.group(3)}", text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; all but the first are aligned to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, rule)
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    )


def headline(result: Result) -> str:
    """The rows that a reader of the README needs."""
    found = _pass(result, "mixed", busy=False)
    if found is None:
        return "Not measured."
    about = result["engines"]
    rows = [
        [
            _label(about[row["name"]]),
            f"{row['texts_per_s']:.1f}",
            _times(row["against_plain"]),
            _number(row["p50_ms"], 1),
            _number(row["p99_ms"], 1),
            f"{row['peak_rss_mb']:.0f}",
            _number(about[row["name"]]["first_result_s"], 1),
            f"{row['cosine_min']:.5f}",
        ]
        for row in _fastest_first(found)
    ]
    head = ["engine", "texts/s", "x plain", "p50 ms", "p99 ms", "peak MB", "first result s", "smallest cosine"]
    return f"{table(head, rows)}\n\n{machine(result)}"


def machine(result: Result) -> str:
    """One paragraph: the machine, the day and how quiet it was."""
    about = result["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in about["caches"].items())
    others = [found["others"] for found in result["passes"] if not found["busy"] and found["others"] is not None]
    quiet = f" Other processes took {max(others):.0%} of the processors meanwhile." if others else ""
    return (
        f"{about['processor']} (family, model, stepping {about['family']}), {about['cores']} cores, "
        f"{', '.join(about['flags']) or 'no vector extension of note'}; {caches}; {about['memory_gb']} GB; "
        f"Python {about['python']}; {result['begun'][:10]}; {result['model']}, medians of {result['rounds']} rounds."
        f"{quiet}"
    )


def throughput(corpus: str, *, busy: bool) -> Callable[[Result], str]:
    """The block with the speed and the likeness of one pass."""

    def block(result: Result) -> str:
        found = _pass(result, corpus, busy=busy)
        if found is None:
            return "Not measured."
        about = result["engines"]
        head = ["engine", "texts/s", "slowest - fastest", "x plain", "x best exact peer", "tokens/s", "CPU ms/text"]
        head += ["fp32 peak", "cosine, min", "mean", f"overlap@{NEIGHBORS}"]
        rows = [
            [
                _label(about[row["name"]]),
                f"{row['texts_per_s']:.1f}",
                f"{row['texts_per_s_min']:.1f} - {row['texts_per_s_max']:.1f}",
                _times(row["against_plain"]),
                _times(row["against_best"]),
                f"{row['tokens_per_s']:.0f}",
                f"{row['cpu_ms_per_text']:.1f}",
                f"{row['peak_share']:.0%}",
                f"{row['cosine_min']:.5f}",
                f"{row['cosine_mean']:.5f}",
                f"{row['overlap']:.3f}",
            ]
            for row in _fastest_first(found)
        ]
        best = found["best_exact_peer"]
        note = (
            f"{found['texts']} texts a round, {found['tokens'] / found['texts']:.0f} tokens on average; likeness over "
            f"{found['compared']} texts. Best exact peer (smallest cosine at least {EXACT}): "
            f"{about[best]['label'] if best else 'none'}."
        )
        if corpus == "mixed" and found["texts"] < FEW:
            note += " **Too few for a fair comparison: engines that sort by length have little to sort.**"
        if found["busy"]:
            note += f" Beside {found['busy']} busy loops."
        return f"{table(head, rows)}\n\n{note}"

    return block


def single(*, busy: bool) -> Callable[[Result], str]:
    """The block with the time of single requests."""

    def block(result: Result) -> str:
        found = _pass(result, "mixed", busy=busy)
        if found is None:
            return "Not measured."
        about = result["engines"]
        ordered = sorted(found["rows"], key=lambda row: row["p50_ms"])
        return table(
            ["engine", "p50 ms", "p99 ms"],
            [[_label(about[row["name"]]), _number(row["p50_ms"], 2), _number(row["p99_ms"], 2)] for row in ordered],
        )

    return block


def resources(result: Result) -> str:
    """Memory, start and what an idle engine costs."""
    found = _pass(result, "mixed", busy=False)
    if found is None:
        return "Not measured."
    about = result["engines"]
    rows = [
        [
            _label(about[row["name"]]),
            f"{row['peak_rss_mb']:.0f}",
            _number(about[row["name"]]["import_s"], 2),
            _number(about[row["name"]]["first_result_s"], 2),
            _number(about[row["name"]]["idle_cores"], 3),
        ]
        for row in sorted(found["rows"], key=lambda row: row["peak_rss_mb"])
    ]
    return table(["engine", "peak MB", "import s", "first result s", "idle cores"], rows)


def peaks(result: Result) -> str:
    """The best matrix products of the machine."""
    rows = [
        [rate["type"], rate["library"], " x ".join(map(str, rate["shape"])), f"{rate['gflops']:.0f}"]
        for rate in sorted(result["peaks"], key=lambda rate: (rate["type"] != "fp32", rate["type"], -rate["gflops"]))
    ]
    return table(["type", "library", "m x k x n", "10^9 operations/s"], rows)


def engines(result: Result) -> str:
    """Versions of every engine, what had to be set, and why one is missing."""
    lines = []
    for about in result["engines"].values():
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        environ = " ".join(f"{name}={value}" for name, value in about["environ"].items())
        parts = [versions, environ, about["setup"]]
        if about["failure"]:
            parts.append(f"**not measured: {about['failure']}**")
        lines.append(f"* {_label(about)}: " + "; ".join(part for part in parts if part))
    return "\n".join(lines)


def _pass(result: Result, corpus: str, *, busy: bool) -> Mapping[str, Any] | None:
    fitting = (found for found in result["passes"] if found["corpus"] == corpus and bool(found["busy"]) == busy)
    return next(fitting, None)


def _fastest_first(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(found["rows"], key=lambda row: -row["texts_per_s"])


def _label(about: Mapping[str, Any]) -> str:
    return f"**{about['label']}**" if about["ours"] else about["label"]


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


BLOCKS: Mapping[str, Callable[[Result], str]] = {
    "headline": headline,
    "machine": machine,
    "mixed": throughput("mixed", busy=False),
    "long": throughput("long", busy=False),
    "busy": throughput("mixed", busy=True),
    "single": single(busy=False),
    "single-busy": single(busy=True),
    "resources": resources,
    "peaks": peaks,
    "engines": engines,
}
