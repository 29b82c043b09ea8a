"""The chart of a result: speed, single requests and memory, one row of bars an engine.

    python -m benchmarks.encoders.chart RESULT.json CHART.svg

Runs in the environment ``chart``, the only one with matplotlib.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.encoders import results

OURS, EXACT, OTHER = "#d9480f", "#4c8dd6", "#9aa4af"  # each stands out on white and on black
INK = "#010203"  # stands for the reader's text color until the file is written
STYLE = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"


def main() -> None:
    result, target = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    draw(result, target)
    target.write_text(adapt(target.read_text(encoding="utf-8")), encoding="utf-8")


def draw(result: dict[str, Any], target: Path) -> None:
    """Draws the pass over the mixed texts."""
    import matplotlib as mpl

    mpl.use("svg")
    # Text stays text, and the same result gives the same file.
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "encoders", "font.family": "sans-serif", "font.size": 9}
    )
    for part in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
        mpl.rcParams[part] = INK
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    found = next(found for found in result["passes"] if found["corpus"] == "mixed" and not found["busy"])
    rows = sorted(found["rows"], key=lambda row: row["texts_per_s"])
    about = result["engines"]
    colors = [
        OURS if about[row["name"]]["ours"] else EXACT if row["cosine_min"] >= results.EXACT else OTHER for row in rows
    ]
    panels = (
        ("texts/s (longer is better)", "texts_per_s"),
        ("one request, p50 ms (shorter is better)", "p50_ms"),
        ("peak memory, MB (shorter is better)", "peak_rss_mb"),
    )
    figure, axes = pyplot.subplots(1, 3, sharey=True, figsize=(11, 0.38 * len(rows) + 1.4), layout="constrained")
    for axis, (title, key) in zip(axes, panels, strict=True):
        values = [row[key] for row in rows]
        bars = axis.barh([about[row["name"]]["label"] for row in rows], values, color=colors, height=0.7)
        axis.bar_label(bars, [f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in values], padding=3)
        axis.set_title(title, fontsize=9)
        axis.set_xlim(0, max(values) * 1.18)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(bottom=False, labelbottom=False, left=False)
    legend = [
        Patch(color=OURS, label="ours"),
        Patch(color=EXACT, label="exact peer"),
        Patch(color=OTHER, label="not exact"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
    if found["texts"] < results.FEW:
        figure.suptitle(f"{found['texts']} texts a round: too few for a fair comparison", fontsize=9)
    figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def adapt(svg: str) -> str:
    """The drawing with text in the reader's color: dark on light pages and light on dark ones."""
    return re.sub(r"(<svg[^>]*>)", rf"\1{STYLE}", svg.replace(INK, "currentColor"), count=1)


if __name__ == "__main__":
    main()
