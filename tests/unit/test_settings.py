"""The environment as settings."""

import os
from pathlib import Path

import pytest

from llmrec_plugin.settings import SettingsError, load_settings


def test_an_empty_environment_gives_the_defaults():
    settings = load_settings({})
    assert settings.artifact_folders == (Path.home() / ".llmrec" / "artifacts",)
    assert settings.cache_folder == Path.home() / ".llmrec" / "cache"
    assert settings.training_folder == Path.home() / ".llmrec" / "cache" / "training"
    assert settings.cache_max_bytes == 8 * 2**30
    assert settings.device == "auto"
    assert settings.runtime == "auto"
    assert 1 <= settings.threads <= os.cpu_count()
    assert settings.disabled_plugins == frozenset()
    assert settings.progress


def test_an_empty_variable_is_as_good_as_none():
    names = (
        "HOME",
        "ARTIFACTS",
        "CACHE",
        "TRAINING",
        "CACHE_MAX_BYTES",
        "DEVICE",
        "RUNTIME",
        "THREADS",
        "DISABLE_PLUGINS",
        "PROGRESS",
    )
    assert load_settings({f"LLMREC_{name}": "" for name in names}) == load_settings({})


def test_without_an_argument_the_environment_of_the_process_is_read(monkeypatch):
    monkeypatch.setenv("LLMREC_THREADS", "3")
    assert load_settings().threads == 3


def test_every_variable_is_read(tmp_path):
    settings = load_settings(
        {
            "LLMREC_ARTIFACTS": f"{tmp_path}/a{os.pathsep}{os.pathsep}{tmp_path}/b",
            "LLMREC_CACHE": f"{tmp_path}/c",
            "LLMREC_TRAINING": f"{tmp_path}/t",
            "LLMREC_CACHE_MAX_BYTES": "1000",
            "LLMREC_DEVICE": "cuda",
            "LLMREC_RUNTIME": "openvino",
            "LLMREC_THREADS": "7",
            "LLMREC_DISABLE_PLUGINS": "one, two,,",
            "LLMREC_PROGRESS": "0",
            "LLMREC_NICE": "0",
            "LLMREC_MAX_WAIT_MS": "180",
            "LLMREC_REQUEST_THREADS": "8",
        }
    )
    assert settings.artifact_folders == (tmp_path / "a", tmp_path / "b")
    assert settings.cache_folder == tmp_path / "c"
    assert settings.training_folder == tmp_path / "t"
    assert (settings.cache_max_bytes, settings.device, settings.threads) == (1000, "cuda", 7)
    assert settings.runtime == "openvino"
    assert settings.disabled_plugins == {"one", "two"}
    assert not settings.progress
    assert (settings.nice, settings.max_wait_ms, settings.request_threads) == (0, 180, 8)


def test_home_moves_artifacts_and_cache(tmp_path):
    settings = load_settings({"LLMREC_HOME": str(tmp_path)})
    assert (settings.artifact_folders, settings.cache_folder) == ((tmp_path / "artifacts",), tmp_path / "cache")


def test_paths_become_absolute_so_that_a_change_of_folder_does_no_harm():
    settings = load_settings({"LLMREC_ARTIFACTS": "models", "LLMREC_CACHE": "~/values"})
    assert settings.artifact_folders == (Path.cwd() / "models",)
    assert settings.cache_folder == Path.home() / "values"


def test_settings_are_made_once_and_anew_when_anything_they_depend_on_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMREC_CACHE", "values")
    monkeypatch.setenv("LLMREC_HOME", "~/models")
    before = load_settings()
    assert load_settings() is before
    monkeypatch.setenv("LLMREC_PROGRESS", "0")
    assert not load_settings().progress
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings().artifact_folders == (tmp_path / "models" / "artifacts",)
    monkeypatch.chdir(tmp_path)
    assert load_settings().cache_folder == tmp_path / "values"


def test_a_process_whose_folder_was_deleted_still_has_absolute_paths(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert load_settings({"LLMREC_HOME": str(tmp_path)}).cache_folder == tmp_path / "cache"
    with pytest.raises(FileNotFoundError):
        load_settings({"LLMREC_HOME": "here"})


def test_settings_can_be_a_key():
    assert hash(load_settings({})) == hash(load_settings({}))


@pytest.mark.parametrize("name", ["LLMREC_THREADS", "LLMREC_CACHE_MAX_BYTES"])
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many", " ", "²"])
def test_a_count_that_is_no_positive_integer_is_refused(name, value):
    with pytest.raises(SettingsError, match=f"{name} must be a positive integer, got {value!r}"):
        load_settings({name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LLMREC_DEVICE", "gpu", "auto, cpu, cuda or tensorrt"),
        ("LLMREC_DEVICE", "CPU", "auto"),
        ("LLMREC_PROGRESS", "no", "1 or 0"),
        ("LLMREC_NICE", "21", "a whole number from 0 to 20"),
        ("LLMREC_NICE", "-5", "a whole number from 0 to 20"),
        ("LLMREC_REQUEST_THREADS", "0", "a positive integer"),
    ],
)
def test_an_unknown_choice_is_refused(name, value, expected):
    with pytest.raises(SettingsError, match=f"{name} must be {expected}.*got '{value}'"):
        load_settings({name: value})
