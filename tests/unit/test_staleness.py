"""Which exported models are not what is declared now."""

from dataclasses import replace

import pytest
from tiny import add_generator, export_tiny

from llmrec_plugin import EncoderModel, GeneratorModel, LabelModel, NetworkModel
from llmrec_plugin.artifacts import Artifact, ArtifactStore, NetworkArtifact
from llmrec_plugin.manifests import NetworkManifest
from llmrec_plugin.registry import Catalogue, Provenance, Registered
from llmrec_plugin.staleness import why_stale

ENCODER = EncoderModel(
    name="tiny", source="path:here", pooling="mean", normalize=True, dims=8, max_tokens=16, metric="cosine"
)
NOTHING = Catalogue()


@pytest.fixture
def encoder(tmp_path):
    artifact = export_tiny(ArtifactStore([tmp_path]))
    return told(artifact, source={"source": "path:here"})


def told(artifact, **changes):
    return type(artifact)(artifact.folder, replace(artifact.manifest, **changes))


def test_what_is_as_declared_or_not_declared_is_not_stale(encoder):
    assert why_stale(encoder, ENCODER, NOTHING) == []
    assert why_stale(encoder, None, NOTHING) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"source": "path:there"}, "source: declared 'path:there', exported from 'path:here'"),
        ({"normalize": False}, "normalize: declared False, exported with True"),
        ({"dims": 4}, "dims: declared 4, exported with 8"),
        ({"precision": "int8"}, "precision: declared 'int8', exported with 'fp32'"),
        ({"padding_side": "left"}, "padding_side: declared 'left', exported with 'right'"),
        ({"layers": (0, 2)}, "layers: declared '0,2', exported with None"),
        ({"rotation": "pca"}, "rotation: declared 'pca', exported with None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_every_setting_of_an_encoder_that_makes_its_numbers_counts(encoder, changes, reason):
    assert why_stale(encoder, replace(ENCODER, **changes), NOTHING) == [reason]


def test_what_changes_no_number_does_not_count(encoder):
    assert why_stale(encoder, replace(ENCODER, tolerance=1e-4, min_overlap=0.5, metric="dot"), NOTHING) == []


@pytest.mark.parametrize(("by", "stale"), [("0.0.9", True), ("9.0", False), ("", False)])
def test_an_older_exporter_counts(encoder, by, stale):
    artifact = told(encoder, versions={"llmrec-plugin": by} if by else {})
    assert bool(why_stale(artifact, ENCODER, NOTHING)) is stale
    assert bool(why_stale(artifact, None, NOTHING)) is stale


def test_a_generator_is_compared_by_task_and_length(tmp_path):
    artifact = told(add_generator(ArtifactStore([tmp_path])), source={"source": "path:here"})
    model = GeneratorModel(name="writer", source="path:here", task="causal", max_tokens=64)
    assert why_stale(artifact, model, NOTHING) == []
    assert why_stale(artifact, replace(model, max_tokens=32), NOTHING) == ["max_tokens: declared 32, exported with 64"]


def test_a_label_model_is_compared_by_its_head_and_its_encoders_source(tmp_path):
    artifact = export_tiny(ArtifactStore([tmp_path]), name="tags", labels=("a", "b"))
    artifact = told(artifact, source={"source": "path:here", "head": "path:head.safetensors"})
    assert isinstance(artifact, Artifact)
    catalogue = Catalogue(models={"tiny": Registered(ENCODER, Provenance("p", "d", "1"))})
    model = LabelModel(name="tags", encoder="tiny", head="path:head.safetensors")
    assert why_stale(artifact, model, catalogue) == []
    (reason,) = why_stale(artifact, replace(model, head="path:new.safetensors"), catalogue)
    assert reason.startswith("head: declared 'path:new.safetensors'")
    moved = Catalogue(models={"tiny": Registered(replace(ENCODER, source="path:new"), Provenance("p", "d", "1"))})
    (reason,) = why_stale(artifact, model, moved)
    assert reason.startswith("source: declared 'path:new'")


def test_a_network_is_compared_by_its_function(tmp_path):
    manifest = NetworkManifest(
        model="ranker", source={"source": "path:here", "network": "a.b:make"}, inputs=(), dims=None, metric=None,
        normalized=False, space="", tolerance=1e-4, files={},
    )  # fmt: skip
    artifact = NetworkArtifact(tmp_path, manifest)
    model = NetworkModel(name="ranker", source="path:here", network="a.b:make")
    assert why_stale(artifact, model, NOTHING) == []
    (reason,) = why_stale(artifact, replace(model, network="a.b:other"), NOTHING)
    assert reason == "network: declared 'a.b:other', exported from 'a.b:make'"
