"""Declarations: the whole model over two texts, or the encoder's stored vectors and the head over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec_plugin import EmbeddingFeature, EncoderModel, NetworkFeature, NetworkModel

_MODULE = "llmrec_plugin.systems.text_rating.exporting"


def rating_network(folder: Path | str, *, name: str = "text-rating") -> NetworkModel:
    """The whole model: two texts -> rating.

    Args:
        folder: What ``llmrec train text-rating`` wrote.
        name: Of the model.
    """
    return NetworkModel(name=name, source=f"path:{folder}", network=f"{_MODULE}:two_texts")


def head_network(folder: Path | str, *, name: str = "text-rating-head") -> NetworkModel:
    """The head alone: two vectors of the encoder -> rating."""
    return NetworkModel(name=name, source=f"path:{folder}", network=f"{_MODULE}:two_vectors")


def text_encoder(
    folder: Path | str, *, dims: int, max_tokens: int = 64, name: str = "text-rating-encoder"
) -> EncoderModel:
    """The trained encoder: text -> vector.

    Args:
        folder: What ``llmrec train text-rating`` wrote.
        dims: Width of the BERT.
        max_tokens: As in training.
        name: Of the model.
    """
    return EncoderModel(
        name=name,
        source=f"path:{Path(folder) / 'encoder'}",
        pooling="mean",
        normalize=True,
        dims=dims,
        max_tokens=max_tokens,
        metric="cosine",
    )


def text_vector(encoder: EncoderModel, *, name: str, entity: str | None, text: str, **options: Any) -> EmbeddingFeature:
    """A user's or an item's vector, to be stored.

    Args:
        encoder: From `text_encoder`.
        name: Of the feature, e.g. ``item_text_vec``.
        entity: Feast entity.
        text: Template of the text, as in training.
        **options: Further fields of `EmbeddingFeature`.
    """
    return EmbeddingFeature(
        name=name,
        entity=entity,
        text=text,
        model=encoder.name,
        pooling=encoder.pooling,
        normalize=True,
        prefix="",
        metric=encoder.metric,
        max_tokens=encoder.max_tokens,
        dims=encoder.dims,
        **options,
    )


def text_rating(
    *, user: str = "{user_text}", item: str, model: str = "text-rating", name: str = "text_rating", **options: Any
) -> NetworkFeature:
    """The rating, from both texts, at request time.

    Args:
        user: Column or template of the user's text, see `user_texts`.
        item: Template of the item's text, as in training.
        model: Name of the network from `rating_network`.
        name: Of the feature.
        **options: Further fields of `NetworkFeature`.
    """
    return _rating(name, model, user, item, options)


def stored_rating(
    *,
    user: str | EmbeddingFeature = "user_text_vec",
    item: str | EmbeddingFeature = "item_text_vec",
    model: str = "text-rating-head",
    name: str = "text_rating",
    **options: Any,
) -> NetworkFeature:
    """The rating, from two vectors that are stored, at request time; equal to `text_rating` up to rounding.

    Args:
        user: Column of the user's vector, or the feature that computes it on the way.
        item: Column of the item's vector, or the feature that computes it on the way.
        model: Name of the network from `head_network`.
        name: Of the feature.
        **options: Further fields of `NetworkFeature`.
    """
    return _rating(name, model, user, item, options)


def _rating(name: str, model: str, user: Any, item: Any, options: dict[str, Any]) -> NetworkFeature:
    return NetworkFeature(
        name=name,
        entity=None,
        model=model,
        inputs={"user": user, "item": item},
        dims=None,
        metric=None,
        description="Expected rating, from the texts of user and item.",
        **options,
    )
