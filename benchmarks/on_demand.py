"""On-demand features under load: throughput and latency of ``feast serve``, and whether its event loop stalls.

    python benchmarks/on_demand.py --artifacts .llmrec/artifacts [--against ../other-checkout] [--out result.json]

Starts a server per checkout on a repo with one stored item and a query feature, and lets 1, 4 and 16 clients ask
for the similarity of a query and the item, one request after the other:

    distinct    every query is new
    shared      every query is new, and all clients ask for the same one at about the same time
    cached      20 queries in turn

Two checkouts take turns, cell by cell, so both meet the same machine. ``/health`` is asked every 20 ms meanwhile:
it answers from the event loop and waits whenever that is blocked. The model must be exported.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

FEATURES = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import String
from llmrec_plugin import EmbeddingFeature, SimilarityFeature
from llmrec_plugin.feast import publish

item = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)
item_text = FeatureView(
    name="item_text", entities=[item], ttl=timedelta(days=36500), schema=[Field(name="title", dtype=String)],
    source=FileSource(path="items.parquet", timestamp_field="event_timestamp"),
)
model = dict(
    model="{model}", pooling="mean", normalize=True, prefix="", metric="cosine", max_tokens={max_tokens}, dims={dims}
)
item_text_embedding = EmbeddingFeature(name="item_text_embedding", entity="item", text="{{title}}", **model)
query_embedding = EmbeddingFeature(name="query_embedding", entity=None, text="{{query}}", **model)
score = SimilarityFeature(name="score", left="query_embedding", right="item_text_embedding", metric="cosine")
llm = publish(globals())
"""
CONFIGURATION = """
project: benchmark
provider: local
registry: {path: registry.db}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""
WORDS = """
    fast small secure simple distributed parallel graphical command line tool library server client editor parser
    compiler database network image audio video text mail web python java kernel driver file system backup monitor
""".split()


class Server:
    """One checkout's ``feast serve``."""

    def __init__(
        self, name: str, checkout: Path, folder: Path, files: dict[str, str], environ: dict[str, str], workers: int
    ) -> None:
        self.name = name
        with contextlib.closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._environ = {**os.environ, **environ, "PYTHONPATH": str(checkout), "PYTHONWARNINGS": "ignore"}
        self.folder = folder
        if not (folder / "registry.db").exists():
            prepare(folder, files, self._environ)
        command = [feast(), "serve", "-h", "127.0.0.1", "-p", str(self.port), "-w", str(workers)]
        self.process = subprocess.Popen(
            [*command, "--max-requests", "0", "--no-access-log"],
            cwd=folder,
            env=self._environ,
            stdout=(folder / "serve.log").open("ab"),
            stderr=subprocess.STDOUT,
        )

    def wait(self) -> None:
        for _ in range(600):
            with contextlib.suppress(OSError):
                Client(self.port).health()
                return
            time.sleep(0.2)
        raise SystemExit(f"{self.name} did not start: {self.folder / 'serve.log'}")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


class Client:
    """A connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def health(self) -> None:
        self._connection.request("GET", "/health")
        self._connection.getresponse().read()

    def score(self, query: str) -> float:
        body = json.dumps({"features": ["score:score"], "entities": {"item": ["i"], "query": [query]}})
        self._connection.request("POST", "/get-online-features", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(answer)
        return json.loads(answer)["results"][1]["values"][0]


def feast() -> str:
    return str(Path(sys.executable).with_name("feast"))


def prepare(folder: Path, files: dict[str, str], environ: dict[str, str]) -> None:
    """Makes a repo of these files over one item, and materializes it."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    frame = pd.DataFrame({"item": ["i"], "title": ["a fast parser"], "event_timestamp": [pd.Timestamp.now("UTC")]})
    frame.to_parquet(folder / "items.parquet", coerce_timestamps="us")
    for command in (["apply"], ["materialize", "2020-01-01T00:00:00", "2100-01-01T00:00:00"]):
        subprocess.run([feast(), *command], cwd=folder, env=environ, check=True, capture_output=True)


def queries(kind: str, seed: str, client: int) -> Iterator[str]:
    """An endless run of queries of 4 to 10 words."""
    choose = random.Random(f"{seed} {client if kind == 'distinct' else ''}")

    def text() -> str:
        return " ".join(choose.choices(WORDS, k=choose.randint(4, 10))) + f" {choose.randrange(10**9)}"

    if kind == "cached":
        some = [" ".join(WORDS[i : i + 6]) for i in range(20)]
        while True:
            yield from some
    while True:
        yield text()


def measure(server: Server, kind: str, clients: int, seconds: float, seed: str) -> dict[str, Any]:
    """Throughput in requests/s; latencies in ms."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    stalls: list[float] = []
    together = threading.Barrier(clients + 1)
    over = threading.Event()

    def work(number: int) -> None:
        client = Client(server.port)
        client.health()
        together.wait()
        for query in queries(kind, seed, number):
            if over.is_set():
                return
            begun = time.perf_counter()
            client.score(query)
            latencies[number].append((time.perf_counter() - begun) * 1000)

    def watch() -> None:
        client = Client(server.port)
        client.health()
        together.wait()
        while not over.wait(0.02):
            begun = time.perf_counter()
            client.health()
            stalls.append((time.perf_counter() - begun) * 1000)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    threads.append(threading.Thread(target=watch))
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    over.set()
    for thread in threads:
        thread.join()
    every = np.concatenate(latencies)
    return {
        "requests_per_s": round(len(every) / seconds, 1),
        "p50_ms": round(float(np.percentile(every, 50)), 1),
        "p99_ms": round(float(np.percentile(every, 99)), 1),
        "health_p50_ms": round(float(np.percentile(stalls, 50)), 1),
        "health_p99_ms": round(float(np.percentile(stalls, 99)), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, required=True, help="folder with the exported model")
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--dims", type=int, default=384)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a cell")
    parser.add_argument("--rounds", type=int, default=1, help="how often each cell is measured")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--queries", nargs="+", default=["distinct", "shared", "cached"])
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    checkouts = {"before": options.against} if options.against else {}
    checkouts["after"] = Path(__file__).parents[1]
    features = FEATURES.format(model=options.model, dims=options.dims, max_tokens=options.max_tokens)
    files = {"features.py": features, "feature_store.yaml": CONFIGURATION}
    root = Path(tempfile.mkdtemp(prefix="on-demand-"))
    rows = []
    try:
        for workers in options.workers:
            servers = []
            try:
                for name, checkout in checkouts.items():
                    environ = {
                        "LLMREC_HOME": str(root / name / "home"),
                        "LLMREC_ARTIFACTS": str(options.artifacts.absolute()),
                        "LLMREC_PROGRESS": "0",
                    }
                    folder = root / name / "repo"
                    servers.append(Server(name, checkout.absolute(), folder, files, environ, workers))
                for server in servers:
                    server.wait()
                    measure(server, "distinct", 8, 3, f"{server.name} warm {workers}")
                for turn in range(options.rounds):
                    for kind in options.queries:
                        for clients in options.clients:
                            for server in servers[:: -1 if turn % 2 else 1]:
                                seed = f"{workers} {turn} {clients}"
                                cell = measure(server, kind, clients, options.seconds, seed)
                                rows.append(
                                    {
                                        "workers": workers,
                                        "queries": kind,
                                        "clients": clients,
                                        "code": server.name,
                                        **cell,
                                    }
                                )
                                print(rows[-1], file=sys.stderr, flush=True)
            finally:
                for server in servers:
                    server.stop()
    finally:
        shutil.rmtree(root, ignore_errors=True)
    medians = pd.DataFrame(rows).groupby(["workers", "queries", "clients", "code"], sort=False).median().reset_index()
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "model": options.model,
        "seconds_per_cell": options.seconds,
        "rounds": options.rounds,
        "median_cells": medians.to_dict("records"),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(medians.to_string(index=False))


if __name__ == "__main__":
    main()
