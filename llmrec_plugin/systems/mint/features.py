"""MINT's features: a request written for each user, and the retriever that is trained on such requests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from llmrec_plugin import (
    Decoding,
    EmbeddingFeature,
    EncoderModel,
    ShortText,
    SimilarityFeature,
    TokenFeature,
)
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.prompts import load_prompt
from llmrec_plugin.systems.instructions import renamed


def synthetic_query(
    *,
    model: str,
    entity: str = "user",
    name: str = "user_synthetic_query",
    columns: Mapping[str, str] | None = None,
    temperature: float = 0.7,
    top_p: float = 1.0,
    max_new_tokens: int = 160,
    seed: int = 0,
    **options: Any,
) -> TokenFeature:
    """A request that a user could have written, to which what the user liked would be good answers, ``String``.

    Training data for a retriever, and never shown to anyone; stored so that it can be read and counted.

    Args:
        model: Name of the generator.
        entity: Feast entity of the users.
        name: Name of the feature.
        columns: Column of each slot, where the names differ from those of `query_rows`: ``liked_items`` and
            ``liked_sentences``.
        temperature: Of the draws.
        top_p: Of the draws.
        max_new_tokens: Tokens that are written at most.
        seed: Of the draws.
        **options: Further fields of `TokenFeature`.
    """
    return TokenFeature(
        name=name,
        entity=entity,
        model=model,
        prompt=load_prompt("package:llmrec_plugin.systems.mint/prompts/user_request.md"),
        output=ShortText(max_chars=1000, min_chars=20),
        columns_of=renamed(columns),
        decoding=Decoding(
            method="sample", temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
        ),
        description="A request the user could have written (MINT's synthetic narrative query).",
        **options,
    )


def bi_encoder(
    folder: Path | str,
    *,
    dims: int,
    max_tokens: int,
    pooling: Literal["mean", "cls"] = "mean",
    name: str = "mint-bi-encoder",
) -> EncoderModel:
    """The retriever that `llmrec_plugin.systems.mint.training.train_bi_encoder` saved, for ``llmrec export``.

    Its vectors are compared by Euclidean distance and are not normalized: their length means something.
    """
    return EncoderModel(
        name=name,
        source=f"path:{folder}",
        pooling=pooling,
        normalize=False,
        dims=dims,
        max_tokens=max_tokens,
        metric="euclidean",
    )


def retriever(
    encoder: EncoderModel,
    *,
    document: str,
    query: str = "{narrative_query}",
    entity: str = "item",
    item_name: str = "item_document_embedding",
    query_name: str = "narrative_query_embedding",
    distance_name: str = "narrative_query_distance",
) -> tuple[EmbeddingFeature, EmbeddingFeature, SimilarityFeature]:
    """The three features of a retriever: items' vectors, the request's vector, their distance.

    The items' vectors are stored; the request's vector and the distance are computed at request time. The paper's
    score is the negative distance: the smallest distance is the best answer.

    Args:
        encoder: The bi-encoder; one encoder for both sides.
        document: Text template of an item's document, as it was in training, e.g. ``"{title}. {description}"``.
        query: Text template over the columns of a request.
        entity: Feast entity of the items.
        item_name: Name of the items' feature.
        query_name: Name of the request's feature.
        distance_name: Name of the distance.

    Raises:
        DeclarationError: The encoder's vectors are not meant for Euclidean distances.
    """
    if encoder.metric != "euclidean" or encoder.normalize:
        raise DeclarationError(
            f"model {encoder.name!r} has metric={encoder.metric!r} and normalize={encoder.normalize}; expected "
            "metric='euclidean' and normalize=False, as bi_encoder declares."
        )
    encoded: dict[str, Any] = {
        "model": encoder.name,
        "pooling": encoder.pooling,
        "normalize": False,
        "prefix": "",
        "metric": "euclidean",
        "max_tokens": encoder.max_tokens,
        "dims": encoder.dims,
    }
    return (
        EmbeddingFeature(
            name=item_name, entity=entity, text=document, description="Vector of the item's document (MINT).", **encoded
        ),
        EmbeddingFeature(
            name=query_name, entity=None, text=query, description="Vector of a narrative request (MINT).", **encoded
        ),
        SimilarityFeature(
            name=distance_name,
            left=query_name,
            right=item_name,
            metric="euclidean",
            description="Distance of request and item (MINT); smaller is better.",
        ),
    )
