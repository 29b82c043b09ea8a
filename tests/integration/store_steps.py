"""What the tests ask of one process that has an online store: reads, searches and writes."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType, feature_server
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Value
from feast.types import Array, Float32, Int64, String
from steps import open_store, plain

from llmrec_plugin.feast import search
from llmrec_plugin.feast import vectors as vectors_module

VIEW = "item_text_embedding"
STORED = f"{VIEW}:{VIEW}"
READS = {
    "stored": ([STORED], ["item"]),
    "on demand": ([f"{VIEW}_on_demand:{VIEW}_on_demand"], ["title", "note"]),
    "similarity": (["query_item_similarity:query_item_similarity"], ["item", "query"]),
    "together": ([STORED, "item_text:title", "query_item_similarity:query_item_similarity"], ["item", "query"]),
}


def read_all(columns: dict[str, list[Any]], over_http: bool = False) -> dict[str, dict[str, list[Any]]]:
    """Every kind of feature, from the Python interface or from Feast's server."""
    store = open_store(None)
    requests = {name: (features, {key: columns[key] for key in keys}) for name, (features, keys) in READS.items()}
    answers: dict[str, dict[str, list[Any]]] = {}
    if over_http:
        with served(store) as address:
            for name, (features, entities) in requests.items():
                body = post(f"{address}/get-online-features", {"features": features, "entities": entities})
                names = body["metadata"]["feature_names"]
                answers[name] = {key: row["values"] for key, row in zip(names, body["results"], strict=True)}
        return answers
    for name, (features, entities) in requests.items():
        rows = [dict(zip(entities, values, strict=True)) for values in zip(*entities.values(), strict=True)]
        answer = store.get_online_features(features, rows).to_dict()
        answers[name] = {key: [plain(value) for value in values] for key, values in answer.items()}
    return answers


@contextmanager
def served(store: FeatureStore) -> Any:
    """Feast's server in a thread of this process; its address."""
    server = uvicorn.Server(uvicorn.Config(feature_server.get_app(store), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def post(url: str, body: Any, timeout: float = 60) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.load(response)


def search_all(queries: list[dict[str, Any]]) -> list[Any]:
    """Rows of each search, or its error."""
    store = open_store(None)
    answers: list[Any] = []
    for query in queries:
        try:
            found = search(store, **query)
            answers.append([{name: plain(value) for name, value in row.items()} for row in found.to_dict("records")])
        except Exception as exc:
            answers.append(f"{type(exc).__name__}: {exc}")
    return answers


def search_with_feast(query: list[float], top_k: int, over_http: bool, in_order: bool = False) -> dict[str, Any]:
    """What Feast's own search answers; `in_order`: as if our stores gave hits in the order of their distances."""
    if in_order:
        vectors_module.by_entity_key = lambda hits: sorted(hits, key=lambda hit: hit[2]["distance"].float_val)
    store = open_store(None)
    if not over_http:
        answer = store.retrieve_online_documents_v2(features=[STORED], query=query, top_k=top_k).to_dict()
        return {name: [plain(value) for value in values] for name, values in answer.items()}
    with served(store) as address:
        body = post(f"{address}/search", {"features": [STORED], "query": query, "top_k": top_k, "api_version": 2})
    names = body["metadata"]["feature_names"]
    return {name: row["values"] for name, row in zip(names, body["results"], strict=True)}


# ---- tables of our own: no model, no repo


AT = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = {"text": {"item": String}, "number": {"item": Int64}, "pair": {"user": String, "item": Int64}}


class Table:
    """A view with a vector column in the online store of the repo in the working folder."""

    def __init__(self, name: str, keys: str = "text", metric: str = "cosine", dims: int = 4) -> None:
        self.types = KEYS[keys]
        self.store = open_store(None)
        self.config = self.store.config
        self.online = self.store._get_provider().online_store
        entities = [
            Entity(name=key, join_keys=[key], value_type=ValueType.STRING if dtype == String else ValueType.INT64)
            for key, dtype in self.types.items()
        ]
        self.view = FeatureView(
            name=name,
            entities=entities,
            ttl=timedelta(days=36_500),
            schema=[
                *(Field(name=key, dtype=dtype) for key, dtype in self.types.items()),
                Field(
                    name="vector",
                    dtype=Array(Float32),
                    vector_index=True,
                    vector_length=dims,
                    vector_search_metric=metric,
                ),
                Field(name="title", dtype=String),
            ],
            source=FileSource(path="nothing.parquet", timestamp_field="event_timestamp"),
        )
        self.update([], [self.view])

    def update(self, delete: list[FeatureView], keep: list[FeatureView]) -> None:
        self.online.update(self.config, delete, keep, [], [], partial=True)

    def key(self, *values: Any) -> EntityKey:
        made = [Value(int64_val=value) if isinstance(value, int) else Value(string_val=value) for value in values]
        return EntityKey(join_keys=list(self.types), entity_values=made)

    def write(self, rows: dict[tuple[Any, ...], list[float] | None], at: datetime = AT) -> None:
        data = [
            (
                self.key(*key),
                {
                    "vector": Value() if vector is None else Value(float_list_val=FloatList(val=vector)),
                    "title": Value(string_val=f"title of {key}"),
                },
                at,
                None,
            )
            for key, vector in rows.items()
        ]
        self.online.online_write_batch(self.config, self.view, data, None)

    def search(self, query: list[float], top_k: int) -> list[Any]:
        """Keys, titles and distances, nearest first."""
        hits = self.online.retrieve_online_documents_v2(self.config, self.view, ["title"], query, top_k)
        keys = [
            {
                name: getattr(value, value.WhichOneof("val"))
                for name, value in zip(k.join_keys, k.entity_values, strict=True)
            }
            for _, k, _ in hits
        ]
        assert keys == sorted(keys, key=lambda key: list(key.values()))
        answer = [
            [[key[name] for name in self.types], values["title"].string_val, values["distance"].float_val]
            for key, (_, _, values) in zip(keys, hits, strict=True)
        ]
        return sorted(answer, key=lambda row: row[2])

    def error(self, query: list[float], top_k: int = 3) -> str:
        try:
            return f"no error: {self.search(query, top_k)}"
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}"


def search_tables(cases: list[list[str]], rows: int) -> list[Any]:
    """For each (keys, metric): the vectors written, the query, and what was found, fewer and more than there are."""
    answers = []
    for number, (keys, metric) in enumerate(cases):
        rng = np.random.default_rng(number)
        table = Table(f"table_{keys}_{metric.lower()}", keys, metric)
        names: list[tuple[Any, ...]] = {
            "text": [(f"i{n}",) for n in range(rows)],
            "number": [(n * 7919 % 1000,) for n in range(rows)],
            "pair": [(f"u{n % 3}", n) for n in range(rows)],
        }[keys]
        vectors = rng.standard_normal((rows, 4)).astype(np.float32)
        vectors[1] = vectors[0]  # two rows that are equally near
        written: dict[tuple[Any, ...], list[float] | None] = dict(zip(names, vectors.tolist(), strict=True))
        written[names[2]] = None
        if metric == "cosine":
            written[names[3]] = [0.0] * 4
        table.write(written)
        query = rng.standard_normal(4).astype(np.float32).tolist()
        answers.append(
            {
                "rows": [[list(key), vector] for key, vector in written.items()],
                "query": query,
                "few": table.search(query, 5),
                "all": table.search(query, 10 * rows),
            }
        )
    return answers


def search_what_changes() -> dict[str, Any]:
    """Searches between writes of this and of another process."""
    table = Table("changing")
    seen: dict[str, Any] = {}

    def look(name: str) -> None:
        seen[name] = [row[0][0] for row in table.search([1, 0, 0, 0], 10)]

    look("empty")
    table.write({("near",): [1, 0, 0, 0], ("far",): [0, 1, 0, 0]})
    look("written")
    table.write({("far",): [2, 0.1, 0, 0], ("near",): [0, 1, 0, 0]}, AT + timedelta(days=1))
    look("changed")
    child = os.fork()
    if child == 0:
        Table("changing").write({("new",): [1, 0, 0, 0], ("near",): None}, AT + timedelta(days=2))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    look("changed by another process")
    seen["wrong query"] = [table.error([1, 0, 0]), table.error([0, 0, 0, 0]), table.error([float("nan"), 0, 0, 1])]
    seen["no rows asked for"] = table.error([1, 0, 0, 0], 0)
    table.update([table.view], [])
    table.update([], [table.view])
    look("dropped")
    return seen


def write_vector_of_another_length() -> dict[str, Any]:
    """The error of the write or of the search, and what another table of the same store gives afterwards."""
    table, other = Table("lengths"), Table("sound")
    other.online = table.online
    try:
        table.write({("right",): [1, 0, 0, 0], ("wrong",): [1, 0, 0]})
        error = table.error([1, 0, 0, 0])
    except Exception as exc:
        error = f"{type(exc).__name__}: {exc}"
    other.write({("right",): [1, 0, 0, 0]})
    return {"error": error, "afterwards": other.search([1, 0, 0, 0], 3)}


def write_out_of_order() -> dict[str, str]:
    """Which of two values of a row is kept, by the order of their times."""
    table = Table("times")
    kept = {}
    for name, days in (("older later", -1), ("same time", 0), ("newer later", 1)):
        table.write({(name,): [1, 0, 0, 0]})
        table.write({(name,): [0, 1, 0, 0]}, AT + timedelta(days=days))
        [(_, values)] = table.online.online_read(table.config, table.view, [table.key(name)], ["vector"])
        kept[name] = "first" if values["vector"].float_list_val.val[0] else "second"
    return kept


def read_after_the_server_hung_up(times: int) -> list[str | None]:
    """What is read each time after PostgreSQL closed all connections to its clients, and once after an error."""
    import psycopg
    from feast.infra.utils.postgres.connection_utils import _get_conn

    table = Table("hung_up")
    table.write({("here",): [1, 0, 0, 0]})
    hang_up = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
    found: list[str | None] = []

    def read() -> None:
        [(_, values)] = table.online.online_read(table.config, table.view, [table.key("here")], ["title"])
        found.append(values and values["title"].string_val)

    for _ in range(times):
        with _get_conn(table.config.online_store) as connection:
            connection.execute(hang_up, ("feast", connection.info.backend_pid))
        read()
    for _ in range(times):
        try:
            with table.online._get_conn(table.config) as connection:
                connection.execute("SELECT 1 / 0")
        except psycopg.errors.DivisionByZero:
            read()
    return found


def search_beside_another_project() -> list[list[str]]:
    """What is found by a project, and by one whose name ends with the first one's, after each wrote a row."""
    tables = [Table("shared"), Table("shared")]
    tables[1].config.project = f"another_{tables[0].config.project}"
    for table, name in zip(tables, ("mine", "theirs"), strict=True):
        table.update([], [table.view])
        table.write({(name,): [1, 0, 0, 0]})
    return [[row[0][0] for row in table.search([1, 0, 0, 0], 5)] for table in tables]


def search_with_little_memory() -> dict[str, Any]:
    """What SQLite's store keeps in memory when it may keep all, one table, or none; and what it finds."""
    tables = [Table("first"), Table("second")]
    online = tables[1].online = tables[0].online
    for table in tables:
        table.write({("near",): [1, 0, 0, 0], ("far",): [0, 1, 0, 0]})
    seen: dict[str, Any] = {}
    for name, room in (("all", 2**20), ("one", 300), ("none", 0)):
        online._cached.clear()
        for table in tables:
            table.config.online_store.max_cached_vector_bytes = room
        found = [[row[0][0] for row in table.search([1, 0, 0, 0], 2)] for table in [*tables, *tables]]
        seen[name] = [found, [table for table, _ in online._cached]]
    return seen


def search_before_a_rollback() -> list[list[str]]:
    """What SQLite's store finds while a row is written, and after it was taken back."""
    table = Table("taken_back")
    table.write({("kept",): [1, 0, 0, 0]})
    connection = table.online._get_conn(table.config)
    seen = []
    connection.execute("BEGIN")
    connection.execute("DELETE FROM test_taken_back")
    seen.append(table.search([1, 0, 0, 0], 2))
    connection.execute("ROLLBACK")
    seen.append(table.search([1, 0, 0, 0], 2))
    return [[row[0][0] for row in rows] for rows in seen]


def search_in_threads(writes: int) -> list[str]:
    """Searches of eight threads while a ninth writes: each must find a state that was once complete."""
    table = Table("busy")
    table.write({(name,): [1, 0, 0, 0] for name in "abcd"})
    problems: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                found = {name: distance for [name], _, distance in table.search([1, 0, 0, 0], 10)}
                if set(found) != set("abcd") or not set(found.values()) <= {0.0, 1.0}:
                    problems.append(str(found))
            except Exception as exc:
                problems.append(f"{type(exc).__name__}: {exc}")

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(writes):
        vector: list[float] = [number % 2, 1 - number % 2, 0, 0]
        table.write({(name,): vector for name in "abcd"}, AT + timedelta(seconds=1 + number))
    done.set()
    for thread in threads:
        thread.join()
    if {distance for _, _, distance in table.search([1, 0, 0, 0], 10)} != {1.0 - (writes - 1) % 2}:
        problems.append("the last write is not seen")
    return problems


def search_what_is_kept() -> dict[str, list[str]]:
    """What Redis's store finds before and after the vectors that it keeps are too old, or of another model."""
    table = Table("kept")
    table.config.online_store.vectors_kept_seconds = 3600
    seen = {}

    def look(name: str) -> None:
        seen[name] = [row[0][0] for row in table.search([1, 0, 0, 0], 10)]

    table.write({("first",): [1, 0, 0, 0]})
    look("at first")
    table.write({("second",): [0, 1, 0, 0]})
    look("kept")
    table.view.tags = {"llmrec.fingerprint": "another"}
    look("of another model")
    table.write({("third",): [-1, 0, 0, 0]})
    table.online._kept = {name: (read - 3600, blocks) for name, (read, blocks) in table.online._kept.items()}
    look("too old")
    return seen


def clients_loaded_with(modules: list[str]) -> dict[str, list[str]]:
    """Which stores' clients each import brings along, one import after the other in one process."""
    known = set(sys.modules)
    loaded = {}
    for module in modules:
        importlib.import_module(module)
        loaded[module] = sorted({"psycopg", "redis"} & (set(sys.modules) - known))
        known |= set(sys.modules)
    return loaded


def block_the_server(timeout: float) -> bool:
    """Whether the server answers /health while an on-demand view computes; the view ends when a file is there."""
    started, release = Path("started"), Path("release")
    with served(open_store(None)) as address:
        body = {"features": ["slow:slow"], "entities": {"wait_for": [str(release)], "tell": [str(started)]}}
        request = threading.Thread(target=post, args=(f"{address}/get-online-features", body))
        request.start()
        while not started.exists():
            time.sleep(0.01)
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=timeout):
                return True
        except TimeoutError:
            return False
        finally:
            release.touch()
            request.join()
