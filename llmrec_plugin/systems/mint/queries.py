"""From what users liked to pairs of a request and a document: the rows of the prompt, and the filter behind it."""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from llmrec_plugin import GenerationSession, Request, Segment
from llmrec_plugin.errors import InputError
from llmrec_plugin.prompts import load_prompt
from llmrec_plugin.systems.events import event_log, is_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


class Pair(NamedTuple):
    """A request and a document that answers it."""

    query: str
    document: str


def query_rows(
    events: pd.DataFrame,
    *,
    entity: str,
    item: str,
    title: str,
    text: str,
    timestamp: str,
    most: int = 10,
    words: tuple[int, int] = (5, 20),
    seed: int = 0,
    delay: timedelta = timedelta(microseconds=1),
) -> pd.DataFrame:
    """One row per user: some of the items the user liked, with one short sentence about each.

    Written to parquet, it is the source of `synthetic_query`. What is drawn for a user depends on the seed and on the
    user's own events alone. A row is dated `delay` after the last of its events.

    Args:
        events: One row per item that a user liked; leave others out. In any order.
        entity: Column with the user's key.
        item: Column with the item's key. Of several events with one item, the newest counts.
        title: Column with the item's name, as a person would write it, e.g. with its city.
        text: Column with what was said about the item: the user's review, else the item's description.
        timestamp: Column with the event's time; naive times are UTC.
        most: Items of a user at most; more are drawn from.
        words: Fewest and most words of a sentence that is taken. An item without such a sentence is only named.
        seed: Of the draws.
        delay: How long after an event it is known.

    Returns:
        Columns `entity`, ``liked_items``, ``liked_sentences`` and ``liked_ids`` (lists; items the oldest first) and
        `timestamp` (UTC, microseconds), by user.

    Raises:
        MissingColumnError: A column is not there.
        InputError: `most` or `words` leave nothing, `delay` is negative, or an event has no time.
    """
    import pandas as pd  # only whoever prepares sources needs it

    if most < 1 or not 1 <= words[0] <= words[1] or delay < timedelta(0):
        raise InputError(f"query_rows: expected most >= 1, 1 <= words and delay >= 0, got {most}, {words}, {delay}.")
    log = event_log(events, [entity, item, title, text], timestamp, owner="query_rows")
    log = log[log[entity].notna() & log[title].map(is_text).astype(bool)].drop_duplicates([entity, item], keep="last")
    rows = []
    for user, group in log.groupby(entity, sort=True):
        draw = random.Random(_drawn(seed, user))  # noqa: S311  # reproducible, nothing to guess
        chosen = group.iloc[sorted(draw.sample(range(len(group)), min(most, len(group))))]
        candidates = [sentences(value, *words) for value in chosen[text]]
        said = [draw.choice(found) for found in candidates if found]
        rows.append((user, list(chosen[title]), said, list(chosen[item]), chosen[timestamp].iloc[-1] + delay))
    return pd.DataFrame(
        {
            entity: pd.Series([row[0] for row in rows], dtype=log[entity].dtype),
            "liked_items": pd.Series([row[1] for row in rows], dtype=object),
            "liked_sentences": pd.Series([row[2] for row in rows], dtype=object),
            "liked_ids": pd.Series([row[3] for row in rows], dtype=object),
            timestamp: pd.Series([row[4] for row in rows], dtype="datetime64[us, UTC]"),
        }
    )


def sentences(text: Any, fewest: int, most: int) -> list[str]:
    """The sentences of a text that have `fewest` to `most` words, in order; none for a value that is no text."""
    if not is_text(text):
        return []
    found = (" ".join(sentence.split()) for sentence in _SENTENCE_END.split(text))
    return [sentence for sentence in found if fewest <= len(sentence.split()) <= most]


def query_pairs(
    queries: Iterable[str | None], liked_ids: Iterable[Iterable[Any]], documents: Mapping[Any, str]
) -> list[Pair]:
    """Each written request with the document of each item that it was written from.

    Args:
        queries: Values of `synthetic_query`, per user; users without one are left out.
        liked_ids: The column ``liked_ids`` of the same rows.
        documents: Item's key -> document. Items without one are left out.
    """
    return [
        Pair(query, documents[key])
        for query, keys in zip(queries, liked_ids, strict=True)
        if is_text(query)
        for key in keys
        if key in documents
    ]


def split_pairs(pairs: Sequence[Pair], share: float, *, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on, and those of about `share` of the requests to measure on; no request is in both.

    Which side a request is on depends on the seed and the request alone.

    Raises:
        InputError: `share` is out of range.
    """
    if not 0 <= share < 1:
        raise InputError(f"split_pairs: expected share in [0, 1), got {share}.")
    held_out = {query: _drawn(seed, query) < share * 2**64 for query, _ in pairs}
    return [pair for pair in pairs if not held_out[pair.query]], [pair for pair in pairs if held_out[pair.query]]


def query_likelihood(
    session: GenerationSession, query: str, documents: Sequence[str], *, max_tokens: int = 256
) -> np.ndarray:
    """log P(query | document) for each document: how expected the request is after reading it.

    The sum of the log probabilities of the query's tokens after a prompt with the document. Sums of one query compare;
    those of two queries do not, since a longer one is less probable.

    Args:
        session: A loaded generator.
        query: The request.
        documents: The documents.
        max_tokens: Longer documents are cut.

    Returns:
        (documents,) float32; NaN where there is none.
    """
    before, after = re.split(r"\{\{ *document *\}\}", _likelihood_prompt())
    requests = [
        Request((Segment(before), Segment(document, data=True, max_tokens=max_tokens), Segment(after)))
        for document in documents
    ]
    return session.score(requests, [f" {query}"])[:, 0]


def keep_likely(session: GenerationSession, pairs: Iterable[Pair], *, share: float = 0.5) -> list[Pair]:
    """The pairs whose document explains the request best: of each request's, a share, rounded up.

    A request was written from several items at once and need not fit each of them.

    Args:
        session: A loaded generator, which need not be the one that wrote the requests.
        pairs: Pairs of any number of requests. Equal pairs count once.
        share: Share of a request's documents that is kept, in (0, 1]. Of equally likely ones the earlier is kept.

    Returns:
        Some of `pairs`, in their order. A document without likelihood is not kept.

    Raises:
        InputError: `share` is out of range.
    """
    import numpy as np  # not needed to declare features

    if not 0 < share <= 1:
        raise InputError(f"keep_likely: expected share in (0, 1], got {share}.")
    distinct = list(dict.fromkeys(pairs))
    documents: dict[str, list[str]] = {}
    for query, document in distinct:
        documents.setdefault(query, []).append(document)
    kept: set[Pair] = set()
    for query, found in documents.items():
        scores = query_likelihood(session, query, found)
        best = np.argsort(-scores, kind="stable")[: math.ceil(share * len(found))]  # NaN sorts last
        kept.update(Pair(query, found[row]) for row in best if not np.isnan(scores[row]))
    return [pair for pair in distinct if pair in kept]


def _drawn(seed: int, key: Any) -> int:
    """A number below 2**64 that depends on both."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")


def _likelihood_prompt() -> str:
    return load_prompt("package:llmrec_plugin.systems.mint/prompts/query_likelihood.md").user
