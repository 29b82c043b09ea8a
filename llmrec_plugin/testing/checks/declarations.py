"""Checks of what is declared and of what was exported; no row is computed."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np

from llmrec_plugin.artifacts import Artifact, ArtifactStore, GeneratorArtifact, NetworkArtifact
from llmrec_plugin.errors import LLMRecError
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.manifests import ENDPOINT, GOLDEN
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.generation.generators import open_session
from llmrec_plugin.runtime.networks import LoadedNetwork
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import EncoderModel, Feature, SimilarityFeature, TokenFeature, from_spec, to_spec
from llmrec_plugin.testing.child import call_fresh
from llmrec_plugin.testing.children import described_feature, described_model
from llmrec_plugin.testing.declarations import Declared
from llmrec_plugin.testing.outcomes import CheckSkipped, fail
from llmrec_plugin.testing.subjects import Subject, bench_settings

HEAVY = ("torch", "transformers", "feast", "onnxruntime", "pandas", "optimum", "openvino", "onnx", "tensorflow", "ray")
"""Packages that take long to import, or much memory, and that no declaration needs."""
_CHILDREN = "llmrec_plugin.testing.children"


def hooks_give_declarations(declared: Declared) -> None:
    """Every hook of the plugin can be called and gives what its specification says."""
    if declared.problems:
        fail(
            "hooks that return iterables of declarations",
            "; ".join(declared.problems),
            "See the page on hooks for their names and what they return.",
        )


def importing_is_light(declared: Declared) -> None:
    """A fresh process that imports the plugin and calls its hooks loads nothing heavy."""
    loaded = call_fresh(f"{_CHILDREN}:loaded_by_plugin", place=declared.place, watched=HEAVY)
    if loaded:
        fail(
            "a plugin that loads nothing heavy when it is imported and its hooks are called",
            ", ".join(loaded),
            "Every process that serves a feature imports every plugin: move these imports into the functions that "
            "need them.",
        )


def declaration_is_valid(subject: Subject) -> None:
    """The declaration can be hashed, survives JSON, and names models and features that somebody declares."""
    declaration: Any = subject.declaration
    hash(declaration)
    if isinstance(declaration, get_args(Feature)):
        spec = json.loads(json.dumps(to_spec(declaration)))
        rebuilt = from_spec(spec)
        if rebuilt != declaration:
            fail(
                "the same declaration after a way through JSON, by which Feast's registry carries it",
                f"{rebuilt!r:.200}",
                "Use plain strings, numbers, tuples and declarations as values.",
            )
        _check_names(subject)


def _check_names(subject: Subject) -> None:
    feature = subject.feature
    if isinstance(feature, SimilarityFeature):
        for name in (feature.left, feature.right):
            side = subject.feature_named(name)
            if isinstance(side, (SimilarityFeature, TokenFeature)):
                fail(f"a feature that gives vectors as {name!r}", type(side).__name__, "Name an embedding feature.")
        return
    model = _declared_model(subject)
    if model is None:
        store = ArtifactStore(bench_settings().artifact_folders)
        if not any((folder / feature.model / "current").is_file() for folder in store.folders):
            fail(
                f"model {feature.model!r} to be declared by an installed plugin, or exported",
                "neither",
                "Declare it in llmrec_register_models, install the plugin that does, or export it.",
            )
    if isinstance(model, EncoderModel) and not isinstance(feature, TokenFeature):
        _check_against_model(feature, model)


def _declared_model(subject: Subject) -> Any:
    name = subject.model_name
    if name in subject.declared.models:
        return subject.declared.models[name]
    item = load_catalogue(load_settings().disabled_plugins).models.get(name)
    return None if item is None else item.declaration


def _check_against_model(feature: Any, model: EncoderModel) -> None:
    """What an artifact would refuse, before there is one."""

    def differ(field: str, expected: object) -> None:
        fail(
            f"{field} {expected!r}, as model {model.name!r} is declared",
            repr(getattr(feature, field)),
            "Correct the feature's or the model's declaration.",
        )

    if feature.pooling != model.pooling:
        differ("pooling", model.pooling)
    if model.normalize and not feature.normalize:
        differ("normalize", True)
    if feature.max_tokens > model.max_tokens:
        differ("max_tokens", f"at most {model.max_tokens}")
    if feature.reduction is None and feature.dims != model.dims:
        differ("dims", model.dims)
    if feature.reduction is not None and feature.dims >= model.dims:
        differ("dims", f"fewer than {model.dims}")


def declaration_is_stable(subject: Subject) -> None:
    """Fresh processes with other hash seeds declare the same, with the same fingerprint; so does a rebuilt one."""
    feature = isinstance(subject.declaration, get_args(Feature))
    here = described_feature(subject.feature) if feature else described_model(subject.declaration)
    for seed in ("1", "2"):
        environ = {"PYTHONHASHSEED": seed}
        if subject.declared.place:
            place = subject.declared.place
            there = call_fresh(f"{_CHILDREN}:described_plugin", environ=environ, place=place)
            found = there.get(f"{'feature' if feature else 'model'} {subject.name}")
        elif feature:
            spec = to_spec(subject.feature)
            found = call_fresh(f"{_CHILDREN}:described_spec", environ=environ, spec=spec)
        else:
            return  # what was given as an object is declared once
        if found != here:
            fail(
                f"the declaration that this process has, {here:.400}",
                f"{found!r:.400} in a fresh process",
                "Something that changes from process to process is part of it: the order of a set, a hash, the time, "
                "a random number, the working folder.",
            )


def artifact_matches_its_manifest(subject: Subject) -> None:
    """Every file has the hash that the manifest records, golden values the declared form, and features fit."""
    artifact = subject.artifact()
    artifact.verify()
    if isinstance(artifact, (Artifact, NetworkArtifact)):
        golden = np.load(artifact.path(GOLDEN), allow_pickle=False)
        dims = () if artifact.manifest.dims is None else (artifact.manifest.dims,)
        if golden.dtype != np.float32 or golden.shape[1:] != dims or not len(golden) or not np.isfinite(golden).all():
            fail(
                f"finite float32 golden values of shape {('n', *dims)}",
                f"{golden.dtype} of shape {golden.shape}",
                f"Run `llmrec export {artifact.manifest.model}` again.",
            )
    if isinstance(subject.declaration, get_args(Feature)):
        subject.bound()


def golden_values_come_out(subject: Subject) -> None:
    """The model gives here what it gave at export: golden vectors, golden tokens, golden rows."""
    artifact, settings = subject.artifact(), bench_settings()
    try:
        if isinstance(artifact, Artifact):
            Encoder(artifact, settings)
        elif isinstance(artifact, NetworkArtifact):
            LoadedNetwork(artifact, settings)
        elif isinstance(artifact, GeneratorArtifact) and ENDPOINT not in artifact.manifest.files:
            open_session(artifact, settings)
        else:
            raise CheckSkipped(f"Model {subject.model_name!r} is behind an endpoint and has no golden values.")
    except CheckSkipped:
        raise
    except LLMRecError as exc:
        fail("the golden values that were recorded at export", str(exc), "Export again, or use the runtime of export.")
