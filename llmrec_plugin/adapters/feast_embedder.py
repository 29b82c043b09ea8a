"""Features behind Feast's own embedding interfaces: `BaseEmbedder` for documents, `EmbeddingProvider` for queries."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from feast.embedder import BaseEmbedder, EmbeddingConfig

from llmrec_plugin.adapters.computing import FeatureVectors
from llmrec_plugin.errors import DeclarationError, InputError, UnknownNameError
from llmrec_plugin.runtime.runner import Mode
from llmrec_plugin.specs import ColumnFeature


class FeatureEmbedder(BaseEmbedder):
    """Embeds documents, e.g. in Feast's `DocEmbedder`, with the numbers and the cache of the features it is given.

    Args:
        features: Modality -> name or declaration of a feature that reads one column, e.g. ``{"text": "item_text"}``;
            a single one is for ``"text"``.
        config: Of Feast; batches are made by the feature's engine, so nothing in it is used.

    Raises:
        UnknownNameError: No plugin declares the feature.
        DeclarationError: A feature reads several columns, or has no vectors.
    """

    def __init__(
        self, features: str | ColumnFeature | Mapping[str, str | ColumnFeature], config: EmbeddingConfig | None = None
    ) -> None:
        given: Mapping[str, Any] = features if isinstance(features, Mapping) else {"text": features}
        self._vectors = {modality: _of_one_column(feature) for modality, feature in given.items()}
        super().__init__(config)

    def _register_default_modalities(self) -> None:
        for modality, vectors in self._vectors.items():
            self.register_modality(modality, lambda inputs, vectors=vectors: _embed(vectors, inputs, "batch"))

    def get_embedding_dim(self, modality: str) -> int | None:
        """Length of the vectors, or None for a modality of a handler that was registered later; loads no model."""
        return self._vectors[modality].dims if modality in self._vectors else None

    def embed(self, inputs: list[Any], modality: str) -> np.ndarray:
        """The vectors of n inputs, (n, dims) float32.

        Raises:
            UnknownNameError: No feature or handler is there for the modality.
            InputError: An input has no vector.
        """
        if modality not in self._modality_handlers:
            raise UnknownNameError("modality", modality, self.supported_modalities)
        return self._modality_handlers[modality](inputs)


class FeatureEmbeddingProvider:
    """Embeds queries, for ``FeatureStore(..., embedding_provider=...)`` and what Feast builds on it.

    Queries of concurrent requests share batches, as on-demand features do.

    Args:
        feature: Name or declaration of a feature that reads one column and has the vector space of those searched.

    Raises:
        UnknownNameError: No plugin declares the feature.
        DeclarationError: It reads several columns, or has no vectors.
    """

    def __init__(self, feature: str | ColumnFeature) -> None:
        self._vectors = _of_one_column(feature)

    def embed(self, texts: list[str]) -> list[list[float]]:
        """One vector per text.

        Raises:
            InputError: A text has no vector.
        """
        return _embed(self._vectors, texts, "on_demand").tolist()

    async def aembed(self, texts: list[str]) -> list[list[float]]:
        """The same without holding up the event loop."""
        return await asyncio.to_thread(self.embed, texts)


def _of_one_column(feature: str | ColumnFeature) -> FeatureVectors:
    vectors = FeatureVectors(feature)
    if len(vectors.feature.columns) != 1:
        raise DeclarationError(
            f"Feature {vectors.feature.name!r} reads {', '.join(map(repr, vectors.feature.columns))}, but Feast's "
            "embedders give one value per row. Name a feature that reads one column, or publish this one as a view."
        )
    _ = vectors.dims
    return vectors


def _embed(vectors: FeatureVectors, inputs: Sequence[Any], mode: Mode) -> np.ndarray:
    matrix = vectors.matrix({vectors.feature.columns[0]: list(inputs)}, mode)
    without = np.flatnonzero(np.isnan(matrix).any(axis=1))
    if len(without):
        raise InputError(
            f"Feature {vectors.feature.name!r} has no vector for {len(without)} of {len(matrix)} inputs, the first is "
            f"number {without[0]}: it is empty or cannot be read, or it was late. Leave it out, or declare "
            "on_empty='zeros'."
        )
    return matrix
