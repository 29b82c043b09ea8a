"""What it costs to get stored vectors into a numpy matrix: Feast's own ways and ours, in one run.

    python benchmarks/fetch.py [--entities 500] [--dims 384] [--repeats 40] [--output result.json]

Makes a feature repo in a temporary folder with one random encoder and four features of the same vectors, one per
storage; materializes them into SQLite, starts ``feast serve``, and times every way once per repeat, in an order drawn
anew each time. A time is that from entity names to a (n, dims) float32 matrix; every way's matrix is checked.
The server is a process of its own on the same machine; each HTTP request opens a connection. CPU is that of the
reading process, which says more than the time on a machine that does other things, too.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import os
import platform
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import WORDS, export_tiny

from llmrec_plugin.artifacts import ArtifactStore

STORAGES = ("list", "float32", "float16", "int8")
TOLERANCE = {"list": 0.0, "float32": 0.0, "float16": 1e-3, "int8": 0.5 / 127}
BASELINES = {"sdk": "Feast get_online_features().to_dict()", "http": "Feast HTTP JSON, json.loads"}

CONFIGURATION = """
project: benchmark
provider: local
registry: {path: data/registry.db}
online_store: {type: sqlite, path: data/online.db}
materialization: {pull_latest_features: true, online_write_batch_size: 1000}
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
    schema=[Field(name="item", dtype=String), Field(name="title", dtype=String)],
    source=FileSource(name="items", path="data/items.parquet", timestamp_field="event_timestamp"),
)
for storage in {storages}:
    globals()[storage] = EmbeddingFeature(
        name="item_" + storage, entity="item", text="{{title}}", model="tiny", pooling="mean", normalize=True,
        prefix="", metric="cosine", max_tokens=16, dims={dims}, storage=storage,
    )
publish(globals())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entities", type=int, default=500)
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--output", type=Path, help="result as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fetch-benchmark-") as folder:
        os.environ |= {"LLMREC_HOME": f"{folder}/home", "LLMREC_PROGRESS": "0", "PYTHONWARNINGS": "ignore"}
        repo = Path(folder) / "repo"
        items = make_repo(repo, args.entities, args.dims)
        with serving(repo) as url:
            result = measure(repo, url, items, args.dims, args.repeats)
    result["conditions"] = {
        "entities": args.entities,
        "dims": args.dims,
        "repeats": args.repeats,
        "processors": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in ("feast", "numpy", "protobuf")},
    }
    print(as_table(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


def make_repo(repo: Path, entities: int, dims: int) -> list[str]:
    """A materialized feature repo; the names of its items."""
    (repo / "data").mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(CONFIGURATION)
    (repo / "features.py").write_text(FEATURES.format(storages=STORAGES, dims=dims))
    rng = np.random.default_rng(0)
    items = [f"item-{number}" for number in range(entities)]
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    table = {
        "item": items,
        "title": [" ".join(rng.choice(WORDS, 12)) for _ in items],
        "event_timestamp": pa.array([at] * entities, pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(table), repo / "data" / "items.parquet")
    export_tiny(ArtifactStore([repo.parent / "home" / "artifacts"]), dims=dims)
    for command in (["apply"], ["materialize", "2025-01-01", "2027-01-01"]):
        subprocess.run([feast_command(), *command], cwd=repo, check=True, capture_output=True)
    rng.shuffle(items)
    return items


def feast_command() -> str:
    return str(Path(sys.executable).with_name("feast"))


@contextlib.contextmanager
def serving(repo: Path) -> Iterator[str]:
    """A feature server's address."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        feast_command(),
        "serve",
        "--port",
        str(port),
        "--max-requests",
        "0",
        "--workers",
        "1",
        "--no-access-log",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=repo, stdin=subprocess.DEVNULL, **quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            if process.poll() is not None:
                raise SystemExit("`feast serve` did not start.")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def measure(repo: Path, url: str, items: list[str], dims: int, repeats: int) -> dict[str, Any]:
    ways = all_ways(repo, url, items)
    reference = ways[BASELINES["sdk"]]()
    for name, way in ways.items():  # the first call of each loads what it needs
        storage = next((item for item in STORAGES if name.endswith(item)), "list")
        matrix = way()
        if isinstance(matrix, np.ndarray):
            assert matrix.shape == (len(items), dims)
            np.testing.assert_allclose(matrix, reference, rtol=0, atol=TOLERANCE[storage], err_msg=name)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}  # wall and CPU
    rng = np.random.default_rng(0)
    for _ in range(repeats):
        for name in rng.permutation(list(ways)):
            started = time.perf_counter(), time.process_time()
            ways[name]()
            seconds[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
    medians = {name: np.median(values, axis=0) * 1e3 for name, values in seconds.items()}
    result = {}
    for name, (wall, cpu) in medians.items():
        base_wall, base_cpu = medians[BASELINES["http" if "HTTP" in name else "sdk"]]
        low, high = np.quantile(np.array(seconds[name])[:, 0] * 1e3, [0.25, 0.75])
        result[name] = {
            "median_ms": round(float(wall), 2),
            "quartiles_ms": [round(float(low), 2), round(float(high), 2)],
            "times_faster": round(float(base_wall / wall), 2),
            "cpu_ms": round(float(cpu), 2),
            "times_less_cpu": round(float(base_cpu / cpu), 2),
        }
    return {
        "ways": result,
        "bytes_per_entity": {
            storage: {"stored": stored_bytes(repo, storage), "http": round(len(ask(url, items, storage)) / len(items))}
            for storage in STORAGES
        },
    }


def all_ways(repo: Path, url: str, items: list[str]) -> dict[str, Callable[[], Any]]:
    from feast import FeatureStore

    from llmrec_plugin.feast import fetch, layout_of
    from llmrec_plugin.serving import fetch_http

    store = FeatureStore(repo_path=str(repo))
    entities = {"item": items}
    rows = [{"item": item} for item in items]

    def read(storage: str) -> Any:
        return store.get_online_features(features=[f"item_{storage}:item_{storage}"], entity_rows=rows)

    def http_lists() -> np.ndarray:
        answer = json.loads(ask(url, items, "list"))
        place = answer["metadata"]["feature_names"].index("item_list")
        return np.array(answer["results"][place]["values"], dtype=np.float32)

    ways: dict[str, Callable[[], Any]] = {
        "Feast get_online_features() alone, no matrix": lambda: read("list"),
        BASELINES["sdk"]: lambda: np.array(read("list").to_dict()["item_list"], dtype=np.float32),
        "Feast get_online_features().to_df()": lambda: np.stack(read("list").to_df()["item_list"]).astype(np.float32),
        BASELINES["http"]: http_lists,
    }
    for storage in STORAGES:
        layout = layout_of(store, [f"item_{storage}:item_{storage}"])
        ways[f"fetch, {storage}"] = functools.partial(lambda layout: fetch(store, layout, entities).matrix, layout)
        ways[f"fetch_http (HTTP), {storage}"] = functools.partial(
            lambda layout: fetch_http(url, layout, entities).matrix, layout
        )
    return ways


def ask(url: str, items: list[str], storage: str) -> bytes:
    body = json.dumps({"features": [f"item_{storage}:item_{storage}"], "entities": {"item": items}}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/get-online-features", body, headers)) as response:
        return response.read()


def stored_bytes(repo: Path, storage: str) -> int:
    """Mean length of the value in the online table, keys and timestamps aside."""
    with contextlib.closing(sqlite3.connect(repo / "data" / "online.db")) as database:
        query = f'SELECT AVG(LENGTH(value)) FROM "benchmark_item_{storage}"'
        return round(database.execute(query).fetchone()[0])


def as_table(result: dict[str, Any]) -> str:
    conditions = result["conditions"]
    lines = [
        f"{conditions['entities']} entities x {conditions['dims']} floats, medians of {conditions['repeats']} repeats, "
        f"{conditions['processors']} processors, load {conditions['load_average'][0]}",
        "",
        f"{'':46}{'ms':>8}{'quartiles':>17}{'times faster':>14}{'CPU ms':>8}{'times less':>12}",
    ]
    for group in ("sdk", "http"):
        for name, row in result["ways"].items():
            if ("HTTP" in name) == (group == "http"):
                low, high = row["quartiles_ms"]
                lines.append(
                    f"{name:46}{row['median_ms']:8.1f}{f'{low:.1f} - {high:.1f}':>17}{row['times_faster']:14.2f}"
                    f"{row['cpu_ms']:8.1f}{row['times_less_cpu']:12.2f}"
                )
    lines += ["", f"{'bytes per entity':46}{'stored':>8}{'over HTTP':>17}"]
    lines += [f"{name:46}{row['stored']:8}{row['http']:17}" for name, row in result["bytes_per_entity"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
