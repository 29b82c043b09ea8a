"""Ray and Spark compute the same numbers as the local engine, once, and never lose a row without an error.

``make test-engines`` installs what these tests need and runs them; a run takes minutes.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.host import Processes, Repo
from tiny import WORDS

from llmrec_plugin.runtime import upkeep
from llmrec_plugin.runtime.cache import ValueCache

pytestmark = [pytest.mark.feast, pytest.mark.engines]

STORED = "item_text_embedding:item_text_embedding"
SCORE = "query_item_similarity:query_item_similarity"
TITLE = "item_text:title"
VIEW = ("--views", "item_text_embedding")
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
ITEMS = 900
SPARK = (
    '{spark.master: "local[2]", spark.ui.enabled: "false", spark.driver.bindAddress: 127.0.0.1, '
    'spark.driver.host: 127.0.0.1, spark.sql.session.timeZone: UTC, spark.sql.shuffle.partitions: "4"}'
)
RAY = "ray_conf: {num_cpus: 3, object_store_memory: 200000000}"
CONFIGURATIONS = {
    "ray": f"""
batch_engine: {{type: llmrec_plugin.feast.ray.LLMRayComputeEngine, {RAY}}}
offline_store: {{type: llmrec_plugin.feast.ray.LLMRayOfflineStore, storage_path: data/ray, {RAY}}}
""",
    "stock ray": f"""
batch_engine: {{type: ray.engine, {RAY}}}
offline_store: {{type: ray, storage_path: data/ray, {RAY}}}
""",
    "spark": f"""
batch_engine: {{type: spark.engine, spark_conf: {SPARK}}}
offline_store: {{type: llmrec_plugin.feast.spark.LLMSparkOfflineStore, spark_conf: {SPARK}}}
""",
}
# Spark on one machine tries no task again, unless it is told how often one may fail. Not in feature_store.yaml: Feast
# 0.67 takes the keys of batch_engine for Spark's properties, spark_conf for one (compute_engines/spark/compute.py:84).
CONFIGURATIONS["spark that tries again"] = CONFIGURATIONS["spark"]
AGAIN = {"spark that tries again": {"PYSPARK_SUBMIT_ARGS": "--master local[2,4] pyspark-shell"}}
# Read by every worker process as it starts: the first that computes a feature's texts meets with an accident.
ACCIDENT = """
import importlib.abc, importlib.util, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "llmrec_plugin.runtime.encoder":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), arm(module.Encoder))
        return spec

def arm(encoder):
    encode = encoder.encode

    def meet_with_an_accident(self, texts, **options):
        if "max_tokens" in options:
            try:
                os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                {accident}
        return encode(self, texts, **options)

    encoder.encode = meet_with_an_accident

sys.meta_path.insert(0, Finder())
"""
ACCIDENTS = {"killed": "os.kill(os.getpid(), signal.SIGKILL)", "failed": 'raise RuntimeError("an accident")'}


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None or (package == "pyspark" and shutil.which("java") is None)
    reason = f"{package} is not installed (make test-engines installs it; Spark needs Java 17, too)"
    return pytest.mark.skipif(missing, reason=reason)


ENGINES = [pytest.param("ray", marks=needs("ray")), pytest.param("spark", marks=needs("pyspark"))]


@pytest.fixture(scope="module")
def slow_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    server = Processes(tmp_path_factory.mktemp("steps"), seconds=900)
    yield server
    server.close()


def thousand_rows() -> list[dict[str, Any]]:
    """1,000 rows of 900 items, and one without a key: a hundred items changed a day later, one twice in one moment."""
    rng = np.random.default_rng(11)
    rows = []
    for number in range(1000):
        words = [f"n{number}", *rng.choice(WORDS, 1 + number % 20)]  # n17 is unknown to the model, but is a text
        at = START + datetime.timedelta(days=number // ITEMS, seconds=number % ITEMS)
        rows.append({"item": f"i{number % ITEMS}", "title": " ".join(words[:2]), "note": " ".join(words[2:]), "at": at})
    rows[10] |= {"title": None, "note": None}
    rows[11] |= {"title": " ", "note": ""}
    rows[999] |= {"item": rows[998]["item"], "at": rows[998]["at"]}
    rows[999]["created"] = rows[999]["at"] + datetime.timedelta(hours=1)
    return [*rows, {"item": None, "title": "red web", "note": "", "at": START}]


def _labels() -> list[dict[str, Any]]:
    """A label between the two versions of each item, and one after them."""
    times = [START + datetime.timedelta(days=day, hours=12) for day in (0, 1)]
    return [
        {"item": f"i{number}", "query": "red web", "event_timestamp": time.isoformat()}
        for time in times
        for number in range(ITEMS)
    ]


@pytest.fixture(scope="module")
def local(slow_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A repo that was applied, and not materialized."""
    repo = Repo(tmp_path_factory.mktemp("local"), slow_processes)
    repo.export(dims=32, max_tokens=64)
    repo.declare(dims=32, max_tokens=64)
    repo.write_items(thousand_rows())
    repo.feast("apply")
    return repo


@pytest.fixture(scope="module")
def reference(local: Repo) -> dict[str, Any]:
    """What the local engine and the file store give."""
    local.feast("materialize", "2025-01-01", "2027-01-01", *VIEW)
    batch = [run for run in local.runs() if run.mode == "batch"]
    return {
        "online": local.vectors([f"i{number}" for number in range(ITEMS)]),
        "historical": local.historical([TITLE, STORED, SCORE], _labels()),
        "texts": sum(run.texts for run in batch),
    }


def _configured(local: Repo, name: str, root: Path) -> Repo:
    """A copy of the applied repo, with an empty cache, on another engine and store."""
    shutil.copytree(local.root, root, ignore=shutil.ignore_patterns("cache"))
    repo = Repo(root, local.processes, {"PYSPARK_PYTHON": sys.executable})  # else workers take the PATH's python3
    if name.startswith("spark"):
        _read_with_spark(repo)
    path = repo.folder / "feature_store.yaml"
    path.write_text(path.read_text() + CONFIGURATIONS[name])
    (repo.folder / "data" / "online.db").unlink(missing_ok=True)
    (repo.folder / "data" / "registry.db").unlink()
    repo.feast("apply")
    return repo


def _read_with_spark(repo: Repo) -> None:
    """Replaces the raw FileSource by a SparkSource, with a query: the kind that shows nothing of its files."""
    path = repo.folder / "features.py"
    query = f"SELECT * FROM parquet.`{repo.folder}/data/items.parquet`"
    text = path.read_text().replace('path="data/items.parquet"', f'query="{query}"')
    module = "feast.infra.offline_stores.contrib.spark_offline_store.spark_source"
    path.write_text(f"from {module} import SparkSource\n" + text.replace("FileSource(\n", "SparkSource(\n"))


@pytest.fixture(scope="module", params=ENGINES)
def distributed(request: pytest.FixtureRequest, local: Repo, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    return _configured(local, request.param, tmp_path_factory.mktemp(request.param) / "root")


@pytest.fixture
def engine(distributed: Repo) -> str:
    return "spark" if "spark.engine" in (distributed.folder / "feature_store.yaml").read_text() else "ray"


def _check_close(actual: list[Any], expected: list[Any]) -> None:
    assert [vector is None for vector in actual] == [vector is None for vector in expected]
    pairs = [np.array(pair) for pair in zip(actual, expected, strict=True) if pair[0] is not None]
    assert len(pairs) > 0.9 * len(actual)
    for left, right in pairs:
        assert left @ right / np.linalg.norm(left) / np.linalg.norm(right) >= 0.9999


def _intervals(repo: Repo) -> Any:
    return repo.call("steps:describe", view="item_text_embedding")["intervals"]


def _materialize(repo: Repo, **environ: str) -> Any:
    arguments = ("materialize", "2025-01-01", "2027-01-01", *VIEW)
    return repo.processes.feast(*arguments, folder=repo.folder, environ=repo.environ | environ)


def test_a_failing_transformation_fails_the_run(distributed: Repo, tmp_path: Path) -> None:
    finished = _materialize(distributed, LLMREC_ARTIFACTS=str(tmp_path / "nothing"))
    assert finished.status != 0
    assert "ArtifactNotFoundError" in finished.output
    assert _intervals(distributed) == []


def test_a_failing_online_store_fails_the_run(distributed: Repo) -> None:
    database = distributed.folder / "data" / "online.db"
    sound = database.read_bytes()
    database.write_bytes(b"this is no database, and not an empty file either" * 100)
    try:
        finished = _materialize(distributed)
    finally:
        database.write_bytes(sound)
    assert finished.status != 0
    assert "file is not a database" in finished.output
    assert _intervals(distributed) == []


def test_the_same_numbers_and_nothing_twice(distributed: Repo, engine: str, reference: dict[str, Any]) -> None:
    shutil.rmtree(distributed.root / "home" / "cache", ignore_errors=True)
    _materialize(distributed).succeeded()
    assert _intervals(distributed) != []
    _check_close(distributed.vectors([f"i{number}" for number in range(ITEMS)]), reference["online"])
    batch = distributed.runs()
    # Several workers shared the newest row of each item, and no text was computed by two of them.
    assert len(batch) > 1
    assert sum(run.rows for run in batch) == ITEMS
    assert sum(run.computed for run in batch) == reference["texts"]

    answer = distributed.call(
        "cluster_steps:read_twice", features=[TITLE, STORED, SCORE], rows=_labels(), workers=engine
    )
    for rows in answer["reads"]:
        by_row = {row["row"]: row for row in rows}
        assert len(by_row) == len(rows) == len(reference["historical"])
        for name in ("title", "query_item_similarity"):
            expected = [row[name] for row in reference["historical"]]
            actual = [by_row[row["row"]][name] for row in reference["historical"]]
            assert actual == (expected if name == "title" else pytest.approx(expected, abs=1e-5))
        _check_close(
            [by_row[row["row"]]["item_text_embedding"] for row in reference["historical"]],
            [row["item_text_embedding"] for row in reference["historical"]],
        )
    historical = [run for run in distributed.runs() if run.mode == "historical" and run.feature != "query_embedding"]
    table = [run for run in historical if run.feature == "item_text_embedding"]
    # Every row once, for the first read; the texts of the newest rows were known.
    assert sum(run.rows for run in table) == 1000
    assert sum(run.computed for run in table) == 998 - reference["texts"]

    told = answer["workers"]
    assert len(told) > len({worker["process"] for worker in told})
    assert {(worker["runners"], worker["models"], worker["threads"]) for worker in told} == {(1, 1, 1)}


@pytest.mark.parametrize(
    ("name", "accident"),
    [
        pytest.param("ray", "killed", marks=needs("ray")),
        pytest.param("spark that tries again", "killed", marks=needs("pyspark")),
        pytest.param("spark that tries again", "failed", marks=needs("pyspark")),
    ],
)
def test_a_worker_that_meets_with_an_accident_costs_its_task_and_no_value(
    local: Repo, reference: dict[str, Any], tmp_path: Path, name: str, accident: str
) -> None:
    repo = _configured(local, name, tmp_path / "root")
    environ, marker = _prepare(accident, tmp_path)
    _materialize(repo, **environ, **AGAIN.get(name, {})).succeeded()
    assert marker.exists()
    _check_whole(repo, reference)


@pytest.mark.parametrize(
    ("name", "accident", "told"),
    [
        pytest.param("ray", "failed", "an accident", marks=needs("ray")),
        pytest.param("spark", "killed", "exited unexpectedly", marks=needs("pyspark")),
    ],
)
def test_a_task_that_is_not_tried_again_fails_the_run_and_the_next_one_goes_on(
    local: Repo, reference: dict[str, Any], tmp_path: Path, name: str, accident: str, told: str
) -> None:
    repo = _configured(local, name, tmp_path / "root")
    environ, marker = _prepare(accident, tmp_path)
    finished = _materialize(repo, **environ)
    assert (finished.status != 0, marker.exists()) == (True, True)
    assert told in finished.output
    assert _intervals(repo) == []
    _materialize(repo, **environ).succeeded()
    _check_whole(repo, reference)


def _prepare(accident: str, folder: Path) -> tuple[dict[str, str], Path]:
    """Variables with which one worker meets with an accident, and the file that is there when it did."""
    (folder / "site").mkdir()
    marker = folder / "accident"
    text = ACCIDENT.format(marker=str(marker), accident=ACCIDENTS[accident])
    (folder / "site" / "sitecustomize.py").write_text(text)
    path = os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path}, marker


def _check_whole(repo: Repo, reference: dict[str, Any]) -> None:
    """Every value is there and right, and a run reports at most what was computed for the lost task once more."""
    assert _intervals(repo) != []
    _check_close(repo.vectors([f"i{number}" for number in range(ITEMS)]), reference["online"])
    values = ValueCache(repo.root / "home" / "cache", 2**30)
    try:
        assert upkeep.verify(values).sound
    finally:
        values.close()
    computed = sum(run.computed for run in repo.runs())
    assert reference["texts"] <= computed <= 2 * reference["texts"]


@needs("ray")
def test_feasts_own_ray_engine_fails_instead_of_losing_vectors(local: Repo, tmp_path: Path) -> None:
    repo = _configured(local, "stock ray", tmp_path / "root")
    finished = _materialize(repo)
    assert finished.status != 0
    assert "llmrec_plugin.feast.ray.LLMRayComputeEngine" in finished.output
    assert _intervals(repo) == []
