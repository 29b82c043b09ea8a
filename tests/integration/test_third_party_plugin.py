"""A package that others wrote, installed by pip: discovered, published, switched off, not hidden by broken ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.host import Repo, StepError
from integration.installing import PLUGINS, command_line, install, run_tests

FEATURE = "package_synopsis_embedding"

FEATURES = """
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.types import String

from llmrec_plugin.feast import publish

{entity} = Entity(name="{entity}", join_keys=["{entity}"])
texts = FeatureView(
    name="texts",
    entities=[{entity}],
    ttl=timedelta(days=36_500),
    schema=[Field(name="{entity}", dtype=String), Field(name="synopsis", dtype=String)],
    source=FileSource(name="rows", path="data/rows.parquet", timestamp_field="event_timestamp"),
)
llm = publish(globals())
"""


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed llmrec-acme."""
    return install(PLUGINS / "llmrec-acme", tmp_path_factory.mktemp("acme"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three more plugins: one cannot be imported, one's hook raises, one returns nonsense."""
    folder = tmp_path_factory.mktemp("broken")
    plugins = {
        "absent": "import a_module_that_nobody_wrote",
        "raising": "@hookimpl\ndef llmrec_register_features():\n    raise ZeroDivisionError('by design')",
        "nonsense": "@hookimpl\ndef llmrec_register_models():\n    return ['acme-tiny']",
    }
    for name, body in plugins.items():
        (folder / f"broken_{name}.py").write_text(f"from llmrec_plugin import hookimpl\n\n{body}\n")
        about = folder / f"broken_{name}-0.{len(name)}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: broken-{name}\nVersion: 0.{len(name)}\n")
        (about / "entry_points.txt").write_text(f"[llmrec_plugin]\n{name} = broken_{name}\n")
    return folder


FAILURES = [
    ("plugin 'absent' (broken-absent 0.6)", "import", "No module named 'a_module_that_nobody_wrote'"),
    ("plugin 'raising' (broken-raising 0.7)", "llmrec_register_features", "ZeroDivisionError: by design"),
    ("plugin 'nonsense' (broken-nonsense 0.8)", "llmrec_register_models", "expected an iterable of EncoderModel"),
]


def test_the_tests_of_a_package_with_prompt_and_generator_pass(tmp_path: Path) -> None:
    moods = install(PLUGINS / "llmrec-moods", tmp_path)
    done = run_tests(tmp_path / "source", folder=tmp_path, paths=[moods], feast=True)
    assert done.status == 0, done.out + done.err


def test_it_is_discovered(acme: Path, tmp_path: Path) -> None:
    without = command_line("features", "--json", folder=tmp_path, paths=[])
    assert FEATURE not in without.out
    plugins = command_line("plugins", folder=tmp_path, paths=[acme])
    assert plugins.status == 0, plugins.err
    for word in ("acme", "llmrec-acme 0.1.0", "minilm"):
        assert word in plugins.out
    assert FEATURE in command_line("features", "--json", folder=tmp_path, paths=[acme]).out
    models = command_line("models", "--json", folder=tmp_path, paths=[acme]).out
    for name in ("acme-tiny", "all-minilm-l6-v2"):
        assert f'"{name}"' in models


def test_it_can_be_switched_off(acme: Path, tmp_path: Path) -> None:
    done = command_line("features", "--json", folder=tmp_path, paths=[acme], LLMREC_DISABLE_PLUGINS="acme")
    assert done.status == 0, done.err
    assert FEATURE not in done.out
    plugins = command_line("plugins", folder=tmp_path, paths=[acme], LLMREC_DISABLE_PLUGINS="acme, other")
    assert "acme" in plugins.out.partition("Disabled")[2]


def test_a_broken_plugin_is_reported_and_hides_no_other(acme: Path, broken: Path, tmp_path: Path) -> None:
    done = command_line("plugins", folder=tmp_path, paths=[acme, broken])
    assert done.status == 1
    lines = done.out.splitlines()
    for plugin, hook, cause in FAILURES:
        name, package = plugin.removeprefix("plugin '").removesuffix(")").split("' (")
        [line] = [line for line in lines if line.startswith(f"{name} ")]
        assert package in line
        assert f"{hook}: " in line
        assert cause in line
    [line] = [line for line in lines if line.startswith("acme ")]
    assert FEATURE in line
    assert FEATURE in command_line("features", "--json", folder=tmp_path, paths=[acme, broken]).out


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    """A repo with entity and view that fit; the tiny encoder stands in for the real one."""
    repo = new_repo("acme-repo")
    repo.export(name="all-minilm-l6-v2", dims=384, max_tokens=256)
    (repo.folder / "features.py").write_text(FEATURES.format(entity="package"))
    return repo


def _publish(repo: Repo, paths: list[Path], **environ: str) -> dict[str, Any]:
    return repo.call("steps:publish_features", paths=paths, path="features.py", environ=environ)


@pytest.mark.feast
def test_its_feature_is_published_where_it_fits(acme: Path, broken: Path, repo: Repo) -> None:
    result = _publish(repo, [acme, broken])
    assert sorted(result["views"]) == [FEATURE, f"{FEATURE}_on_demand"]
    assert result["views"][FEATURE]["llmrec.plugin"] == "acme"
    for words in FAILURES:
        [message] = [message for message in result["log"] if words[0] in message]
        for word in words:
            assert word in message
    assert len(result["log"]) == len(FAILURES)
    assert _publish(repo, [acme], LLMREC_DISABLE_PLUGINS="acme") == {"views": {}, "log": []}
    assert _publish(repo, []) == {"views": {}, "log": []}


@pytest.mark.feast
def test_it_is_left_out_where_it_does_not_fit(acme: Path, new_repo: Callable[..., Repo]) -> None:
    repo = new_repo("other-repo")
    (repo.folder / "features.py").write_text(FEATURES.format(entity="film"))
    result = _publish(repo, [acme])
    assert result["views"] == {}
    [message] = result["log"]
    assert FEATURE in message
    assert "plugin 'acme' (llmrec-acme 0.1.0)" in message
    assert "No Feast entity in this module is named 'package'. Known: film." in message


@pytest.mark.feast
def test_a_missing_model_is_an_error_since_feast_would_delete_what_is_left_out(
    acme: Path, new_repo: Callable[..., Repo]
) -> None:
    repo = new_repo("unexported")
    (repo.folder / "features.py").write_text(FEATURES.format(entity="package"))
    with pytest.raises(StepError) as caught:
        _publish(repo, [acme])
    for words in ("llmrec export all-minilm-l6-v2", f"Needed by feature '{FEATURE}' of plugin 'acme'", "exclude="):
        assert words in str(caught.value)


@pytest.mark.feast
def test_a_process_without_the_plugin_serves_its_feature(acme: Path, repo: Repo) -> None:
    repo.processes.feast("apply", folder=repo.folder, environ=repo.environ, paths=[acme]).succeeded()
    name = f"{FEATURE}_on_demand"
    [vector, empty] = repo.online([f"{name}:{name}"], [{"synopsis": "a fast web server"}, {"synopsis": ""}])[name]
    assert len(vector) == 128
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-5)
    assert empty is None
