"""U-BERT's declarations: models of the trained folders, and features over reviews and stored review matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec_plugin import NetworkFeature, NetworkModel

_MODULE = "llmrec_plugin.systems.ubert.exporting"


def review_encoder(folder: Path | str, *, ids: bool = True, name: str = "ubert-review-encoder") -> NetworkModel:
    """The review encoder that ``llmrec train ubert-pretrain`` wrote.

    Args:
        folder: What training wrote.
        ids: Whether it reads the author; a row of an author that training did not know is empty then.
        name: Of the model.
    """
    return _model(folder, "review_encoder", ids, name)


def pair_networks(folder: Path | str, *, ids: bool = False, prefix: str = "ubert") -> tuple[NetworkModel, ...]:
    """The networks that ``llmrec train ubert`` wrote: user vector, item vector, pair vector, rating.

    Args:
        folder: What training wrote.
        ids: Whether they read ids; a row of a user or an item that training did not know is empty then.
        prefix: Begins the models' names: ``<prefix>-user``, ``-item``, ``-pair`` and ``-rating``.
    """
    names = {"user": "user_vector", "item": "item_vector", "pair": "pair_vector", "rating": "pair_rating"}
    return tuple(_model(folder, function, ids, f"{prefix}-{short}") for short, function in names.items())


def review_vector(
    *,
    dims: int,
    model: str = "ubert-review-encoder",
    review: str = "review",
    user: str | None = "user_id",
    entity: str = "review",
    name: str = "review_vec",
    **options: Any,
) -> NetworkFeature:
    """The vector of each review, (dims) float32.

    Args:
        dims: Width of the BERT.
        model: Name of the review encoder.
        review: Column, or a template, of the text.
        user: Column of the author; None for an encoder without ids.
        entity: Feast entity of the reviews.
        name: Of the feature.
        **options: Further fields of `NetworkFeature`.
    """
    inputs = {"review": review} | ({"user": user} if user is not None else {})
    return NetworkFeature(
        name=name,
        entity=entity,
        model=model,
        inputs=inputs,
        dims=dims,
        metric="dot",
        description="Vector of a review (U-BERT).",
        **options,
    )


def side_vector(
    side: str,
    *,
    dims: int,
    reviews: str = "reviews",
    model: str | None = None,
    key: str | None = None,
    entity: str | None = None,
    name: str | None = None,
    **options: Any,
) -> NetworkFeature:
    """``user_review_vec`` or ``item_review_vec``: all that somebody's reviews say, (dims) float32.

    Args:
        side: ``"user"`` or ``"item"``.
        dims: Width of the BERT.
        reviews: Column of the review matrix, see `review_matrices`.
        model: Name of the network; ``ubert-<side>`` by default.
        key: Column of the id, for networks with ids.
        entity: Feast entity; `side` by default.
        name: Of the feature.
        **options: Further fields of `NetworkFeature`.
    """
    return NetworkFeature(
        name=name or f"{side}_review_vec",
        entity=entity or side,
        model=model or f"ubert-{side}",
        inputs={"reviews": reviews} | ({side: key} if key is not None else {}),
        dims=dims,
        metric="dot",
        description=f"Vector of the {side}'s reviews (U-BERT).",
        **options,
    )


def pair_rating(
    *,
    user_reviews: str = "user_reviews",
    item_reviews: str = "item_reviews",
    keys: tuple[str, str] | None = None,
    model: str = "ubert-rating",
    name: str = "ubert_rating",
    **options: Any,
) -> NetworkFeature:
    """The rating that a user would give an item, from the reviews of both, at request time.

    Args:
        user_reviews: Column of the user's review matrix, see `review_matrices`.
        item_reviews: Column of the item's review matrix.
        keys: Columns of user and item, for networks with ids.
        model: Name of the network.
        name: Of the feature.
        **options: Further fields of `NetworkFeature`.
    """
    return _pair(name, model, user_reviews, item_reviews, keys, None, "Expected rating (U-BERT).", options)


def pair_vector(
    *,
    dims: int,
    user_reviews: str = "user_reviews",
    item_reviews: str = "item_reviews",
    keys: tuple[str, str] | None = None,
    model: str = "ubert-pair",
    name: str = "ubert_pair_vec",
    **options: Any,
) -> NetworkFeature:
    """The last layer before the rating, for a ranker that has inputs of its own, at request time.

    Args:
        dims: Its length, `FinetuningSettings.hidden`.
        user_reviews: Column of the user's review matrix, see `review_matrices`.
        item_reviews: Column of the item's review matrix.
        keys: Columns of user and item, for networks with ids.
        model: Name of the network.
        name: Of the feature.
        **options: Further fields of `NetworkFeature`.
    """
    return _pair(name, model, user_reviews, item_reviews, keys, dims, "Vector of user and item (U-BERT).", options)


def _model(folder: Path | str, function: str, ids: bool, name: str) -> NetworkModel:
    network = f"{_MODULE}:{function}" + ("" if ids else "_anonymous")
    return NetworkModel(name=name, source=f"path:{folder}", network=network)


def _pair(
    name: str,
    model: str,
    user_reviews: str,
    item_reviews: str,
    keys: tuple[str, str] | None,
    dims: int | None,
    description: str,
    options: dict[str, Any],
) -> NetworkFeature:
    inputs = {"user_reviews": user_reviews, "item_reviews": item_reviews}
    if keys is not None:
        inputs |= dict(zip(("user", "item"), keys, strict=True))
    return NetworkFeature(
        name=name,
        entity=None,
        model=model,
        inputs=inputs,
        dims=dims,
        metric=None if dims is None else "dot",
        description=description,
        **options,
    )
