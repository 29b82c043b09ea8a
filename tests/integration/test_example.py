"""`make demo` and `make retrieval`, step by step, on a copy of the repo, with the tiny encoder for the real one."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.host import Processes
from tiny import export_tiny

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.runtime.cache import ValueCache

pytestmark = [
    pytest.mark.feast,
    pytest.mark.skipif(not importlib.util.find_spec("lightgbm"), reason="lightgbm comes with the extra 'ranker'"),
]

ROOT = Path(__file__).parents[2]
UNTIL = "2023-08-01T00:00:00"
TAGS = ("role::program", "role::devel-lib", "interface::commandline", "use::editing", "works-with::text")


def _run(processes: Processes, script: str, *arguments: str, folder: Path, environ: dict[str, str]) -> str:
    """What an example prints."""
    started = processes.start(
        "steps:run_script", {"path": script, "arguments": arguments}, folder=folder, environ=environ
    )
    started.result()
    return started.log.read_text()


@pytest.fixture(scope="module")
def demo(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("demo")
    for name in ("feature_repo", "examples"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("data", "__pycache__"))
    environ = {"LLMREC_HOME": str(root / "home")}
    export_tiny(ArtifactStore([root / "home" / "artifacts"]), name="all-minilm-l6-v2", dims=384, max_tokens=256)
    export_tiny(ArtifactStore([root / "home" / "artifacts"]), name="debian-tagger", labels=TAGS)
    processes.call(
        "exporting:export_tiny_generator",
        folder=root,
        environ=environ,
        paths=[ROOT / "tests"],
        where=str(root / "generators"),
        artifacts=str(root / "home" / "artifacts"),
        architecture="bart",
        name="debian-synopsis",
    )
    _run(processes, "examples/ranker/prepare.py", folder=root, environ=environ)
    repo = root / "feature_repo"
    for words in (["apply"], ["materialize", "2023-06-10T00:00:00", UNTIL]):
        processes.feast(*words, folder=repo, environ=environ).succeeded()
    options = ["--seeds", "1", "--lists", "24", "--output", str(root / "out.json")]
    output = _run(processes, "examples/ranker/ranker.py", *options, folder=root, environ=environ)
    cache = ValueCache(root / "home" / "cache", 2**30)
    runs = cache.runs()
    cache.close()
    return {
        "output": output,
        "results": json.loads((root / "out.json").read_text()),
        "runs": runs,
        "root": root,
        "environ": environ,
    }


def test_every_service_is_ranked_on_all_warm_and_cold_packages(demo: dict[str, Any]) -> None:
    slices = demo["results"]["slices"]
    assert slices.keys() == {"all", "warm", "cold"}
    for slice_ in slices.values():
        assert slice_["lists"] > 12
        for metric in ("ndcg@10", "recall@10", "auc"):
            values = slice_["metrics"][metric]
            assert values["mean"].keys() == {"ranker_baseline", "ranker_llm", "ranker_tags", "ranker_shuffled"}
            assert all(0.3 < value <= 1 for value in values["mean"].values())
            for difference in values["minus_baseline"].values():
                assert difference["low"] <= difference["mean"] <= difference["high"]


def test_the_table_shows_the_numbers_the_intervals_and_the_control(demo: dict[str, Any]) -> None:
    value = demo["results"]["slices"]["all"]["metrics"]["ndcg@10"]["mean"]["ranker_llm"]
    for words in ("ndcg@10 - baseline", "+ LLM + tags", "+ shuffled", "cold (", f"{value:.3f}"):
        assert words in demo["output"]


def test_texts_are_computed_once_whether_materialized_shuffled_or_read_for_training(demo: dict[str, Any]) -> None:
    computed = {}
    for run in demo["runs"]:
        computed.setdefault((run.feature, run.mode), []).append(run.computed)
    assert sum(computed["package_text_embedding", "batch"] + computed["package_shuffled_embedding", "batch"]) <= 2297
    assert computed["package_text_embedding", "historical"] == [0]
    assert computed["package_shuffled_embedding", "historical"] == [0]
    assert computed["dependant_text_embedding", "historical"] == [0]


def test_a_text_is_answered_with_packages_that_are_ranked_for_a_dependant(
    demo: dict[str, Any], processes: Processes
) -> None:
    words = ("examples/retrieval/retrieve.py", "play music over the network", "--candidates", "50", "--train-on", "40")
    output = _run(processes, *words, folder=demo["root"], environ=demo["environ"])
    assert "play music over the network" in output
    rows = [line.split("│")[1:-1] for line in output.splitlines() if line.startswith("│")]
    assert len(rows) == 10
    scores, places, distances = (np.array([float(row[column]) for row in rows]) for column in (2, 3, 4))
    assert (np.diff(scores) <= 0).all()
    # Where the search put a package follows from its distance alone.
    assert (np.diff(distances[np.argsort(places)]) >= 0).all()
    assert 1 <= places.min() <= places.max() <= 50
    assert "50 candidates in " in output
