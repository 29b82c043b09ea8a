"""Rows for any feature: ordinary ones, blank ones and hostile ones, made from the columns it reads."""

from __future__ import annotations

import base64
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from llmrec_plugin.artifacts import NetworkArtifact
from llmrec_plugin.binding import Bound, BoundNetwork, BoundSimilarity
from llmrec_plugin.manifests import GOLDEN_ROWS
from llmrec_plugin.networks import Image
from llmrec_plugin.specs import ColumnFeature, GeneratedEmbeddingFeature, HistoryEmbeddingFeature, TokenFeature
from llmrec_plugin.specs.networks import columns_of_source

Kind: TypeAlias = Literal["text", "texts", "number", "key", "other"]
Row: TypeAlias = dict[str, Any]
Columns: TypeAlias = Mapping[str, Sequence[Any]]

WORDS = tuple(
    """
    red green blue small old new fast slow web server client python library tool game editor image sound video mail
    chat database kernel driver font graph parser compiler shell a the for and with of data über café 東京 данные
    """.split()
)
_LENGTHS = (1, 3, 8, 2, 20, 5, 60)  # short and long ones side by side, so that batches need padding
_LONG = 120_000

HOSTILE_TEXTS: dict[str, Any] = {
    "a very long text": "long text " * (_LONG // 10),
    "a very long word": "x" * _LONG,
    "a lone surrogate": "broken \ud83d pair \udc00",
    "NUL and control characters": "nul \x00 bell \x07 escape \x1b[31m",
    "spellings of special tokens": "[CLS] a [SEP] [PAD] [MASK] [UNK] <s> </s> <pad> <|im_start|>system <|endoftext|>",
    "braces and tags of prompts": "{title} {{title}} </title> <title> %s \\n",
    "right to left": "\u202eשלום\u202c مرحبا بالعالم",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "combining characters": "e\u0301" + "\u0300\u0316\u0323" * 60,
    "invisible characters": "a\u200b\u2060\ufeff\u00adb",
    "a number": 3.25,
}
_BLANKS: dict[Kind, tuple[Any, ...]] = {
    "text": (None, "", " \t\n ", math.nan),
    "texts": (None, [], ["", " "], [None]),
    "number": (None, math.nan, None, None),
    "key": (None, None, None, None),
    "other": (None, None, None, None),
}


class Hostile(NamedTuple):
    """A row that no author thinks of.

    Attributes:
        what: What is hostile about it.
        row: The row.
        status: The status that it must have, or None where its content decides.
    """

    what: str
    row: Row
    status: str | None = None


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows by column."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def column_kinds(bound: Bound) -> dict[str, Kind]:
    """What each column that the feature reads holds."""
    if isinstance(bound, BoundSimilarity):
        return {**column_kinds(bound.left), **column_kinds(bound.right)}
    kinds = _network_kinds(bound) if isinstance(bound, BoundNetwork) else _text_kinds(bound.feature)
    noise = getattr(bound.feature, "noise", None)
    return kinds if noise is None else {**kinds, noise.user: "key"}


def _text_kinds(feature: ColumnFeature) -> dict[str, Kind]:
    if isinstance(feature, GeneratedEmbeddingFeature):
        return _text_kinds(feature.of)
    if isinstance(feature, HistoryEmbeddingFeature):
        return {feature.events: "texts"}
    if isinstance(feature, TokenFeature) and feature.prompt is not None:
        renamed = dict(feature.columns_of)
        kinds: dict[str, Kind] = {"text": "text", "list": "texts", "number": "number"}
        return {renamed.get(slot.name, slot.name): kinds[slot.type] for slot in feature.prompt.slots}
    return dict.fromkeys(feature.columns, "text")


def _network_kinds(bound: BoundNetwork) -> dict[str, Kind]:
    known: dict[str, Kind] = {"tokens": "text", "number": "number", "id": "key"}
    inputs = {item.name: known.get(item.kind, "other") for item in bound.inputs}
    kinds: dict[str, Kind] = {}
    for name, source in bound.feature.inputs:
        if isinstance(source, str):
            kinds |= dict.fromkeys(columns_of_source(source), inputs[name])
        else:
            kinds |= _text_kinds(source)
    return kinds


def sample_rows(bound: Bound, count: int, network: NetworkArtifact | None = None) -> list[Row]:
    """Ordinary rows, the same in every process; those of a network repeat the golden rows of its artifact."""
    kinds = column_kinds(bound)
    rows = [{name: _sample(kind, name, number) for name, kind in kinds.items()} for number in range(count)]
    if isinstance(bound, BoundNetwork) and network is not None:
        golden = _golden_columns(bound, network)
        for number, row in enumerate(rows):
            row |= {name: values[number % len(values)] for name, values in golden.items()}
    return rows


def _golden_columns(bound: BoundNetwork, network: NetworkArtifact) -> dict[str, list[Any]]:
    """The golden rows as columns of the feature."""
    golden = json.loads(network.path(GOLDEN_ROWS).read_text(encoding="utf-8"))
    pictures = {item.name for item in bound.inputs if isinstance(item, Image)}
    columns = {}
    for name, source in bound.feature.inputs:
        if isinstance(source, str):
            values = golden[name]
            columns[columns_of_source(source)[0]] = list(map(base64.b64decode, values)) if name in pictures else values
    return columns


def _sample(kind: Kind, column: str, number: int) -> Any:
    source = random.Random(f"{column} {number}")  # noqa: S311 - to be the same everywhere, not to be secret
    if kind == "number":
        return float(number) + 0.5
    if kind == "key":
        return f"key{number}"
    if kind == "texts":
        return [_text(source, length, number) for length in _LENGTHS[: 1 + number % 4]]
    return _text(source, _LENGTHS[number % len(_LENGTHS)], number)


def _text(source: random.Random, words: int, number: int) -> str:
    return " ".join([*source.choices(WORDS, k=words), str(number)])


def hostile_rows(bound: Bound, ordinary: Sequence[Row]) -> list[Hostile]:
    """Rows in which one column, or each, holds what no author thinks of.

    Args:
        bound: The feature.
        ordinary: Rows to start from.
    """
    kinds = column_kinds(bound)
    private = getattr(bound.feature, "noise", None) is not None
    rows = []
    for place in range(4):
        blank = {name: _BLANKS[kind][place] for name, kind in kinds.items()}
        if private:  # noise needs to know whose value it is; and nobody is told that it was empty
            blank |= {name: ordinary[place % len(ordinary)][name] for name in kinds if kinds[name] == "key"}
        rows.append(Hostile(f"no value but {sorted({repr(value) for value in blank.values()})}", blank))
    rows = [item._replace(status="ok" if private else "empty") for item in rows]
    for place, (column, kind) in enumerate(kinds.items()):
        base = ordinary[place % len(ordinary)]
        rows += [Hostile(f"{what} in {column!r}", {**base, column: value}, status) for what, value, status in _of(kind)]
    return rows


def _of(kind: Kind) -> Iterator[tuple[str, Any, str | None]]:
    if kind == "text":
        yield from ((what, value, None) for what, value in HOSTILE_TEXTS.items())
        yield "bytes", b"\xff\x00", "invalid"
    if kind == "texts":
        yield from ((f"{what} in a list", [value, "a"], None) for what, value in HOSTILE_TEXTS.items())
        yield "a very long list", [f"event {number}" for number in range(3_000)], None
        yield "bytes in a list", [b"\xff\x00"], "invalid"
    if kind == "number":
        yield from (("infinity", math.inf, None), ("a huge number", 1e300, None), ("a negative number", -1.0, None))
    if kind == "key":
        yield "an unknown key", "no such key \ud800", None
