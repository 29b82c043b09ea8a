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
from typing import Any, TypeAlias

from llmrec_plugin.errors import InputError, MissingColumnError
from llmrec_plugin.specs import HistoryEmbeddingFeature, TextFeature

RowTexts: TypeAlias = tuple[str, ...]

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
    missing = [name for name in names if name not in columns]
    if missing:
        raise MissingColumnError(feature.name, missing, columns)
    lengths = {name: len(columns[name]) for name in names}
    if len(set(lengths.values())) > 1:
        raise InputError(f"Feature {feature.name!r}: expected columns of one length, got {lengths}.")

    rows: list[RowTexts] = []
    invalid: dict[int, str] = {}
    for number, values in enumerate(zip(*(columns[name] for name in names), strict=True)):
        try:
            rows.append(read_row(values))
        except InputError as exc:
            invalid[number] = str(exc)
            rows.append(())
    return Assembled(rows, invalid)


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
    read = _history_reader(feature) if isinstance(feature, HistoryEmbeddingFeature) else _template_reader(feature)
    return feature.columns, read


def _template_reader(feature: TextFeature) -> Callable[[tuple[Any, ...]], RowTexts]:
    order = {name: position for position, name in enumerate(feature.columns)}
    parts = [
        (literal, None if name is None else order[name])
        for literal, name, _, _ in string.Formatter().parse(feature.text)  # type: ignore[union-attr]
    ]

    def read(values: tuple[Any, ...]) -> RowTexts:
        texts = [clean(to_text(value), feature.max_chars) for value in values]
        if not any(texts):
            return ()
        filled = "".join(literal + ("" if position is None else texts[position]) for literal, position in parts)
        return (clean(filled, feature.max_chars),)

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
