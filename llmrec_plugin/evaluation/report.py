"""The result as a table for a terminal."""

from __future__ import annotations

from typing import Any

COLUMNS = ("ndcg", "recall", "hr", "mrr", "auc")


def heading(metric: str, k: int) -> str:
    """A metric's name with its cutoff: ``ndcg@10``."""
    return metric if metric in ("mrr", "auc") else f"{metric}@{k}"


def interval(values: dict[str, float | None], digits: int = 4) -> str:
    """``+0.012 [+0.003, +0.020]``, or nothing."""
    if values["mean"] is None:
        return ""
    mean, low, high = (f"{values[name]:+.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def number(value: float | None, digits: int = 4) -> str:
    """A number, or a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def table(result: dict[str, Any], *, slices: tuple[str, ...] = ("all", "warm items", "cold items")) -> str:
    """Arms by ranker and slice, with differences to the base arm, and baselines."""
    k, base = result["protocol"]["k"], result["protocol"]["base"]
    header = ["", *(heading(metric, k) for metric in COLUMNS), f"{heading('ndcg', k)} - {base}"]
    lines: list[list[str]] = []
    for label in slices:
        about = result["slices"][label]
        if not about["lists"]:
            continue
        lines.append([f"{label} ({about['lists']} lists of {about['users']} users)"])
        for ranker, arms in result["rankers"].items():
            for name, arm in arms.items():
                cells = [number(arm["metrics"][label][metric]["mean"]) for metric in COLUMNS]
                gained = interval(arm["difference"][label]["ndcg"]) if "difference" in arm else ""
                lines.append([f"  {ranker}: {name}", *cells, gained])
        for name, metrics in result["baselines"].items():
            lines.append([f"  {name}", *(number(metrics[label][metric]["mean"]) for metric in COLUMNS), ""])
    rows = [header, *(line for line in lines if len(line) > 1)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(header))]

    def row(cells: list[str]) -> str:
        if len(cells) == 1:
            return f"\n{cells[0]}"
        rest = "  ".join(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"{cells[0].ljust(widths[0])}  {rest}".rstrip()

    return "\n".join([row(header), *map(row, lines), "", note(result)])


def note(result: dict[str, Any]) -> str:
    """What the numbers are."""
    protocol = result["protocol"]
    ranked = f"all {protocol['items_ranked']:,} items"
    if protocol["plan"]["candidates"] is not None:
        held = f"{protocol['ceiling']:.1%} of the relevant items"
        ranked = f"{protocol['items_ranked']:,} candidates of a recall stage, which hold {held},"
    return (
        f"{result['data']['name']}: {protocol['lists']} lists of {protocol['users']} users; each ranks {ranked} that "
        f"the user has not had. Mean over users of their lists, {protocol['seeds']} seeds. [95 % intervals]: paired "
        "bootstrap over users and seeds. Ties as trec_eval breaks them."
    )
