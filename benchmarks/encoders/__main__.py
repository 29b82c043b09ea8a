"""python -m benchmarks.encoders: measures, writes the result and the chart, and brings documents up to date."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.encoders import report
from benchmarks.encoders.engines import ENGINES, select

ROOT = Path(__file__).parents[2]


def main() -> None:
    options = parse(sys.argv[1:])
    if not options.render:
        for result in measure(options):  # written after each pass, so that a run cut short leaves something
            options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    result = json.loads(options.output.read_text(encoding="utf-8"))
    draw(options.output, options.folder)
    for path in options.update:
        path.write_text(report.update(path.read_text(encoding="utf-8"), result), encoding="utf-8")
    for name in ("machine", "mixed", "single", "resources", "long", "busy", "single-busy", "peaks", "engines"):
        print(f"\n{name}\n\n{report.BLOCKS[name](result)}")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoders", description="Encoders side by side, see docs/benchmarks/encoders.md."
    )
    parser.add_argument("--texts", type=Path, help="packages.jsonl.gz; default: the sample in feature_repo")
    parser.add_argument("--count", type=int, default=1024, help="texts of the mixed corpus; the long one has an eighth")
    parser.add_argument("--timed", type=int, default=512, help="how many of them a timed round encodes")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each corpus")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes of each engine")
    parser.add_argument("--requests", type=int, default=300, help="single requests of each engine")
    parser.add_argument("--engines", nargs="+", default=[], metavar="NAME", help=", ".join(e.name for e in ENGINES))
    parser.add_argument("--long", action="store_true", help="also texts that fill the model's length")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="also the mixed corpus beside N busy loops")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs/benchmarks/encoders.json", help="the chart lies beside"
    )
    parser.add_argument("--update", type=Path, nargs="+", default=[], metavar="FILE", help="documents with markers")
    parser.add_argument("--folder", type=Path, default=ROOT / ".bench", help="environments, exported models and logs")
    parser.add_argument("--render", action="store_true", help="measure nothing, show the result in --output again")
    options = parser.parse_args(arguments)
    options.folder, options.output = options.folder.absolute(), options.output.absolute()
    return options


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    # Only measuring needs the project's dependencies; they take seconds to load.
    from benchmarks.encoders.corpus import SAMPLE, Texts
    from benchmarks.encoders.models import prepare
    from benchmarks.encoders.run import Pass, Plan, Run

    engines = select(options.engines)
    model = prepare(options.model, options.folder)
    path = options.texts or SAMPLE
    texts = Texts(path, model.tokenizer, model.max_tokens)
    timed = min(options.timed, options.count)
    mixed = texts.mixed(options.count)
    passes = [Pass(mixed, timed)]
    if options.long:
        passes.append(Pass(texts.long(max(options.count // 8, 1)), max(timed // 8, 1), single=False))
    if options.busy:
        passes.append(Pass(mixed, timed, options.busy))
    plan = Plan(
        engines=engines,
        passes=passes,
        short=texts.short(options.requests),
        repeats=options.repeats,
        starts=options.starts,
        folder=options.folder,
    )
    return ({"texts": path.name, **result} for result in Run(plan, model)())


def draw(output: Path, folder: Path) -> None:
    from benchmarks.encoders.environments import python_of

    command = [python_of("chart", folder), "-m", "benchmarks.encoders.chart", output, output.with_suffix(".svg")]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "MPLCONFIGDIR": str(folder / "matplotlib")})


if __name__ == "__main__":
    main()
