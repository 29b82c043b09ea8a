"""GENRE's features: a rewritten title per item, interests and made-up items per user."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmrec_plugin import Decoding, Json, Prompt, ShortText, Tags, TokenFeature
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.prompts import load_prompt
from llmrec_plugin.systems.instructions import renamed, told

TITLE_MARKER = "[newtitle]"


def title_rewrite(
    *,
    model: str,
    entity: str = "item",
    name: str = "item_title_rewrite",
    columns: Mapping[str, str] | None = None,
    max_chars: int = 200,
    max_new_tokens: int = 48,
    **options: Any,
) -> TokenFeature:
    """A title that says what the item is about, ``String``.

    Args:
        model: Name of the generator.
        entity: Feast entity of the items.
        name: Name of the feature.
        columns: Column of each slot, where the names differ: ``title``, and, which may be missing in a row,
            ``abstract``, ``category`` and ``subcategory``.
        max_chars: Longer titles are cut at a word.
        max_new_tokens: Tokens that are written at most.
        **options: Further fields of `TokenFeature`, e.g. ``status=True``.
    """
    return TokenFeature(
        name=name,
        entity=entity,
        model=model,
        prompt=_prompt("title_rewrite"),
        output=ShortText(prefix=TITLE_MARKER, max_chars=max_chars),
        columns_of=renamed(columns),
        decoding=Decoding(max_new_tokens=max_new_tokens),
        description="The title, rewritten to say what the item is about (GENRE's content summarizer).",
        **options,
    )


def user_profile(
    *,
    model: str,
    topics: Sequence[str],
    regions: Sequence[str] = (),
    entity: str = "user",
    name: str = "user_history",
    columns: Mapping[str, str] | None = None,
    max_items: int = 8,
    **options: Any,
) -> list[TokenFeature]:
    """What a user is interested in, as tags: ``<name>_topics`` and, where there are regions, ``<name>_regions``.

    Both are ``Array(String)``, the strongest first.

    Args:
        model: Name of the generator.
        topics: All topics there are, e.g. the categories of the catalogue.
        regions: All regions there are; empty for no such feature.
        entity: Feast entity of the users.
        name: Beginning of the names of the features.
        columns: Column of the slot ``history``, where it is called otherwise: titles as a list of strings, the newest
            first, such as `llmrec_plugin.feast.history_frame` makes.
        max_items: Tags of each facet at most.
        **options: Further fields of `TokenFeature`.

    Raises:
        DeclarationError: The topics or regions are no distinct strings of one line.
    """
    facets = [("topics", "Topics", topics), *([("regions", "Regions", regions)] if regions else [])]
    return [
        TokenFeature(
            name=f"{name}_{facet}",
            entity=entity,
            model=model,
            prompt=told(_prompt(f"user_{facet}"), label, vocabulary),
            output=Tags(vocabulary=tuple(vocabulary), max_items=max_items),
            columns_of=renamed(columns),
            decoding=Decoding(max_new_tokens=16 * max_items),
            description=f"{label} that the user's history speaks for (GENRE's user profiler).",
            **options,
        )
        for facet, label, vocabulary in facets
    ]


def synthetic_items(
    *,
    model: str,
    categories: Sequence[str],
    entity: str = "user",
    name: str = "user_synthetic_item",
    columns: Mapping[str, str] | None = None,
    chained: bool = False,
    versions: int = 2,
    temperature: float = 0.9,
    top_p: float = 0.95,
    max_new_tokens: int = 160,
    **options: Any,
) -> list[TokenFeature]:
    """Items made up for users with a short history, one in each of `versions` features ``<name>_1``, ``<name>_2``, ...

    Each is a ``String`` of canonical JSON with ``title``, ``abstract`` and ``category``. The features differ in the
    seed of their draws. `cold_history` makes the column that the slot ``cold_history`` reads; a user with a longer
    history, or with none, has null there and so no value.

    Args:
        model: Name of the generator.
        categories: All categories there are.
        entity: Feast entity of the users.
        name: Beginning of the names of the features.
        columns: Column of each slot, where the names differ: ``cold_history`` and, if chained, ``topics``.
        chained: Whether the generator reads the user's topics, too, which `chain_rows` puts beside the history. A user
            without topics has no value then.
        versions: How many items are made up.
        temperature: Of the draws.
        top_p: Of the draws.
        max_new_tokens: Tokens that are written at most.
        **options: Further fields of `TokenFeature`.

    Raises:
        DeclarationError: The categories are no distinct strings of one line, or `versions` is not positive.
    """
    if versions < 1:
        raise DeclarationError(f"feature {name!r}: versions must be a positive integer, got {versions!r}.")
    prompt = told(_prompt("synthetic_item_chained" if chained else "synthetic_item"), "Categories", categories)
    return [
        TokenFeature(
            name=f"{name}_{version}",
            entity=entity,
            model=model,
            prompt=prompt,
            output=Json(schema=json.dumps(item_schema(categories))),
            columns_of=renamed(columns),
            decoding=Decoding(
                method="sample",
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=max_new_tokens,
                seed=version,
            ),
            description="An item made up for a user with a short history (GENRE's personalized generator).",
            **options,
        )
        for version in range(1, versions + 1)
    ]


def item_schema(categories: Sequence[str]) -> dict[str, Any]:
    """JSON Schema of a made-up item."""
    return {
        "type": "object",
        "properties": {
            "title": {"type": "string", "minLength": 1, "maxLength": 160},
            "abstract": {"type": "string", "maxLength": 400},
            "category": {"enum": list(categories)},
        },
        "required": ["title", "abstract", "category"],
        "additionalProperties": False,
    }


def _prompt(name: str) -> Prompt:
    return load_prompt(f"package:llmrec_plugin.systems.genre/prompts/{name}.md")
