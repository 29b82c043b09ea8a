"""A model that only an endpoint has is an artifact, too."""

import json

import pytest

from llmrec_plugin import EncoderModel, GeneratorModel
from llmrec_plugin.artifacts import ArtifactStore, GeneratorArtifact
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export.endpoint import export_endpoint


def model(**changes):
    fields = {"name": "ours", "source": "endpoint:org/writer@1", "task": "causal", "max_tokens": 100, "chat": True}
    return GeneratorModel(**{**fields, **changes})


@pytest.fixture
def store(tmp_path):
    return ArtifactStore([tmp_path / "artifacts"])


def test_the_artifact_is_current_and_names_what_is_served(store):
    made = export_endpoint(model(), store)
    found = store.get_generator("ours", store.current_id("ours"))
    assert isinstance(found, GeneratorArtifact)
    assert (found.id, found.manifest) == (made.id, made.manifest)
    found.verify()
    assert json.loads(found.path("endpoint.json").read_text()) == {"chat": True, "model": "org/writer", "version": "1"}
    assert [path.name for path in store.folders[0].iterdir()] == ["ours"]


def test_the_id_covers_what_is_served_and_how(store):
    same = {export_endpoint(model(name=name), store).id for name in ("ours", "again")}
    others = [
        export_endpoint(model(**changes), store).id
        for changes in (
            {"source": "endpoint:org/writer@2"},
            {"source": "endpoint:w@1"},
            {"chat": False},
            {"max_tokens": 9},
        )
    ]
    assert len(same) == 1
    assert len({*same, *others}) == 5


def test_a_model_that_is_here_is_none_of_an_endpoint(store):
    with pytest.raises(DeclarationError, match="expected a source 'endpoint:<served model>@<version>'"):
        export_endpoint(model(source="path:/weights"), store)


@pytest.mark.parametrize(
    "source", ["endpoint:", "endpoint:writer", "endpoint:writer@", "endpoint:@1", "endpoint:a b@1"]
)
def test_a_source_without_a_version_is_refused(source):
    with pytest.raises(DeclarationError, match="source must"):
        model(source=source)


def test_an_endpoint_has_causal_models_and_no_encoders():
    with pytest.raises(DeclarationError, match="behind an endpoint has task 'causal'"):
        model(task="seq2seq")
    with pytest.raises(DeclarationError, match="must start with 'package:', 'path:' or 'hub:'"):
        EncoderModel(
            name="e", source="endpoint:e@1", pooling="mean", normalize=True, dims=8, max_tokens=8, metric="cosine"
        )
