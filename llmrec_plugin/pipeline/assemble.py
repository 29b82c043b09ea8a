"""Rows -> texts.

A row becomes a tuple of texts: one for a template, one per event for a history, none when the row holds
no text. The same function serves batch, on-demand and historical rows, so it must not depend on how a
value is typed there: an int64 column that pandas turned into floats gives the text of the integer.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from llmrec_plugin.errors import InputError, MissingColumnError, quoted
from llmrec_plugin.pipeline.redaction import redact_columns
from llmrec_plugin.pipeline.text import as_list, clean, to_text
from llmrec_plugin.specs import HistoryEmbeddingFeature, TextFeature

RowTexts: TypeAlias = tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True)
class Assembled:
    """The texts of n rows.

    Attributes:
        rows: Per row, in order, its texts; empty for a row without text.
        invalid: Row number -> why the row could not be read. Such a row has no texts.
    """

    rows: list[RowTexts]
    invalid: dict[int, str]


def assemble(feature: TextFeature, columns: Mapping[str, Sequence[Any]]) -> Assembled:
    """The texts that `feature` reads from the rows of `columns`.

    Args:
        feature: The declaration.
        columns: The rows by column, each of length n; further columns are ignored.

    Raises:
        MissingColumnError: A declared column is not there.
        InputError: The columns differ in length.
    """
    names, read_row = _reader(feature)
    if feature.redact is not None:
        columns = redact_columns(feature.redact, columns, names, feature.max_chars)
    nothing: RowTexts = ()
    rows, invalid = read_each(feature.name, names, columns, read_row, nothing)
    return Assembled(rows, invalid)


def read_each(
    feature: str,
    names: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    read_row: Callable[[tuple[Any, ...]], T],
    unread: T,
) -> tuple[list[T], dict[int, str]]:
    """What `read_row` makes of the values of each row, and why some rows could not be read.

    Args:
        feature: Name of the feature, for messages.
        names: The columns whose values a row is given to `read_row` as, in this order.
        columns: The rows by column, each of length n; further columns are ignored.
        read_row: Raises `InputError` for a row that cannot be read.
        unread: Stands for such a row.

    Raises:
        MissingColumnError: A column is not there.
        InputError: The columns differ in length.
    """
    missing = [name for name in names if name not in columns]
    if missing:
        raise MissingColumnError(feature, missing, columns)
    lengths = {name: len(columns[name]) for name in names}
    if len(set(lengths.values())) > 1:
        raise InputError(f"Feature {feature!r}: expected columns of one length, got {lengths}.")

    rows: list[T] = []
    invalid: dict[int, str] = {}
    for number, values in enumerate(zip(*(columns[name] for name in names), strict=True)):
        try:
            rows.append(read_row(values))
        except InputError as exc:
            invalid[number] = str(exc)
            rows.append(unread)
    return rows, invalid


@functools.lru_cache(maxsize=64)  # a template need not be parsed for every request
def _reader(feature: TextFeature) -> tuple[tuple[str, ...], Callable[[tuple[Any, ...]], RowTexts]]:
    """The columns that `feature` reads, and what makes texts of a row of them."""
    if isinstance(feature, HistoryEmbeddingFeature):
        return feature.text_columns, _history_reader(feature)
    names = feature.text_columns
    return names, template_reader(feature.text, names, feature.max_chars)  # type: ignore[union-attr]


def template_reader(template: str, columns: Sequence[str], max_chars: int) -> Callable[[tuple[Any, ...]], RowTexts]:
    """What fills `template` from the values of `columns`: one text, or none where no column has any.

    Values and the whole text are cut to `max_chars` characters.
    """
    order = {name: position for position, name in enumerate(columns)}
    parts = [
        (literal, None if name is None else order[name]) for literal, name, _, _ in string.Formatter().parse(template)
    ]

    def read(values: tuple[Any, ...]) -> RowTexts:
        texts = [clean(to_text(value), max_chars) for value in values]
        if not any(texts):
            return ()
        filled = "".join(literal + ("" if position is None else texts[position]) for literal, position in parts)
        return (clean(filled, max_chars),)

    return read


def _history_reader(feature: HistoryEmbeddingFeature) -> Callable[[tuple[Any, ...]], RowTexts]:
    def read(values: tuple[Any, ...]) -> RowTexts:
        (value,) = values
        texts = [clean(to_text(event), feature.max_chars) for event in _events(value)]
        if feature.order == "oldest_first":
            texts.reverse()
        newest = [text for text in texts if text][: feature.last_n]
        if feature.combine == "concat" and newest:
            return (clean(feature.separator.join(newest), feature.max_chars),)
        return tuple(newest)

    return read


def _events(value: object) -> list[Any]:
    items = as_list(value)
    if items is not None:
        return items
    if not isinstance(value, str) and to_text(value) == "":  # None, NaN
        return []
    raise InputError(f"expected a list of event texts, got {type(value).__name__} ({quoted(value)})")
