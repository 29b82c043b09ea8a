"""`llmrec doctor` finds each trap that it names, and nothing in a sound repo."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
from integration.host import Repo
from integration.test_plan import ENGINE, START

pytestmark = pytest.mark.feast

NOTES = {"vector_search": "note", "server": "note"}
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


def _levels(repo: Repo, configuration: str = SOUND + ENGINE, **environ: str) -> dict[str, str]:
    """Check -> level, of what the doctor finds under this configuration."""
    (repo.folder / "feature_store.yaml").write_text(configuration)
    findings = json.loads(repo.call("steps:doctor", environ=environ))
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
    assert _levels(other)["future_watermarks"] == "warning"
    other.feast("feature-views", "set-state", "item_text_embedding", "MATERIALIZING")
    without = (SOUND + ENGINE).replace("  serve_features_while_materializing: true\n", "")
    (other.folder / "feature_store.yaml").write_text(without)
    stuck = json.loads(other.call("steps:doctor"))
    assert [item for item in stuck if "set-state item_text_embedding" in item["fix"]]


def test_a_folder_without_a_repo(repo: Repo) -> None:
    output = repo.call("steps:command_line", arguments=["doctor", "--repo", str(repo.root)], fails=True)
    assert "InputError" in output
    assert "feature_store.yaml" in output
