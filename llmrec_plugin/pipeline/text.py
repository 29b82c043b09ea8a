"""Cells as texts."""

from __future__ import annotations

import math
import re
import sys
from numbers import Integral, Real
from typing import Any

from llmrec_plugin.errors import InputError, quoted

# Control characters but tab and newline, and lone surrogates (which no encoder of UTF-8 accepts).
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


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
    if isinstance(value, Real):
        try:
            if isinstance(value, Integral):
                return str(int(value))
            number = float(value)
        except (ValueError, OverflowError):  # more digits than Python writes, or than a float holds
            raise InputError(
                f"expected a number of at most {sys.get_int_max_str_digits()} digits, got {quoted(value)}"
            ) from None
        if math.isnan(number):
            return ""
        return str(int(number)) if number.is_integer() else format(number, ".6g")
    items = as_list(value)
    if items is not None:
        try:
            return ", ".join(filter(None, map(to_text, items)))
        except RecursionError:
            raise InputError("expected a list of texts or numbers, got lists nested too deep") from None
    raise InputError(
        f"expected text, a number, a boolean or a list of them, got {type(value).__name__} ({quoted(value)}); "
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
    return safe(text[:max_chars]).strip()


def safe(text: str) -> str:
    """The text with a blank for each control character and U+FFFD for each lone surrogate."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text))
