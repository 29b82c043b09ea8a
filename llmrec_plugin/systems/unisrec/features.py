"""UniSRec's models and features; those of the whitening without training are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from llmrec_plugin import EmbeddingFeature, EncoderModel, NetworkFeature, NetworkModel, SimilarityFeature

_EXPORT = "llmrec_plugin.systems.unisrec.export"


class Models(NamedTuple):
    """The networks of one trained folder."""

    item: NetworkModel
    user: NetworkModel
    user_of_vectors: NetworkModel


def models(source: Path | str, *, name: str = "unisrec") -> Models:
    """The three networks of a folder: ``<name>-item``, ``<name>-user``, ``<name>-user-of-vectors``.

    Args:
        source: What ``llmrec train unisrec`` or ``llmrec train whitening`` wrote: the folder, or a source such as
            ``package:my_plugin/unisrec``.
        name: Beginning of the names.
    """
    place = source if isinstance(source, str) and source.startswith(("package:", "path:")) else f"path:{source}"
    parts = {"item": "item_network", "user": "user_network", "user-of-vectors": "user_of_vectors_network"}
    return Models(
        *(
            NetworkModel(name=f"{name}-{part}", source=place, network=f"{_EXPORT}:{function}")
            for part, function in parts.items()
        )
    )


def text_vector(
    encoder: EncoderModel, text: str, *, entity: str = "item", name: str = "item_unisrec_text", **options: Any
) -> EmbeddingFeature:
    """The frozen encoder's vector of an item's text, as the network was trained on it.

    Args:
        encoder: The encoder that ``llmrec train`` named.
        text: The template that ``llmrec train`` named.
        entity: Feast entity of the items.
        name: Of the feature, which need not be published.
        **options: Further fields of `EmbeddingFeature`.
    """
    return EmbeddingFeature(
        name=name,
        entity=entity,
        model=encoder.name,
        text=text,
        pooling=encoder.pooling,
        normalize=encoder.normalize,
        prefix="",
        metric=encoder.metric,
        max_tokens=encoder.max_tokens,
        dims=encoder.dims,
        **options,
    )


def item_embedding(
    text: EmbeddingFeature,
    *,
    dims: int,
    model: str = "unisrec-item",
    entity: str = "item",
    item: str | None = None,
    name: str | None = None,
    **options: Any,
) -> NetworkFeature:
    """The item's vector from its text; stored. A new item has one as soon as it has a text.

    Args:
        text: From `text_vector`.
        dims: Of the vectors: ``hidden``.
        model: Name of the item network.
        entity: Feast entity of the items.
        item: Column with the key (not the join key itself), for a transductive network, which knows no new items.
        name: Of the feature; default ``<entity>_universal_embedding``.
        **options: Further fields of `NetworkFeature`.
    """
    return NetworkFeature(
        name=name or f"{entity}_universal_embedding",
        entity=entity,
        model=model,
        inputs={"text": text, **({"item": item} if item else {})},
        dims=dims,
        metric="cosine",
        **{"description": "The item by its text, among those that follow one another (UniSRec).", **options},
    )


def sequence_embedding(
    *,
    dims: int,
    model: str = "unisrec-user",
    entity: str | None = None,
    history: str = "recent_items",
    name: str | None = None,
    **options: Any,
) -> NetworkFeature:
    """The user's vector from the keys of the last items; their vectors are inside the network.

    Items that are newer than the network are left out; `vector_sequence_embedding` reads them.

    Args:
        dims: Of the vectors: ``hidden``.
        model: Name of the user network.
        entity: None computes it from the request; a Feast entity stores it, from a batch source.
        history: Column with the keys, a list, newest first.
        name: Of the feature; default ``session_universal_embedding`` or ``<entity>_universal_embedding``.
        **options: Further fields of `NetworkFeature`.
    """
    return _user(model, entity, {"history": history}, dims, name, options)


def vector_sequence_embedding(
    *,
    dims: int,
    model: str = "unisrec-user-of-vectors",
    entity: str | None = None,
    vectors: str = "recent_item_vectors",
    name: str | None = None,
    **options: Any,
) -> NetworkFeature:
    """The user's vector from stored item vectors, those of new items included.

    Args:
        dims: Of the vectors: ``hidden``.
        model: Name of the network that reads vectors.
        entity: None computes it from the request; a Feast entity stores it, from a batch source.
        vectors: Column with the item vectors, newest first: numbers one after the other, or float32 bytes.
        name: Of the feature; default as for `sequence_embedding`.
        **options: Further fields of `NetworkFeature`.
    """
    return _user(model, entity, {"vectors": vectors}, dims, name, options)


def similarity(
    user: NetworkFeature, item: NetworkFeature, *, name: str = "universal_item_score", **options: Any
) -> SimilarityFeature:
    """How well an item follows a history: the cosine of both vectors, in [-1, 1].

    Args:
        user: From `sequence_embedding` or `vector_sequence_embedding`.
        item: From `item_embedding`.
        name: Of the feature.
        **options: Further fields of `SimilarityFeature`.
    """
    return SimilarityFeature(
        name=name,
        left=user.name,
        right=item.name,
        metric="cosine",
        **{"description": "How well the item follows the history (UniSRec).", **options},
    )


def _user(
    model: str, entity: str | None, inputs: dict[str, str], dims: int, name: str | None, options: dict[str, Any]
) -> NetworkFeature:
    return NetworkFeature(
        name=name or f"{entity or 'session'}_universal_embedding",
        entity=entity,
        model=model,
        inputs=inputs,
        dims=dims,
        metric="cosine",
        **{"description": "What comes next, from the texts of the last items (UniSRec).", **options},
    )
