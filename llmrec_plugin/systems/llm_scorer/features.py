"""The columns that a generator gives alone: the probability of Yes, and the query of a conversation with its vector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmrec_plugin import (
    Decoding,
    EncoderModel,
    GeneratedEmbeddingFeature,
    Prompt,
    Scores,
    ShortText,
    TokenFeature,
)
from llmrec_plugin.errors import DeclarationError, InputError
from llmrec_plugin.prompts import load_prompt
from llmrec_plugin.systems.instructions import renamed

YES_NO = ("Yes", "No")


def pointwise_score(
    *,
    model: str,
    entity: str | None = None,
    name: str = "candidate_yes_score",
    columns: Mapping[str, str] | None = None,
    answers: Sequence[str] = YES_NO,
    **options: Any,
) -> TokenFeature:
    """The probability that a person likes a candidate: P(Yes) against P(No) after a prompt, ``Float32`` in [0, 1].

    One pass over the prompt, nothing is written. The tokens of the answers are what the generator's own tokenizer makes
    of them. No text of a row takes part in reading the value, so a title with "yes" or "no" in it is a title.

    Args:
        model: Name of the generator, zero-shot or from ``llmrec train llm-scorer``.
        entity: Feast entity of pairs, whose rows hold the columns of one person and one candidate, for stored scores;
            None for a feature of request time only. With an entity there is ``<name>_on_demand`` beside it.
        name: Name of the feature.
        columns: Column of each slot, where the names differ: ``liked`` and ``disliked``, lists of strings with the
            newest first, which may be empty; ``candidate``, a string. `scoring_rows` makes all three.
        answers: Yes and No as they follow the prompt. A model without a chat template continues the text, and most
            tokenizers then put the space to the word: ``(" Yes", " No")``.
        **options: Further fields of `TokenFeature`, e.g. ``status=True`` or ``deadline_ms=200``.

    Raises:
        DeclarationError: There are not two answers.
    """
    if isinstance(answers, str) or len(answers) != 2:
        raise DeclarationError(f"feature {name!r}: answers must be two, what stands for yes and no, got {answers!r}.")
    return TokenFeature(
        name=name,
        entity=entity,
        model=model,
        prompt=_prompt("pointwise"),
        output=Scores(answers=tuple(answers), of=answers[0]),
        columns_of=renamed(columns),
        **{"description": "Probability that the person likes the candidate (pointwise, TALLRec).", **options},
    )


def conversational_query(
    *,
    model: str,
    encoder: EncoderModel,
    entity: str | None = None,
    name: str = "dialogue_query",
    columns: Mapping[str, str] | None = None,
    max_chars: int = 300,
    max_new_tokens: int = 64,
    prefix: str = "",
    **options: Any,
) -> tuple[TokenFeature, GeneratedEmbeddingFeature]:
    """What a person of a conversation is after, as a query, ``String``, and the query's vector ``<name>_embedding``.

    The query is written once for both. Candidates are the nearest items to the vector: search a stored
    `EmbeddingFeature` of the same encoder with it (docs/how-to/vector-search.md).

    Args:
        model: Name of the generator.
        encoder: The encoder of the items' vectors.
        entity: Feast entity of conversations, for stored values; None for features of request time only.
        name: Name of the query's feature.
        columns: Column of the slot ``dialogue``, where it is called otherwise: turns as a list of strings, the newest
            first, such as `newest_turns` makes.
        max_chars: Longer queries are cut at a word.
        max_new_tokens: Tokens that are written at most.
        prefix: What the encoder expects before a query, e.g. ``"query: "``.
        **options: Further fields of the query's `TokenFeature`.
    """
    query = TokenFeature(
        name=name,
        entity=entity,
        model=model,
        prompt=_prompt("conversational_query"),
        output=ShortText(max_chars=max_chars),
        columns_of=renamed(columns),
        decoding=Decoding(max_new_tokens=max_new_tokens),
        **{"description": "What the person of the conversation is after.", **options},
    )
    vector = GeneratedEmbeddingFeature(
        name=f"{name}_embedding",
        entity=entity,
        of=query,
        model=encoder.name,
        pooling=encoder.pooling,
        normalize=encoder.normalize,
        prefix=prefix,
        metric=encoder.metric,
        max_tokens=encoder.max_tokens,
        dims=encoder.dims,
        description=f"Vector of {name}, to find candidates with.",
    )
    return query, vector


def newest_turns(
    turns: Iterable[str | tuple[str, str]], *, max_turns: int = 12, max_chars: int = 4000
) -> list[str] | None:
    """The turns of a conversation that fit, the newest first; None where there is nothing.

    A prompt cuts what is too long from its end, so with the newest first it is the oldest that goes. A newest turn that
    alone is too long is cut; an older one that does not fit whole is left out with all before it.

    Args:
        turns: In order of time: texts, or pairs of speaker and text, which become ``"speaker: text"``. Blank ones are
            left out.
        max_turns: Turns at most; the prompt reads 12.
        max_chars: Characters of all turns together at most.

    Raises:
        InputError: `max_turns` or `max_chars` is not positive.
    """
    if max_turns < 1 or max_chars < 1:
        raise InputError(f"newest_turns: expected max_turns and max_chars of 1 or more, got {max_turns}, {max_chars}.")
    spoken = [turn if isinstance(turn, str) else f"{turn[0]}: {turn[1]}" if turn[1].strip() else "" for turn in turns]
    kept: list[str] = []
    left = max_chars
    for turn in reversed([turn for turn in spoken if turn.strip()]):
        if len(kept) == max_turns or (kept and len(turn) > left):
            break
        kept.append(turn[:left])
        left -= len(kept[-1])
    return kept or None


def _prompt(name: str) -> Prompt:
    return load_prompt(f"package:llmrec_plugin.systems.llm_scorer/prompts/{name}.md")
