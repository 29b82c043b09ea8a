"""Rows -> texts.

A row becomes a tuple of texts: one for a template, one per event for a history, none when the row holds
no text. The same function serves batch, on-demand and historical rows, so it must not depend on how a
value is typed there: an int64 column that pandas turned into floats gives the text of the integer.
"""

from __future__ import annotations

import functools
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeVar

from llmrec_plugin.errors import InputError, MissingColumnError
from llmrec_plugin.specs import HistoryEmbeddingFeature, TextFeature

RowTexts: TypeAlias = tuple[str, ...]
T = TypeVar("T")

# Control characters but tab and newline, and lone surrogates (which no encoder of UTF-8 accepts).
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


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


def to_text(value: object) -> str:
    """A cell as text: missing values give ``""``, numbers their shortest decimal form, lists are joined by ``", "``.

    Floats are written with 6 significant digits, all that float32 holds of any decimal number, so that float32 and
    float64 columns of such numbers agree.

    Raises:
        InputError: The value is of a type that is not text, e.g. bytes or a mapping.
    """
    if isinstance(value, str):
        return value
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):  # numpy 2 and 1
        return "true" if value else "false"
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        number = float(value)
        if math.isnan(number):
            return ""
        return str(int(number)) if number.is_integer() else format(number, ".6g")
    items = as_list(value)
    if items is not None:
        return ", ".join(filter(None, map(to_text, items)))
    raise InputError(
        f"expected text, a number, a boolean or a list of them, got {type(value).__name__} ({value!r:.60}); "
        "convert the column to text in its source"
    )


def as_list(value: object) -> list[Any] | None:
    """A list-like cell (list, tuple, 1-D array) as a list; None for anything else."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if type(value).__name__ == "ndarray" and getattr(value, "ndim", 0) == 1:
        return value.tolist()  # type: ignore[attr-defined]
    return None


def clean(text: str, max_chars: int) -> str:
    """The text cut to `max_chars`, without control characters or lone surrogates, stripped."""
    text = text[:max_chars]
    if _UNSAFE.search(text):
        text = _UNSAFE.sub(lambda match: "\ufffd" if match[0] >= "\ud800" else " ", text)
    return text.strip()


@functools.lru_cache(maxsize=64)  # a template need not be parsed for every request
def _reader(feature: TextFeature) -> tuple[tuple[str, ...], Callable[[tuple[Any, ...]], RowTexts]]:
    """The columns that `feature` reads, and what makes texts of a row of them."""
    if isinstance(feature, HistoryEmbeddingFeature):
        return feature.columns, _history_reader(feature)
    return feature.columns, template_reader(feature.text, feature.columns, feature.max_chars)  # type: ignore[union-attr]


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
    raise InputError(f"expected a list of event texts, got {type(value).__name__} ({value!r:.60})")
