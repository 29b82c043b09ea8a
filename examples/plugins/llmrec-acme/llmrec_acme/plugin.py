"""What this plugin declares."""

from __future__ import annotations

import os
from pathlib import Path

from llmrec_plugin import EmbeddingFeature, EncoderModel, hookimpl


@hookimpl
def llmrec_register_features() -> list[EmbeddingFeature]:
    return [
        EmbeddingFeature(
            name="package_synopsis_embedding",
            entity="package",
            text="{synopsis}",
            model="all-minilm-l6-v2",
            pooling="mean",
            normalize=True,
            prefix="",
            metric="cosine",
            max_tokens=64,
            dims=128,
            reduction="prefix",
            description="What a package is about, in a third of the dimensions.",
        )
    ]


@hookimpl
def llmrec_register_models() -> list[EncoderModel]:
    models = Path(os.environ.get("ACME_MODELS", "~/acme-models")).expanduser()
    return [
        EncoderModel(
            name="acme-tiny",
            source=f"path:{models.absolute() / 'acme-tiny'}",
            pooling="cls",
            normalize=True,
            dims=64,
            max_tokens=128,
            metric="dot",
        )
    ]
