"""Declarations: what a plugin or a feature repo says about a feature or a model.

Frozen, keyword-only dataclasses, checked when they are built. They hold no model and do no work, so
declaring a thousand features costs nothing. A declaration travels as JSON (`to_spec` / `from_spec`)
inside the Feast registry, which is how a process that never saw the feature repo can serve it.

A **fingerprint** is the SHA-256 over everything that changes the values of a feature: the exported
model (graph and tokenizer hashes), text template or prompt, cleaning rules, prefix, pooling, normalization,
maximum length, reduction, metric, output type, decoding. Names, entities and descriptions are not part of it.
"""

from __future__ import annotations

from typing import Any, TypeAlias, get_args

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs.checks import PIPELINE_VERSION, digest, template_columns, to_spec
from llmrec_plugin.specs.embeddings import (
    EmbeddingFeature,
    GeneratedEmbeddingFeature,
    HistoryEmbeddingFeature,
    OnEmpty,
    Reduction,
    SimilarityFeature,
    Storage,
    TextFeature,
)
from llmrec_plugin.specs.models import (
    EncoderModel,
    GeneratorModel,
    GeneratorTask,
    LabelModel,
    Metric,
    Pooling,
    Precision,
    Rotation,
)
from llmrec_plugin.specs.networks import NetworkFeature, NetworkModel
from llmrec_plugin.specs.privacy import GaussianNoise, Redaction
from llmrec_plugin.specs.prompts import Prompt, Slot
from llmrec_plugin.specs.tokens import Choice, Decoding, Json, Output, Scores, ShortText, Tags, TokenFeature

Model: TypeAlias = EncoderModel | GeneratorModel | LabelModel | NetworkModel

ColumnFeature: TypeAlias = TextFeature | TokenFeature | NetworkFeature
"""What has a batch view: a column computed from the columns of a row."""

Feature: TypeAlias = TextFeature | TokenFeature | NetworkFeature | SimilarityFeature

_KINDS: dict[str, type] = {cls.kind: cls for cls in get_args(Feature)}


def from_spec(spec: dict[str, Any]) -> Feature:
    """The declaration that `to_spec` wrote.

    Raises:
        DeclarationError: The kind or a field is unknown, e.g. written by a newer version.
    """
    values = dict(spec)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise DeclarationError(
            f"Expected a feature of kind {', '.join(map(repr, _KINDS))}, got {kind!r}. "
            "The registry may have been written by a newer llmrec-plugin; upgrade this process."
        )
    try:
        return _KINDS[kind](**values)
    except TypeError as exc:
        raise DeclarationError(
            f"The stored declaration does not fit {_KINDS[kind].__name__}: {exc}. Run `feast apply` with this version."
        ) from exc


__all__ = [
    "PIPELINE_VERSION",
    "Choice",
    "ColumnFeature",
    "Decoding",
    "EmbeddingFeature",
    "EncoderModel",
    "Feature",
    "GaussianNoise",
    "GeneratedEmbeddingFeature",
    "GeneratorModel",
    "GeneratorTask",
    "HistoryEmbeddingFeature",
    "Json",
    "LabelModel",
    "Metric",
    "Model",
    "NetworkFeature",
    "NetworkModel",
    "OnEmpty",
    "Output",
    "Pooling",
    "Precision",
    "Prompt",
    "Redaction",
    "Reduction",
    "Rotation",
    "Scores",
    "ShortText",
    "SimilarityFeature",
    "Slot",
    "Storage",
    "Tags",
    "TextFeature",
    "TokenFeature",
    "digest",
    "from_spec",
    "template_columns",
    "to_spec",
]
