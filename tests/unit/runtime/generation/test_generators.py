"""Which engine writes: ONNX Runtime unless the settings name another."""

import dataclasses
import sys
from types import ModuleType, SimpleNamespace

import pytest
from generating import manifest
from samples import settings

from llmrec_plugin.artifacts import GeneratorArtifact
from llmrec_plugin.errors import ArtifactCorruptError, ProviderError, UnknownNameError
from llmrec_plugin.generation import Generator
from llmrec_plugin.manifests import ENDPOINT
from llmrec_plugin.runtime.generation import generators as module
from llmrec_plugin.runtime.generation.generators import choose_generator, open_session


@pytest.fixture
def other(monkeypatch):
    """A registered engine, `other`, whose opener a test may replace."""
    engine = ModuleType("other_engine")
    engine.open_generator = lambda artifact, **options: (artifact, options)
    monkeypatch.setitem(sys.modules, "other_engine", engine)
    item = SimpleNamespace(declaration=Generator(name="other", opener="other_engine:open_generator"))
    monkeypatch.setattr(module, "load_catalogue", lambda disabled: SimpleNamespace(generators={"other": item}))
    return engine


@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_onnx_runtime_is_built_in_and_consults_no_plugin(tmp_path, monkeypatch, name):
    monkeypatch.setattr(module, "load_catalogue", lambda disabled: pytest.fail("plugins were loaded"))
    assert (
        choose_generator(GeneratorArtifact(tmp_path, manifest()), settings(tmp_path, generator=name)).name
        == "onnxruntime"
    )


def test_a_model_that_is_not_here_is_asked_at_its_endpoint(tmp_path, monkeypatch):
    item = SimpleNamespace(declaration=Generator(name="openai", opener="other_engine:open_generator"))
    monkeypatch.setattr(module, "load_catalogue", lambda disabled: SimpleNamespace(generators={"openai": item}))
    remote = GeneratorArtifact(tmp_path, dataclasses.replace(manifest(), files={ENDPOINT: "0" * 64}))
    assert choose_generator(remote, settings(tmp_path)).name == "openai"
    with pytest.raises(ProviderError, match="behind an endpoint and has no graph"):
        choose_generator(remote, settings(tmp_path, generator="onnxruntime"))


def test_a_registered_engine_opens_the_model(tmp_path, other):
    artifact = GeneratorArtifact(tmp_path, manifest())
    found, options = open_session(artifact, settings(tmp_path, generator="other", threads=3))
    assert found is artifact
    assert options == {"device": "cpu", "threads": 3}


def test_an_unknown_engine_is_an_error_with_near_names(tmp_path, other):
    with pytest.raises(UnknownNameError, match=r"generator is named 'othr'.*'other'"):
        choose_generator(GeneratorArtifact(tmp_path, manifest()), settings(tmp_path, generator="othr"))


def test_what_an_engine_raises_names_it_and_the_model(tmp_path, other):
    def fail(artifact, **options):
        raise KeyError("weights")

    other.open_generator = fail
    with pytest.raises(
        ProviderError, match=r"'other' \(other_engine:open_generator\) cannot open model 'tiny'.*weights"
    ):
        open_session(GeneratorArtifact(tmp_path, manifest()), settings(tmp_path, generator="other"))


def test_a_damaged_file_is_never_opened(tmp_path, other):
    artifact = GeneratorArtifact(tmp_path, dataclasses.replace(manifest(), files={"model.onnx": "0" * 64}))
    with pytest.raises(ArtifactCorruptError, match=r"model\.onnx"):
        open_session(artifact, settings(tmp_path, generator="other"))
