"""`llmrec doctor` finds each trap that it names, and nothing in a sound repo."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import Repo
from integration.test_plan import ENGINE, START
from integration.versions import since_feast_0_67

pytestmark = [pytest.mark.feast, since_feast_0_67]

NEW = {"never_materialized": "warning"}  # applied, and no more
NOTES = {"vector_search": "note", "server": "note", **NEW}
SOUND = """
project: test
provider: local
registry:
  path: data/registry.db
  serve_features_while_materializing: true
  enable_online_feature_view_versioning: true
online_store: {type: sqlite, path: data/online.db}
materialization: {pull_latest_features: true, online_write_batch_size: 1000}
entity_key_serialization_version: 3
"""


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    repo = new_repo()
    repo.export()
    repo.declare()
    repo.write_items([{"item": "a", "title": "red web", "at": START}])
    (repo.folder / "feature_store.yaml").write_text(SOUND + ENGINE)
    repo.feast("apply")
    return repo


def _levels(
    repo: Repo, configuration: str = SOUND + ENGINE, paths: tuple[Path, ...] = (), **environ: str
) -> dict[str, str]:
    """Check -> level, of what the doctor finds under this configuration, with the plugins in `paths`."""
    (repo.folder / "feature_store.yaml").write_text(configuration)
    findings = json.loads(repo.call("steps:doctor", environ=environ, paths=list(map(str, paths))))
    assert all(finding["found"] and finding["fix"] for finding in findings)
    return {finding["check"]: finding["level"] for finding in findings}


def test_a_sound_repo(repo: Repo) -> None:
    assert _levels(repo) == NOTES


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("  serve_features_while_materializing: true\n", ""), {"reads_while_materializing": "error"}),
        (("  enable_online_feature_view_versioning: true\n", ""), {"rollouts": "note"}),
        ((ENGINE, ""), {"compute_engine": "warning"}),
        ((ENGINE, "batch_engine: {type: ray.engine}\n"), {"engines_and_stores": "error"}),
        (
            (f"materialization: {{pull_latest_features: true, online_write_batch_size: 1000}}\n"
             f"entity_key_serialization_version: 3\n{ENGINE}", "entity_key_serialization_version: 3\n"),
            {"compute_engine": "warning", "newest_rows_only": "warning", "whole_tables": "error"},
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_settings(repo: Repo, change: tuple[str, str], found: dict[str, str]) -> None:
    configuration = (SOUND + ENGINE).replace(*change)
    assert configuration != SOUND + ENGINE
    assert _levels(repo, configuration) == {**NOTES, **found}


def test_what_only_our_engine_does_not_need(repo: Repo) -> None:
    assert _levels(repo, SOUND.replace(SOUND.splitlines()[-2], "") + ENGINE) == NOTES


def test_a_missing_model(repo: Repo, tmp_path) -> None:
    assert _levels(repo, LLMREC_ARTIFACTS=str(tmp_path))["artifacts"] == "error"


def test_a_watermark_in_the_future_and_a_killed_run(repo: Repo, tmp_path) -> None:
    other = Repo(tmp_path, repo.processes, {"LLMREC_HOME": str(repo.root / "home")})
    shutil.copytree(repo.folder, other.folder, dirs_exist_ok=True)
    other.feast("apply")
    other.feast("materialize-incremental", "2999-01-01")
    levels = _levels(other)
    assert levels["future_watermarks"] == "warning"
    assert "never_materialized" not in levels
    other.feast("feature-views", "set-state", "item_text_embedding", "MATERIALIZING")
    without = (SOUND + ENGINE).replace("  serve_features_while_materializing: true\n", "")
    (other.folder / "feature_store.yaml").write_text(without)
    stuck = json.loads(other.call("steps:doctor"))
    assert [item for item in stuck if "set-state item_text_embedding" in item["fix"]]


def test_a_repo_below_the_working_folder_and_one_that_was_not_applied(repo: Repo, tmp_path: Path) -> None:
    other = repo.copy(tmp_path / "other")
    (other.folder / "feature_store.yaml").write_text(SOUND + ENGINE)
    arguments = ["doctor", "--json", "--repo", other.folder.name]

    def checks() -> set[str]:
        output = other.processes.call(
            "steps:command_line", folder=other.folder.parent, environ=other.environ, arguments=arguments
        )
        return {finding["check"] for finding in json.loads(output)}

    assert checks() == NOTES.keys()
    (other.folder / "data" / "registry.db").unlink()
    assert checks() == {"vector_search", "never_applied"}


def test_a_folder_without_a_repo(repo: Repo) -> None:
    output = repo.call("steps:command_line", arguments=["doctor", "--repo", str(repo.root)], fails=True)
    assert "InputError" in output
    assert "feature_store.yaml" in output


def test_stores_that_search_vectors_and_stores_that_are_asynchronous(repo: Repo) -> None:
    ours = SOUND.replace("type: sqlite", "type: llmrec_plugin.feast.sqlite.LLMRecSqliteOnlineStore")
    assert _levels(repo, ours + ENGINE) == {"server": "note", **NEW}
    pytest.importorskip("redis", reason="needs the extra 'redis'")
    redis = SOUND.replace("type: sqlite, path: data/online.db", "type: redis")
    assert _levels(repo, redis + ENGINE) == {"server": "note", "async_reads": "warning", **NEW}


def test_a_server_that_loads_models_at_the_first_request(repo: Repo, tmp_path: Path) -> None:
    other = repo.copy(tmp_path / "other")
    (other.folder / "static_artifacts.py").write_text("from llmrec_plugin.feast import load_artifacts\n")
    told = [
        [finding["found"] for finding in json.loads(here.call("steps:doctor")) if finding["check"] == "server"]
        for here in (repo, other)
    ]
    assert [len(found) for found in told] == [2, 1]
    assert "at its first request" in told[0][0]


def test_a_raw_view_with_a_push_source_and_without_ttl(repo: Repo, tmp_path: Path) -> None:
    other = repo.copy(tmp_path / "other")
    other.declare(ttl_days=0)
    features = other.folder / "features.py"
    text = features.read_text().replace("import Entity", "import PushSource, Entity")
    text = text.replace("source=FileSource(", 'source=PushSource(name="pushed", batch_source=FileSource(')
    features.write_text(
        text.replace('created_timestamp_column="created"\n    )', 'created_timestamp_column="created"))')
    )
    other.feast("apply")
    warnings = {"first_increment": "warning", "embedding_on_push": "warning"}
    assert _levels(other) == {**NOTES, **warnings}
    provider = SOUND.replace("provider: local", "provider: llmrec_plugin.feast.provider.LLMRecProvider")
    found = {**NOTES, "first_increment": "warning"}
    del found["never_materialized"]  # what is pushed has its vector
    assert _levels(other, provider + ENGINE) == found


def test_timestamps_that_spark_cannot_read(repo: Repo, tmp_path: Path) -> None:
    other = repo.copy(tmp_path / "other")
    spark = SOUND + "batch_engine: {type: spark.engine}\n"
    assert _levels(other, spark) == NOTES
    path = other.folder / "data" / "items.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index("event_timestamp")
    pq.write_table(
        table.set_column(place, "event_timestamp", table["event_timestamp"].cast(pa.timestamp("ns", "UTC"))), path
    )
    assert _levels(other, spark) == {**NOTES, "nanoseconds_on_spark": "error"}


def test_a_registry_of_another_version_of_this_package(repo: Repo, tmp_path: Path) -> None:
    other = repo.copy(tmp_path / "other")
    path = other.folder / "data" / "registry.db"
    text = repo.call("steps:describe", view="item_text_embedding")["transformation"]
    (fingerprint,) = re.findall(r'"fingerprint": ?"([0-9a-f]{64})"', text)
    path.write_bytes(path.read_bytes().replace(fingerprint.encode(), fingerprint[::-1].encode()))
    assert _levels(other) == {**NOTES, "fingerprints": "error"}


PLUGIN = """
from llmrec_plugin import EmbeddingFeature, hookimpl

@hookimpl
def llmrec_register_features():
    return [EmbeddingFeature(
        name="item_text_embedding", entity="item", text={text!r}, model="tiny", pooling="mean", normalize=True,
        prefix="", metric="cosine", max_tokens=16, dims=8,
    )]
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[[str], tuple[Path, ...]]:
    """Where a plugin is installed that declares the feature that the repo has applied, of this text."""

    def install(text: str) -> tuple[Path, ...]:
        site = tmp_path / text[1:5]
        about = site / "doctored-1.0.dist-info"
        about.mkdir(parents=True)
        (site / "doctored.py").write_text(PLUGIN.format(text=text))
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: doctored\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("[llmrec_plugin]\ndoctored = doctored\n")
        return (site,)

    return install


def test_what_is_applied_and_what_a_plugin_declares(
    repo: Repo, plugin: Callable[[str], tuple[Path, ...]], tmp_path: Path
) -> None:
    same = plugin("{title}. {note}")
    assert _levels(repo, paths=same) == NOTES
    assert _levels(repo, paths=plugin("{note}")) == {**NOTES, "declarations": "warning"}
    other = repo.copy(tmp_path / "other")
    other.export(seed=1)  # the applied artifact is still there, so that it can be computed
    assert _levels(other, paths=same) == {**NOTES, "declarations": "warning"}


def test_the_cache_keeps_what_the_repo_uses(repo: Repo, tmp_path: Path) -> None:
    environ = {"LLMREC_CACHE": str(tmp_path)}
    used, unused = repo.call("steps:fill_cache", environ=environ)
    assert used != unused

    def cache(*arguments: str) -> dict[str, Any]:
        words = ["cache", *arguments, "--repo", ".", "--json"]
        answer: dict[str, Any] = json.loads(repo.call("steps:command_line", arguments=words, environ=environ))
        return answer

    assert [item["fingerprint"] for item in cache("prune", "--unused")["removed"]] == [unused]
    verified = cache("verify")
    assert (verified["entries"], verified["of_known_features"], verified["damaged"]) == (1, 1, [])


def _unsuited(configuration: dict[str, Any]) -> list[str]:
    path = Path(__file__).parents[2] / "llmrec_plugin/feast/compatibility.py"  # by its file: importing Feast takes long
    spec = importlib.util.spec_from_file_location("compatibility", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [found for found, _ in module.unsuited_settings(configuration)]


@pytest.mark.parametrize(
    ("store", "found"),
    [
        ({"type": "redis"}, []),
        ("sqlite", []),
        (None, []),
        ({"type": "redis", "key_ttl_seconds": 86400}, ["deletes rows 86400 seconds after they are written"]),
        ({"type": "qdrant"}, ["writing fails"]),
        ({"type": "milvus"}, ["gives back the query instead of each hit's vector"]),
        ("faiss", ["keeps vectors in memory only"]),
    ],
)
def test_online_stores(store: Any, found: list[str]) -> None:
    told = _unsuited({"online_store": store})
    assert len(told) == len(found)
    assert all(words in line for words, line in zip(found, told, strict=True))
