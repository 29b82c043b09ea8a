"""What one new text costs on its way through the request path, beyond the inference itself.

    python benchmarks/request_path.py --artifacts .llmrec/artifacts [--texts packages.jsonl.gz] [--against ../checkout]
        [--output result.json]

In one process, every way is timed once per round, in an order drawn anew, each on a text that nothing has seen:

    session            the ONNX session alone, on tokens made beforehand
    tokenizer+session  the tokenizer and the session
    embed              `Runner.compute(..., "on_demand")`
    get_online         `FeatureStore.get_online_features` of the on-demand view
    stock view         the same call for a view of Feast's own that returns a vector that is ready

All share one loaded session, whose `run` is timed inside of every way, so that what a way adds is told apart from an
inference that happened to be slow: *added* is a way's time without its own inference, round by round; its 10th
percentile is near to what it is on a machine that does nothing else. The stock view says how much of that is Feast's.
Vectors are written to the cache before the next way's turn, except in *back to back*, where requests follow each other
without a pause.

With ``--against`` a process of each checkout is measured, in turns. The model must be exported.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

CONFIGURATION = """
project: benchmark
provider: local
registry: {path: registry.db}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""
FEATURES = """
from feast import Field, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Float32, String
from llmrec_plugin import EmbeddingFeature
from llmrec_plugin.feast import publish

query_embedding = EmbeddingFeature(
    name="query_embedding", entity=None, text="{{query}}", model={model!r}, pooling="mean", normalize=True, prefix="",
    metric="cosine", max_tokens=256, dims={dims},
)
request = RequestSource(name="request", schema=[Field(name="query", dtype=String)])

@on_demand_feature_view(
    sources=[request], schema=[Field(name="stock_vector", dtype=Array(Float32))], mode="python",
)
def stock_view(inputs: dict) -> dict:
    return {{"stock_vector": [[0.25] * {dims}] * len(inputs["query"])}}

llm = publish(globals())
"""
WORDS = """
    fast small secure simple distributed parallel graphical command line tool library server client editor parser
    compiler database network image audio video text mail web python java kernel driver file system backup monitor
""".split()
TOKENS = range(14, 19)
WAYS = ("session", "tokenizer+session", "embed", "get_online", "stock view", "back to back")


class TimedSession:
    """An ONNX session that sums the time spent in it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.seconds = 0.0

    def run(self, *arguments: Any) -> Any:
        clock = time.perf_counter()
        outputs = self._session.run(*arguments)
        self.seconds += time.perf_counter() - clock
        return outputs


def main() -> None:
    options = _arguments()
    if options.child:
        _child(options)
        return
    checkouts = {"before": options.against} if options.against else {}
    checkouts["after"] = Path(__file__).parents[1]
    times: dict[str, list[dict[str, list[list[float]]]]] = {name: [] for name in checkouts}
    with tempfile.TemporaryDirectory(prefix="request-path-") as folder:
        children = {name: _start(Path(folder) / name, checkout, options) for name, checkout in checkouts.items()}
        for turn in range(options.turns):
            for name in list(children)[:: -1 if turn % 2 else 1]:
                children[name].stdin.write(f"{turn}\n")
                children[name].stdin.flush()
                line = children[name].stdout.readline()
                if not line:
                    raise SystemExit(f"The process of checkout {name!r} ended.")
                times[name].append(json.loads(line))
        for child in children.values():
            child.stdin.close()
            child.wait(60)
    result = {
        "conditions": {
            "model": options.model,
            "rounds": options.turns * options.rounds,
            "processors": os.cpu_count(),
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "python": platform.python_version(),
            **{name: version(name) for name in ("feast", "onnxruntime", "tokenizers")},
        },
        "milliseconds": {name: _summary(turns) for name, turns in times.items()},
    }
    print(_table(result))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, required=True, help="folder with the exported model")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--texts", type=Path, help="JSON lines with a description, gzipped; default: random words")
    parser.add_argument("--rounds", type=int, default=100, help="per turn")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--output", type=Path, help="where the results go as JSON")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _start(folder: Path, checkout: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that measures the code of one checkout, turn by turn."""
    folder.mkdir()
    environ = os.environ | {
        "PYTHONPATH": str(checkout.absolute()),
        "PYTHONWARNINGS": "ignore",
        "LLMREC_HOME": str(folder / "home"),
        "LLMREC_ARTIFACTS": str(options.artifacts.absolute()),
        "LLMREC_PROGRESS": "0",
    }
    command = [sys.executable, str(Path(__file__).absolute()), "--child", "--artifacts", str(options.artifacts)]
    command += ["--model", options.model, "--dims", str(options.dims), "--rounds", str(options.rounds)]
    command += ["--texts", str(options.texts.absolute())] if options.texts else []
    return subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _child(options: argparse.Namespace) -> None:
    ways = _Ways(options)
    for name in WAYS:  # the first of each kind is slower
        for text in islice(ways.texts, 20):
            ways.timed(name, text)
    for line in sys.stdin:
        draw = random.Random(line)
        times: dict[str, list[list[float]]] = {name: [] for name in WAYS}
        for _ in range(options.rounds):
            for name in draw.sample(WAYS[:-1], len(WAYS) - 1):
                times[name].append(ways.timed(name, next(ways.texts)))
                ways.runner.drain()
        for text in islice(ways.texts, options.rounds):
            times[WAYS[-1]].append(ways.timed(WAYS[-1], text))
        ways.runner.drain()
        print(json.dumps(times), flush=True)


class _Ways:
    """The ways of this process, by name."""

    def __init__(self, options: argparse.Namespace) -> None:
        Path("feature_store.yaml").write_text(CONFIGURATION)
        Path("features.py").write_text(FEATURES.format(model=options.model, dims=options.dims))
        apply = [sys.executable, "-c", "from feast.cli.cli import cli; cli()", "apply"]
        subprocess.run(apply, check=True, capture_output=True)
        from feast import FeatureStore

        from llmrec_plugin.runtime.runner import runner_for
        from llmrec_plugin.settings import load_settings

        self._store = FeatureStore(repo_path=".")
        view = self._store.get_on_demand_feature_view("query_embedding")
        self._bound = view.feature_transformation.udf.bound
        self.runner = runner_for(load_settings())
        self.runner.load(self._bound)
        encoder = self.runner.models.encoder(self._bound, "online")
        # Since runtimes have a contract of their own, the bare session is inside theirs.
        holder = encoder._opened.session if hasattr(encoder, "_opened") else encoder
        self._session = holder._session = TimedSession(holder._session)
        self._manifest = encoder.artifact.manifest
        self._tokenizer = encoder._tokenizer(self._bound.feature.max_tokens)
        self._tokens: dict[str, np.ndarray] = {}
        self._ways: dict[str, Callable[[str], object]] = {
            "session": lambda text: self._run(self._tokens[text]),
            "tokenizer+session": lambda text: self._run(self._tokenize(text)),
            "embed": lambda text: self.runner.compute(self._bound, {"query": [text]}, "on_demand"),
            "get_online": lambda text: self._get("query_embedding:query_embedding", text),
            "stock view": lambda text: self._get("stock_view:stock_vector", text),
            "back to back": lambda text: self._get("query_embedding:query_embedding", text),
        }
        self.texts = self._fresh(_texts(options.texts))

    def timed(self, name: str, text: str) -> list[float]:
        """Milliseconds of the whole, and of the inference in it."""
        self._session.seconds = 0.0
        clock = time.perf_counter()
        self._ways[name](text)
        seconds = time.perf_counter() - clock
        return [round(1000 * seconds, 4), round(1000 * self._session.seconds, 4)]

    def _get(self, feature: str, text: str) -> object:
        return self._store.get_online_features([feature], [{"query": text}])

    def _tokenize(self, text: str) -> np.ndarray:
        return np.array([self._tokenizer.encode(text).ids], dtype=np.int64)

    def _run(self, ids: np.ndarray) -> object:
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        feeds = {name: inputs[name] for name in self._manifest.inputs}
        return self._session.run([self._manifest.output], feeds)

    def _fresh(self, texts: Iterator[str]) -> Iterator[str]:
        """Those of about 16 tokens, their tokens remembered."""
        for text in texts:
            ids = self._tokenize(text)
            if ids.shape[1] in TOKENS:
                self._tokens = {text: ids}
                yield text


def _texts(file: Path | None) -> Iterator[str]:
    """An endless run of different texts of 8 to 14 words."""
    draw = random.Random(0)
    descriptions = [" ".join(WORDS)]
    if file is not None:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            descriptions = [json.loads(line)["description"] for line in lines]
    seen = set()
    while True:
        words = draw.choice(descriptions).split() if file else draw.choices(WORDS, k=20)
        start = draw.randrange(max(len(words) - 8, 1))
        text = " ".join(words[start : start + draw.randint(8, 14)])
        if text not in seen:
            seen.add(text)
            yield text


def _summary(turns: list[dict[str, list[list[float]]]]) -> dict[str, dict[str, float]]:
    summary = {}
    for name in WAYS:
        whole, inside = np.array([row for turn in turns for row in turn[name]]).T
        added = whole - inside
        summary[name] = {
            "p50": round(float(np.percentile(whole, 50)), 3),
            "p99": round(float(np.percentile(whole, 99)), 3),
            "inference_p50": round(float(np.percentile(inside, 50)), 3),
            "added_p10": round(float(np.percentile(added, 10)), 3),
            "added_p50": round(float(np.percentile(added, 50)), 3),
            "added_p99": round(float(np.percentile(added, 99)), 3),
        }
    return summary


def _table(result: dict[str, Any]) -> str:
    columns = ("p50", "p99", "inference_p50", "added_p10", "added_p50", "added_p99")
    lines = ["ms".ljust(27) + "".join(name.replace("_", " ").rjust(15) for name in columns)]
    for code, ways in result["milliseconds"].items():
        for name, row in ways.items():
            lines.append(f"{code:8}{name:19}" + "".join(f"{row[column]:15.2f}" for column in columns))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
