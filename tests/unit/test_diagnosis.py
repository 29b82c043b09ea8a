"""`llmrec doctor` without a feature repo: each check finds the fault that is planted, and nothing without it."""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import export_tiny

from llmrec_plugin import EncoderModel, diagnosis
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.cli import main
from llmrec_plugin.registry import Catalogue, PluginFailure, Provenance, Registered
from llmrec_plugin.runtime import probing
from llmrec_plugin.runtime.providers import CUDA, TENSORRT

TINY = EncoderModel(
    name="tiny", source="path:somewhere", pooling="mean", normalize=True, dims=8, max_tokens=16, metric="cosine"
)
ME = Provenance("mine", "my-package", "1.0")


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    """A sound one: a plugin declares `tiny`, and it is exported."""
    monkeypatch.setenv("LLMREC_HOME", str(tmp_path))
    monkeypatch.setenv("LLMREC_DEVICE", "cpu")
    monkeypatch.setattr(
        diagnosis, "load_catalogue", lambda disabled: Catalogue(models={"tiny": Registered(TINY, ME)}, plugins=(ME,))
    )
    return ArtifactStore([tmp_path / "artifacts"])


@pytest.fixture
def tiny(environment):
    return export_tiny(environment)


def found(check: str) -> list[diagnosis.Finding]:
    """What is wrong; it must be this check that says so, with a fix."""
    findings = diagnosis.examine_environment()
    assert {finding.check for finding in findings} <= {check}
    assert all(finding.fix for finding in findings)
    return findings


def test_a_sound_environment_has_no_finding(tiny):
    assert diagnosis.examine_environment() == []


# --- packages


def with_requirements(monkeypatch, *requirements: str, python: str = ">=3.11") -> None:
    monkeypatch.setattr(diagnosis.importlib.metadata, "requires", lambda name: list(requirements))
    monkeypatch.setattr(diagnosis.importlib.metadata, "metadata", lambda name: {"Requires-Python": python})


@pytest.mark.parametrize(
    ("requirement", "level"),
    [
        ("click<2", "error"),
        ("click>=8", None),
        ("click<2; extra == 'ui'", "warning"),
        ('click<2; extra == "dev"', None),
        ("not-to-be-found>=1", "error"),
        ('not-to-be-found>=1; extra == "ui"', None),
        ('click[all]<2,>=1; extra == "ui"', "warning"),
    ],
)
def test_packages_outside_of_the_supported_versions(monkeypatch, requirement, level):
    with_requirements(monkeypatch, requirement)
    assert [finding.level for finding in found("package_versions")] == ([level] if level else [])


def test_the_fix_is_the_supported_version(monkeypatch):
    with_requirements(monkeypatch, "click<2,>=1.5")
    (finding,) = found("package_versions")
    assert f"click {importlib.metadata.version('click')} is installed" in finding.found
    assert finding.fix == 'pip install "click<2,>=1.5"'


def test_a_python_that_is_not_supported(monkeypatch):
    with_requirements(monkeypatch, python=">=2.7,<3")
    assert "supports >=2.7,<3" in found("package_versions")[0].found


def test_a_folder_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(diagnosis, "PACKAGE", "not-to-be-found")
    assert "is not installed" in found("package_versions")[0].found


@pytest.mark.parametrize(
    ("version", "specifier", "within"),
    [
        ("1.10", ">=1.9,<2", True), ("1.9", ">=1.9", True), ("2.0", "<2", False), ("2.0.1", ">=2,<2.1", True),
        ("1.8.9", ">=1.9", False), ("2.13.0+cpu", "<2.14,>=2.9", True), ("3.0", "!=3", False), ("1.0", "", True),
        ("2.0rc1", ">=2", True), ("1", "==1.0", True), ("1.1", "<=1", False), ("1.1", ">1", True),
    ],
)  # fmt: skip
def test_ranges_of_versions(version, specifier, within):
    assert diagnosis._within(version, specifier) is within


def test_two_packages_that_own_onnxruntime(tmp_path, monkeypatch):
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / "site" / f"{name}-1.31.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.31.0\n")
        (folder / "top_level.txt").write_text("onnxruntime\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (finding,) = found("onnxruntime_packages")
    assert finding.level == "error"
    assert finding.found.startswith("onnxruntime and onnxruntime-gpu are all installed")
    assert finding.fix.startswith("pip uninstall onnxruntime onnxruntime-gpu, then install")


def test_no_onnxruntime(monkeypatch):
    monkeypatch.setattr(diagnosis.importlib.metadata, "packages_distributions", dict)
    assert "nothing can be computed" in found("onnxruntime_packages")[0].found


# --- providers


def test_the_graph_of_the_probe_is_what_onnx_makes():
    onnx = pytest.importorskip("onnx")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2]) for name in "abc"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["a", "b"], ["c"])], "g", values[:2], values[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    assert onnx.load_from_string(probing.MATRIX_PRODUCT) == model


def test_every_provider_that_is_offered_computes_or_says_why_not():
    assert probing.obstacle("CPUExecutionProvider") is None
    assert "AzureExecutionProvider" not in probing.offered_providers()


def test_a_provider_that_is_offered_and_does_not_compute(monkeypatch):
    monkeypatch.setattr(probing, "offered_providers", lambda: ["CoreMLExecutionProvider", "CPUExecutionProvider"])
    (finding,) = found("providers")
    assert finding.level == "note"
    assert finding.found.startswith("ONNX Runtime offers CoreMLExecutionProvider, but it does not compute here: ")


@pytest.mark.parametrize(("provider", "level"), [(CUDA, "warning"), (TENSORRT, "note")])
def test_a_gpu_build_without_a_gpu(monkeypatch, provider, level):
    monkeypatch.setattr(probing, "offered_providers", lambda: [provider])
    monkeypatch.setattr(probing, "gpu_obstacle", lambda provider: "the driver reports no usable GPU")
    (finding,) = found("providers")
    assert finding.level == level
    assert "the driver reports no usable GPU" in finding.found


def test_a_cpu_that_computes_other_numbers(monkeypatch):
    class Wrong:
        def run(self, *_: object) -> list[np.ndarray]:
            return [np.zeros((2, 2), np.float32)]

    monkeypatch.setattr(probing, "new_session", lambda graph, options: Wrong())
    (finding,) = found("providers")
    assert finding.level == "error"
    assert "expected [[7.0, 10.0], [15.0, 22.0]]" in finding.found


def test_a_device_that_was_asked_for_and_is_not_there(monkeypatch):
    monkeypatch.setenv("LLMREC_DEVICE", "tensorrt")
    (finding,) = found("providers")
    assert finding.level == "error"
    assert "LLMREC_DEVICE=tensorrt was asked for" in finding.found


# --- cache, plugins, models


def test_a_cache_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr(diagnosis.os, "access", lambda path, mode: mode != os.W_OK)
    assert found("cache_folder")[0].level == "error"


def test_caches_that_this_environment_does_not_use(monkeypatch, tmp_path):
    pytest.importorskip("cryptography", reason="needs the extra 'encryption'")
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path))
    (tmp_path / "values.sqlite").touch()
    (tmp_path / "values-0123456789abcdef.sqlite").touch()
    (note,) = found("other_caches")
    assert (note.level, "values-0123456789abcdef.sqlite" in note.found) == ("note", True)
    monkeypatch.setenv("LLMREC_CACHE_KEY", bytes(range(32)).hex())
    warning, note = found("other_caches")
    assert (warning.level, note.level) == ("warning", "note")
    assert "in the clear" in warning.found


def test_a_plugin_that_is_broken(monkeypatch):
    failure = PluginFailure(ME, "import", "ImportError: no such module")
    monkeypatch.setattr(diagnosis, "load_catalogue", lambda disabled: Catalogue(failures=(failure,)))
    (finding,) = found("plugins")
    assert "ImportError: no such module" in finding.found
    assert "LLMREC_DISABLE_PLUGINS=mine" in finding.fix


def test_a_damaged_artifact(tiny):
    graph = tiny.path("model.onnx")
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    (finding,) = found("exported_models")
    assert (finding.level, finding.fix) == ("error", "llmrec export tiny")


def test_a_current_artifact_that_is_gone(tiny):
    for path in tiny.folder.iterdir():
        path.unlink()
    tiny.folder.rmdir()
    (finding,) = found("exported_models")
    assert finding.level == "error"
    assert "is not on this machine" in finding.found


def test_a_model_that_is_declared_otherwise_than_it_was_exported(tiny, monkeypatch):
    changed = Registered(replace(TINY, pooling="cls", max_tokens=12), ME)
    monkeypatch.setattr(diagnosis, "load_catalogue", lambda disabled: Catalogue(models={"tiny": changed}))
    (finding,) = found("exported_models")
    assert finding.level == "warning"
    assert "pooling: declared 'cls', exported with 'mean'; max_tokens: declared 12, exported with 16" in finding.found


def test_the_command_examines_the_environment_where_no_repo_is(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["doctor", "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, [])
    assert "only the environment was examined" in done.stderr
    tiny.path("model.onnx").unlink()
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 1
    assert "error: The current artifact of model tiny cannot be used" in done.stdout
    assert "    llmrec export tiny\n" in done.stdout
