"""Materializing: memory against rows, the rerun after a small change, ours beside Feast's local engine.

    python benchmarks/materialize.py [--rows 10000 100000 300000] [--dims 384] [--output result.json]
    python benchmarks/materialize.py --model all-minilm-l6-v2 --texts packages.jsonl.gz --rows 2000

Makes a feature repo of random texts (or of the `description`s of a JSON-lines file) in a temporary folder and runs
``feast materialize`` into SQLite, each run a process of its own whose wall time, and whose peak resident memory, the
operating system reports:

    first       nothing is cached
    again       the same window once more: every row is written, nothing is computed
    1 % changed  ``materialize-incremental`` after one row in a hundred got another text
    unchanged   ``materialize-incremental`` with nothing to do

The stock engine does the first and the second with ``pull_latest_features`` and ``online_write_batch_size`` set. It has
no third: rows whose timestamp did not change are invisible to it, so the whole window is what finds them.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import WORDS, export_tiny

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.runtime.cache import ValueCache

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
WINDOW = ("2025-01-01", "2026-06-01")
VIEW = "item_embedding"
OURS = "batch_engine: {type: llmrec_plugin.feast.engine.LLMComputeEngine}"
STOCK = "materialization: {pull_latest_features: true, online_write_batch_size: 1000}"

CONFIGURATION = """
project: benchmark
provider: local
registry: {path: data/registry.db}
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""
FEATURES = """
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.types import String

from llmrec_plugin import EmbeddingFeature
from llmrec_plugin.feast import publish

item = Entity(name="item", join_keys=["item"])
item_text = FeatureView(
    name="item_text",
    entities=[item],
    ttl=timedelta(days=36_500),
    schema=[Field(name="item", dtype=String), Field(name="text", dtype=String)],
    source=FileSource(name="items", path="data/items.parquet", timestamp_field="event_timestamp"),
)
item_embedding = EmbeddingFeature(
    name="item_embedding", entity="item", text="{{text}}", model={model!r}, pooling="mean", normalize=True, prefix="",
    metric="cosine", max_tokens={max_tokens}, dims={dims},
)
publish(globals())
"""


def main() -> None:
    arguments = _arguments()
    results = []
    for rows in arguments.rows:
        for engine, line in (("ours", OURS), ("stock", STOCK)):
            with tempfile.TemporaryDirectory() as folder:
                results += _measure(Path(folder), engine, line, rows, arguments)
    print(_table(results))
    if arguments.output:
        packages = {name: version(name) for name in ("feast", "onnxruntime", "pyarrow", "llmrec-plugin")}
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        arguments.output.write_text(
            json.dumps({"machine": machine, "packages": packages, "results": results}, indent=2) + "\n"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 300_000])
    parser.add_argument("--dims", type=int, default=384, help="of the random encoder")
    parser.add_argument("--model", help="an exported model instead of the random encoder")
    parser.add_argument("--texts", type=Path, help="JSON lines with a description, gzipped")
    parser.add_argument("--output", type=Path, help="where the results go as JSON")
    return parser.parse_args()


def _measure(root: Path, engine: str, line: str, rows: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    repo, home = root / "repo", root / "home"
    (repo / "data").mkdir(parents=True)
    if arguments.model:
        source = Path(os.environ.get("LLMREC_HOME", Path.home() / ".llmrec")) / "artifacts"
        shutil.copytree(source / arguments.model, home / "artifacts" / arguments.model)
        declared = {"model": arguments.model, "dims": 384, "max_tokens": 256}
    else:
        export_tiny(ArtifactStore([home / "artifacts"]), dims=arguments.dims)
        declared = {"model": "tiny", "dims": arguments.dims, "max_tokens": 16}
    (repo / "feature_store.yaml").write_text(CONFIGURATION + line + "\n")
    (repo / "features.py").write_text(FEATURES.format(**declared))
    texts = load_texts(rows, arguments.texts)
    write_source(repo, texts)
    _feast(repo, home, "apply")

    runs = [
        ("first", ("materialize", *WINDOW)),
        ("again", ("materialize", *WINDOW)),
        ("1 % changed", ("materialize-incremental", "2026-07-01")),
        ("unchanged", ("materialize-incremental", "2026-08-01")),
    ]
    results = []
    for name, command in runs if engine == "ours" else runs[:2]:
        if name == "1 % changed":
            write_source(repo, [f"new {text}" if number % 100 == 0 else text for number, text in enumerate(texts)])
        seconds, peak = _feast(repo, home, *command, "--views", VIEW)
        report = ValueCache(home / "cache", 2**40).runs()[-1]
        results.append(
            {
                "rows": rows,
                "engine": engine,
                "run": name,
                "written": report.rows,
                "computed": report.computed,
                "seconds": round(seconds, 1),
                "seconds_inside": round(report.seconds, 1),
                "peak_mib": round(peak / 2**20),
            }
        )
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    return results


def load_texts(rows: int, file: Path | None) -> list[str]:
    if file is not None:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["description"] for _, line in zip(range(rows), lines, strict=False)]
        if len(texts) < rows:
            raise SystemExit(f"{file} holds {len(texts)} texts, expected at least {rows}.")
        return texts
    words = np.random.default_rng(0).choice(WORDS, (rows, 6))
    return [f"{' '.join(row)} {number}" for number, row in enumerate(words)]


def write_source(repo: Path, texts: list[str]) -> None:
    times = [START + datetime.timedelta(seconds=number) for number in range(len(texts))]
    table = pa.table(
        {
            "item": [f"item{number}" for number in range(len(texts))],
            "text": texts,
            "event_timestamp": pa.array(times, pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, repo / "data" / "items.parquet")


def _feast(repo: Path, home: Path, *arguments: str) -> tuple[float, int]:
    """Runs ``feast`` in a process of its own; returns wall seconds and peak resident bytes."""
    environ = os.environ | {"LLMREC_HOME": str(home), "LLMREC_PROGRESS": "0", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", "from feast.cli.cli import cli; cli()", *arguments]
    clock = time.perf_counter()
    with (repo / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=repo, env=environ, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"feast {' '.join(arguments)} failed:\n{(repo / 'log').read_text()}")
    return time.perf_counter() - clock, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _table(results: list[dict[str, Any]]) -> str:
    header = list(results[0])
    cells = [header] + [[str(result[name]) for name in header] for result in results]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in cells)


if __name__ == "__main__":
    main()
