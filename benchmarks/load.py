"""``feast serve`` under open-loop load, to saturation and beyond: latency against rate, what is shed, what is kept.

    python -m benchmarks.load --artifacts .llmrec/artifacts [--stores sqlite redis] [--workers 1 2] [--out load.json]
    python -m benchmarks.load --artifacts .llmrec/artifacts --rates 10 --soak 60

Requests arrive at random (Poisson) at a given rate, whether or not those before are answered, and a latency counts
from when the request was due: a server that falls behind cannot slow down its clients to look better. Four of five
requests ask for the similarity of a new query and a stored item, the fifth for the tags of a new text; both have a
deadline and a status. ``/health`` is asked every 20 ms meanwhile and answers from the event loop. Latencies are those
of requests that were answered, with a value or the fallback; what was refused (503) is counted beside them.

With ``--soak`` a rate is kept for so many minutes, and the memory of the server is noted twice a minute.

Both models must be exported. Redis is the one that ``make services`` fetched.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pandas as pd
import psutil
import uvloop

from benchmarks.on_demand import Server, queries
from tests.services.servers import Redis

FEATURES = """
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import String
from llmrec_plugin import EmbeddingFeature, SimilarityFeature, Tags, TokenFeature
from llmrec_plugin.feast import publish

item = Entity(name="item", join_keys=["item"], value_type=ValueType.STRING)
item_text = FeatureView(
    name="item_text", entities=[item], ttl=timedelta(days=36500), schema=[Field(name="title", dtype=String)],
    source=FileSource(path="items.parquet", timestamp_field="event_timestamp"),
)
model = dict(
    model="all-minilm-l6-v2", pooling="mean", normalize=True, prefix="", metric="cosine", max_tokens=256, dims=384
)
on_time = dict(deadline_ms=DEADLINE, status=True)
item_text_embedding = EmbeddingFeature(name="item_text_embedding", entity="item", text="{title}", **model)
query_embedding = EmbeddingFeature(name="query_embedding", entity=None, text="{query}", **model, **on_time)
score = SimilarityFeature(
    name="score", left="query_embedding", right="item_text_embedding", metric="cosine", status=True
)
text_tags = TokenFeature(
    name="text_tags", entity=None, text="{text}", model="debian-tagger", output=Tags(max_items=12), **on_time
)
llm = publish(globals())
"""
CONFIGURATION = """
project: benchmark
provider: local
registry: {{path: registry.db, cache_ttl_seconds: 3600}}
online_store: {store}
entity_key_serialization_version: 3
"""
STATIC_ARTIFACTS = """
import asyncio, os, time
from pathlib import Path
from llmrec_plugin.feast import load_artifacts as load

beats = Path(__file__).parent / f"beats.{os.getpid()}"
tasks = []

async def beat():
    while True:
        lines = []
        while len(lines) < 100:
            began, busy = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.005)
            late, busy = time.perf_counter() - began - 0.005, time.thread_time() - busy
            lines.append(f"{time.time()} {late * 1000} {busy * 1000}\\n")
        with beats.open("a") as file:
            file.writelines(lines)

def load_artifacts(app):
    load(app)
    tasks.append(asyncio.get_running_loop().create_task(beat()))
"""
"""Each worker notes how late its event loop is every 5 ms, and how long the loop's thread had computed: what is late
without having computed waited for a core, or for another thread to give Python's lock away."""
TAGGED = 0.2
"""Share of the requests that ask for tags."""
CLIENT_SECONDS = 30
"""A client that has waited so long for an answer leaves."""
ANSWERED = ("ok", "fallback")
REFUSED = "HTTP 503"
MIB = 2**20


class Load:
    """Requests to one server, and what became of them."""

    def __init__(self, port: int, seed: str) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._random = random.Random(seed)
        self._queries = queries("distinct", seed, 0)
        self._latencies: dict[str, list[float]] = {"score": [], "text_tags": []}
        self._outcomes: Counter[str] = Counter()
        self._health: list[float] = []
        self._late: list[float] = []

    async def run(self, rate: float, seconds: float) -> dict[str, Any]:
        """Latencies in ms, from when requests were due, and shares of all requests."""
        timeout = aiohttp.ClientTimeout(total=CLIENT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            watching = asyncio.create_task(self._watch(session))
            begun = due = time.perf_counter()
            requests = []
            while due < begun + seconds:
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                self._late.append((time.perf_counter() - due) * 1000)
                requests.append(asyncio.create_task(self._ask(session, due)))
                due += self._random.expovariate(rate)
            await asyncio.gather(*requests)
            took = time.perf_counter() - begun
            watching.cancel()
        return self._summary(len(requests), took) | {"rate": rate}

    async def _ask(self, session: aiohttp.ClientSession, due: float) -> None:
        feature = "text_tags" if self._random.random() < TAGGED else "score"
        entities = {"text": [next(self._queries)]} if feature == "text_tags" else {
            "item": ["i"], "query": [next(self._queries)]
        }  # fmt: skip
        names = [f"{feature}:{feature}", f"{feature}:{feature}_status"]
        try:
            async with session.post(
                f"{self._url}/get-online-features", json={"features": names, "entities": entities}
            ) as response:
                answer = await response.json(content_type=None)
                status = f"HTTP {response.status}" if response.status != 200 else _status(answer, f"{feature}_status")
        except (aiohttp.ClientError, TimeoutError) as exc:
            status = type(exc).__name__
        self._outcomes[status] += 1
        if status in ANSWERED:
            self._latencies[feature].append((time.perf_counter() - due) * 1000)

    async def _watch(self, session: aiohttp.ClientSession) -> None:
        while True:
            asked = time.perf_counter()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{self._url}/health") as response:
                    await response.read()
            self._health.append((time.perf_counter() - asked) * 1000)
            await asyncio.sleep(0.02)

    def _summary(self, requests: int, took: float) -> dict[str, Any]:
        failed = {name: count for name, count in self._outcomes.items() if name not in (*ANSWERED, REFUSED)}
        row: dict[str, Any] = {"answered_per_s": round(sum(self._outcomes[name] for name in ANSWERED) / took, 1)}
        for feature, latencies in self._latencies.items():
            if latencies:
                row[f"{feature}_p50_ms"], row[f"{feature}_p99_ms"] = (
                    np.percentile(latencies, [50, 99]).round(1).tolist()
                )
        health = np.percentile(self._health, [50, 99]).round(1).tolist()
        shares = {
            name: round(self._outcomes[status] / requests, 4)
            for name, status in {"fallback": "fallback", "refused": REFUSED}.items()
        }
        late = round(float(np.percentile(self._late, 99)), 1)  # the generator itself, which is part of every latency
        return row | shares | {
            "health_p50_ms": health[0], "health_p99_ms": health[1], "generator_late_p99_ms": late, "failed": failed
        }  # fmt: skip


def _status(answer: dict[str, Any], name: str) -> str:
    number = answer["metadata"]["feature_names"].index(name)
    return str(answer["results"][number]["values"][0])


def stalls(server: Server, since: float) -> dict[str, float]:
    """How late the workers' event loops were since a `time.time`, and how long their threads computed at a time."""
    beats = np.concatenate([np.loadtxt(file, ndmin=2) for file in server.folder.glob("beats.*")])
    late, busy = beats[beats[:, 0] >= since, 1:].T
    names = ("loop_late_p50_ms", "loop_late_p99_ms", "loop_busy_p99_ms", "loop_busy_max_ms")
    values = (*np.percentile(late, [50, 99]), np.percentile(busy, 99), busy.max())
    return {name: round(float(value), 2) for name, value in zip(names, values, strict=True)}


def memory(server: Server) -> float:
    """Resident memory of a server and its workers, in MiB."""
    parent = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in [parent, *parent.children(recursive=True)]) / MIB


@contextlib.contextmanager
def serving(store: str, workers: int, deadline_ms: int, max_wait_ms: int, artifacts: Path) -> Iterator[Server]:
    """A server over a new repo."""
    with tempfile.TemporaryDirectory(prefix="load-") as name, contextlib.ExitStack() as stack:
        root = Path(name)
        settings = "{type: sqlite, path: online.db}"
        if store == "redis":
            redis = Redis(root)
            stack.callback(redis.stop)
            kind = "llmrec_plugin.feast.redis.LLMRecRedisOnlineStore"
            settings = f'{{type: {kind}, connection_string: "127.0.0.1:{redis.port}"}}'
        files = {
            "features.py": FEATURES.replace("DEADLINE", str(deadline_ms)),
            "feature_store.yaml": CONFIGURATION.format(store=settings),
            "static_artifacts.py": STATIC_ARTIFACTS,
        }
        environ = {
            "LLMREC_HOME": str(root / "home"),
            "LLMREC_ARTIFACTS": str(artifacts.absolute()),
            "LLMREC_PROGRESS": "0",
            "LLMREC_MAX_WAIT_MS": str(max_wait_ms or ""),
        }
        server = Server(store, Path(__file__).parents[1], root / "repo", files, environ, workers)
        stack.callback(server.stop)
        server.wait()
        with contextlib.suppress(PermissionError):  # a generator that waits for a core makes every answer look late
            os.setpriority(os.PRIO_PROCESS, 0, -10)
        uvloop.run(Load(server.port, "warm").run(5, 5))
        stack.callback(os.setpriority, os.PRIO_PROCESS, 0, 0)
        yield server


def soak(server: Server, rate: float, minutes: float) -> dict[str, Any]:
    """One rate for a long time; MiB of memory over time and how fast it grows in the second half."""

    async def watched() -> tuple[dict[str, Any], list[float]]:
        load = asyncio.create_task(Load(server.port, "soak").run(rate, minutes * 60))
        sizes = []
        while not load.done():
            sizes.append(round(memory(server), 1))
            print(f"{len(sizes) / 2:.1f} min: {sizes[-1]} MiB", file=sys.stderr, flush=True)
            await asyncio.wait([load], timeout=30)
        return load.result(), sizes

    summary, sizes = uvloop.run(watched())
    later = np.array(sizes[len(sizes) // 2 :])
    slope = np.polyfit(np.arange(len(later)) / 120, later, 1)[0] if len(later) > 1 else 0.0
    return summary | {"minutes": minutes, "mib": sizes, "mib_per_hour_of_second_half": round(float(slope), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifacts", type=Path, required=True, help="folder with the exported models")
    parser.add_argument("--stores", nargs="+", choices=["sqlite", "redis"], default=["sqlite", "redis"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[5, 10, 20, 40, 80, 160, 320], help="requests/s")
    parser.add_argument("--seconds", type=float, default=15, help="length of a cell")
    parser.add_argument("--deadline-ms", type=int, default=200)
    parser.add_argument("--max-wait-ms", type=int, default=180, help="LLMREC_MAX_WAIT_MS; 0: refuse nothing")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="keep each rate for so long")
    parser.add_argument("--out", type=Path, help="file for the result as JSON")
    options = parser.parse_args()
    rows = []
    for store in options.stores:
        for workers in options.workers:
            with serving(store, workers, options.deadline_ms, options.max_wait_ms, options.artifacts) as server:
                for rate in options.rates:
                    began = time.time()
                    if options.soak:
                        row = soak(server, rate, options.soak)
                    else:
                        row = uvloop.run(Load(server.port, f"{store} {workers} {rate}").run(rate, options.seconds))
                    row |= stalls(server, began) | {"memory_mib": round(memory(server))}
                    rows.append({"store": store, "workers": workers} | row)
                    print(rows[-1], file=sys.stderr, flush=True)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "deadline_ms": options.deadline_ms,
        "max_wait_ms": options.max_wait_ms,
        "seconds_per_cell": options.seconds,
        "cells": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(pd.DataFrame(rows).drop(columns=["mib"], errors="ignore").to_string(index=False))


if __name__ == "__main__":
    main()
