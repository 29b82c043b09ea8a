"""Which exported models are not what is declared now."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmrec_plugin import __version__
from llmrec_plugin.artifacts import AnyArtifact
from llmrec_plugin.registry import Catalogue
from llmrec_plugin.specs import EncoderModel, LabelModel, Model, NetworkModel

PACKAGE = "llmrec-plugin"
_COMPARED = ("pooling", "normalize", "dims", "max_tokens", "padding_side", "precision", "task")


def why_stale(artifact: AnyArtifact, model: Model | None, catalogue: Catalogue) -> list[str]:
    """Why an exported model should be exported again; empty if there is no reason.

    Args:
        artifact: The current one of its name.
        model: What is declared under that name; None if nothing is, and then only the exporter can be older.
        catalogue: Where the encoder of a model that scores labels is looked up.
    """
    return [*_older_exporter(artifact), *(_differences(artifact, model, catalogue) if model else ())]


def _older_exporter(artifact: AnyArtifact) -> Iterator[str]:
    by = artifact.manifest.versions.get(PACKAGE)
    if by and _numbers(by) < _numbers(__version__):
        yield f"exported by {PACKAGE} {by}, this is {__version__}"


def _differences(artifact: AnyArtifact, model: Model, catalogue: Catalogue) -> Iterator[str]:
    manifest = artifact.manifest
    declared = {name: getattr(model, name) for name in ("source", "head", "network") if hasattr(model, name)}
    if isinstance(model, LabelModel):
        encoder = catalogue.models.get(model.encoder)
        if encoder is not None and isinstance(encoder.declaration, EncoderModel):
            declared["source"] = encoder.declaration.source
    for name, value in declared.items():
        exported = manifest.source.get(name)
        if exported is not None and exported != value:
            yield f"{name}: declared {value!r}, exported from {exported!r}"
    if isinstance(model, EncoderModel):
        yield from _origin_differences(artifact, model)
    if isinstance(model, (LabelModel, NetworkModel)):  # all else of them comes from their source
        return
    for name in _COMPARED:
        if not hasattr(model, name):
            continue
        value, exported = getattr(model, name), getattr(manifest, name, None)
        if value != exported:
            yield f"{name}: declared {value!r}, exported with {exported!r}"


def _origin_differences(artifact: AnyArtifact, model: EncoderModel) -> Iterator[str]:
    written = {"layers": ",".join(map(str, model.layers)) if model.layers else None, "rotation": model.rotation}
    for name, value in written.items():
        exported = artifact.manifest.source.get(name)
        if exported != value:
            yield f"{name}: declared {value!r}, exported with {exported!r}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
