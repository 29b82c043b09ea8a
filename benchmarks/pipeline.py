"""The whole pipeline, from parquet to the online store: rows per second, and where the time goes.

    python benchmarks/pipeline.py [--rows 50000] [--against ../checkout] [--output result.json]
    python benchmarks/pipeline.py --model all-minilm-l6-v2 --artifacts .llmrec/artifacts --texts packages.jsonl.gz
        --rows 2000

Every turn is a process of its own that makes a feature repo in a temporary folder, applies it and materializes one
view into SQLite with `LLMComputeEngine`, twice:

    first   nothing is cached: every text is encoded
    again   the same window once more: every row is written, every vector comes from the value cache

The stages are timed by wrapping the functions that make them up. A stage's seconds are its own: time spent in another
stage that it calls counts there. *Rest* is what no stage covers, most of it Feast's start of the run. With the random
encoder, which takes some microseconds per text, everything but the model shows. With ``--against`` the checkouts take
turns; the processor time of the whole process depends less than wall time on what else the machine does.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import materialize

STAGES = (
    "read", "ledger", "assemble", "cache get", "tokenize", "inference", "finish", "cache put", "embed", "messages",
    "online write", "rest",
)  # fmt: skip
TOTALS = ("all", "all, CPU")
RUNS = ("first", "again")
START, END = (datetime.datetime.fromisoformat(f"{day}T00:00:00+00:00") for day in materialize.WINDOW)


class Stopwatch:
    """Seconds by stage in the main thread; what a stage calls of another is the other's."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner: list[float] = []  # per stage that is open, the seconds of the stages in it

    def wrap(self, stage: str, owner: Any, *names: str) -> None:
        """Times the functions of `owner`, and iterators that they return; those that a checkout lacks are left out."""
        for name in names:
            if hasattr(owner, name):
                setattr(owner, name, self.timed(stage, getattr(owner, name)))

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            result = self._call(stage, function, *arguments, **options)
            return self._items(stage, result) if isinstance(result, Iterator) else result

        return call

    def _items(self, stage: str, iterator: Iterator[Any]) -> Iterator[Any]:
        over = object()
        while (item := self._call(stage, next, iterator, over)) is not over:
            yield item

    def _call(self, stage: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return function(*arguments, **options)
        self._inner.append(0.0)
        clock = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds = time.perf_counter() - clock
            self.seconds[stage] += seconds - self._inner.pop()
            if self._inner:
                self._inner[-1] += seconds


def watch_stages(watch: Stopwatch) -> None:
    """Wraps the functions that make up the stages."""
    from feast.infra.online_stores.sqlite import SqliteOnlineStore

    from llmrec_plugin.feast import engine, jobs
    from llmrec_plugin.runtime import rawrows, runner
    from llmrec_plugin.runtime.cache import ValueCache
    from llmrec_plugin.runtime.encoder import Encoder
    from llmrec_plugin.runtime.ledger import Target

    watch.wrap("read", rawrows.RawRows, "newest", "read")
    watch.wrap("read", engine, "concatenate")
    watch.wrap("ledger", Target, "begin_run", "written_by_this_run", "lookup", "write", "count_invalid", "sample")
    watch.wrap("ledger", engine, "states", "entries")
    watch.wrap("ledger", jobs, "states")
    watch.wrap("assemble", runner, "assemble")
    watch.wrap("cache get", ValueCache, "get_many")
    watch.wrap("inference", Encoder, "encode")
    watch.wrap("finish", runner, "finish", "combine")
    watch.wrap("cache put", ValueCache, "put_many")
    watch.wrap("embed", runner.Runner, "embed")
    watch.wrap("messages", engine, "to_protos")
    watch.wrap("online write", SqliteOnlineStore, "online_write_batch")

    class TimedTokenizer:
        def __init__(self, tokenizer: Any) -> None:
            self.encode_batch_fast = watch.timed("tokenize", tokenizer.encode_batch_fast)

    tokenizer = Encoder._tokenizer
    Encoder._tokenizer = lambda encoder, length: TimedTokenizer(tokenizer(encoder, length))


def main() -> None:
    options = _arguments()
    if options.child:
        print(json.dumps(_child(options)))
        return
    checkouts = {"before": options.against} if options.against else {}
    checkouts["after"] = Path(__file__).parents[1]
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
    for turn in range(options.turns):
        for name in list(checkouts)[:: -1 if turn % 2 else 1]:
            turns[name].append(_measure(checkouts[name], options))
            print(name, json.dumps(turns[name][-1]), file=sys.stderr, flush=True)
    result = {
        "conditions": {
            "rows": options.rows,
            "model": options.model or f"random, {options.dims} dims",
            "turns": options.turns,
            "processors": os.cpu_count(),
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "python": platform.python_version(),
            **{name: version(name) for name in ("feast", "onnxruntime", "pyarrow")},
        },
        "seconds": {name: _medians(found) for name, found in turns.items()},
    }
    print(_table(result))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dims", type=int, default=384, help="of the random encoder")
    parser.add_argument("--model", help="an exported model instead of the random encoder")
    parser.add_argument("--artifacts", type=Path, help="folder with the exported model")
    parser.add_argument("--texts", type=Path, help="JSON lines with a description, gzipped")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--output", type=Path, help="where the results go as JSON")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(checkout: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a process with the code of `checkout` measures."""
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        environ = os.environ | {
            "PYTHONPATH": str(checkout.absolute()),
            "PYTHONWARNINGS": "ignore",
            "LLMREC_HOME": f"{folder}/home",
            "LLMREC_PROGRESS": "0",
        }
        command = [sys.executable, str(Path(__file__).absolute()), "--child", "--rows", str(options.rows)]
        command += ["--dims", str(options.dims)]
        if options.model:
            environ["LLMREC_ARTIFACTS"] = str(options.artifacts.absolute())
            command += ["--model", options.model]
        command += ["--texts", str(options.texts.absolute())] if options.texts else []
        repo = Path(folder) / "repo"
        (repo / "data").mkdir(parents=True)
        done = subprocess.run(command, cwd=repo, env=environ, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def _child(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds by run and stage, and of the whole run."""
    repo = Path.cwd()
    if options.model:
        declared = {"model": options.model, "dims": 384, "max_tokens": 256}
    else:
        materialize.export_tiny(
            materialize.ArtifactStore([Path(os.environ["LLMREC_HOME"]) / "artifacts"]), dims=options.dims
        )
        declared = {"model": "tiny", "dims": options.dims, "max_tokens": 16}
    (repo / "feature_store.yaml").write_text(materialize.CONFIGURATION + materialize.OURS + "\n")
    (repo / "features.py").write_text(materialize.FEATURES.format(**declared))
    materialize.write_source(repo, materialize.load_texts(options.rows, options.texts))
    subprocess.run(
        [sys.executable, "-c", "from feast.cli.cli import cli; cli()", "apply"], check=True, capture_output=True
    )
    from feast import FeatureStore

    watch = Stopwatch()
    watch_stages(watch)
    found: dict[str, dict[str, float]] = {}
    for run in RUNS:
        watch.seconds.clear()
        clock, cpu = time.perf_counter(), time.process_time()
        FeatureStore(repo_path=".").materialize(START, END, [materialize.VIEW])
        seconds = time.perf_counter() - clock
        stages = dict(watch.seconds)
        found[run] = {
            **stages,
            "rest": seconds - sum(stages.values()),
            "all": seconds,
            "all, CPU": time.process_time() - cpu,
        }
    return found


def _medians(turns: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        run: {
            stage: round(statistics.median(turn[run].get(stage, 0.0) for turn in turns), 3)
            for stage in (*STAGES, *TOTALS)
        }
        for run in RUNS
    }


def _table(result: dict[str, Any]) -> str:
    seconds, rows = result["seconds"], result["conditions"]["rows"]
    columns = [(code, run) for run in RUNS for code in seconds]
    table = {"seconds": [f"{run}, {code}" for code, run in columns]}
    table |= {stage: [f"{seconds[code][run][stage]:.2f}" for code, run in columns] for stage in (*STAGES, *TOTALS)}
    table["rows/s"] = [f"{rows / seconds[code][run]['all']:,.0f}" for code, run in columns]
    return "\n".join(name.ljust(14) + "".join(cell.rjust(16) for cell in cells) for name, cells in table.items())


if __name__ == "__main__":
    main()
