"""Rows -> requests: the slots of a prompt, filled so that data stays data.

    columns -> one key per row (canonical JSON of the cleaned values) -> cache -> Request, for what is not in it

A key holds all that a request is made of, so rows of equal input share a value, and batch, on-demand and historical
rows give one key whatever a column's type is there. In the request each value stands between the tags of its slot:

    Suggest three genres for this film.
    <title>The Matrix</title>

Nothing in a value can open or close the tag of any slot: see `neutral`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

from llmrec_plugin.errors import InputError, quoted
from llmrec_plugin.generation import Request, Segment
from llmrec_plugin.pipeline.assemble import read_each, template_reader
from llmrec_plugin.pipeline.redaction import redact_columns
from llmrec_plugin.pipeline.text import as_list, clean, to_text
from llmrec_plugin.specs import Prompt, Slot, TokenFeature
from llmrec_plugin.specs.prompts import SLOT

Value: TypeAlias = str | list[str]

LOOK_ALIKE = "\u2039"
"""What stands in data for a ``<`` that would begin a tag of a slot: ‹."""
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LESS_THAN = re.compile("[<\u226e\ufe64\uff1c]")
_SLASHES = "/\\\u2044\u2215\u29f8"
_LONGEST_NUMBER = 40


@dataclass(frozen=True)
class RowInputs:
    """The inputs of n rows.

    Attributes:
        keys: Per row, in order, what it gives the model, as `render` reads it; None for a row without input.
        invalid: Row number -> why the row could not be read. Such a row has no key.
    """

    keys: list[str | None]
    invalid: dict[int, str]


def read_rows(feature: TokenFeature, columns: Mapping[str, Sequence[Any]]) -> RowInputs:
    """What each row of `columns` gives the model of `feature`.

    A row has no input if a required slot has no value, or no slot has one; with a text template, if no column has text.

    Args:
        feature: The declaration.
        columns: The rows by column, each of length n; further columns are ignored.

    Raises:
        MissingColumnError: A declared column is not there.
        InputError: The columns differ in length.
    """
    if feature.redact is not None:
        columns = redact_columns(feature.redact, columns, _textual(feature), feature.max_chars)
    keys, invalid = read_each(feature.name, feature.columns, columns, _reader(feature), None)
    return RowInputs(keys, invalid)


def render(feature: TokenFeature, key: str) -> Request:
    """The request for a row's key from `read_rows`.

    All up to the first slot is one segment, the same for every row. A filled text template is one segment of data.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    if feature.prompt is None:
        return Request((Segment(key, data=True),), seed=seed)
    values: dict[str, Value] = json.loads(key)
    return Request(tuple(_segments(feature.prompt, values)), system=feature.prompt.system, seed=seed)


def neutral(text: str, names: Sequence[str]) -> str:
    """`text` with ‹ for each ``<`` that begins, or could be read to begin, a tag named like one of `names`.

    Letter case, blanks and invisible characters between the letters, accents, full-width and other compatibility forms
    (those that Unicode's NFKC maps to the plain letter) are seen through. Nothing else changes, so HTML and
    comparisons stay as they are.

    Args:
        text: The data.
        names: Names of slots, lower case.
    """
    if not _LESS_THAN.search(text):
        return text
    return _LESS_THAN.sub(lambda found: LOOK_ALIKE if _names_tag(text, found.end(), names) else found[0], text)


def _textual(feature: TokenFeature) -> list[str]:
    """The columns that are not read as numbers."""
    slots = () if feature.prompt is None else feature.prompt.slots
    renamed = dict(feature.columns_of)
    numbers = {renamed.get(slot.name, slot.name) for slot in slots if slot.type == "number"}
    return [column for column in feature.columns if column not in numbers]


@functools.lru_cache(maxsize=256)  # a prompt need not be parsed for every request
def _reader(feature: TokenFeature) -> Callable[[tuple[Any, ...]], str | None]:
    if feature.prompt is None:
        fill = template_reader(str(feature.text), feature.columns, feature.max_chars)
        return lambda values: next(iter(fill(values)), None)
    renamed = dict(feature.columns_of)
    order = {column: position for position, column in enumerate(feature.columns)}
    slots = [(slot, order[renamed.get(slot.name, slot.name)]) for slot in feature.prompt.slots]

    def read(row: tuple[Any, ...]) -> str | None:
        values = {slot.name: _value(slot, row[position], feature.max_chars) for slot, position in slots}
        if not any(values.values()) or not all(values[slot.name] for slot, _ in slots if slot.required):
            return None
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    return read


def _value(slot: Slot, cell: Any, max_chars: int) -> Value:
    """A cell as the slot's value; empty if it is missing.

    Raises:
        InputError: It is of another type; names the slot.
    """
    try:
        if slot.type == "list":
            return _items(cell, slot.max_items, max_chars)
        return _number(cell) if slot.type == "number" else clean(to_text(cell), max_chars)
    except InputError as exc:
        raise InputError(f"slot {slot.name!r}: {exc}") from exc


def _items(cell: Any, most: int, max_chars: int) -> list[str]:
    """The first items that hold text, each on one line, together of at most `max_chars` characters."""
    items = as_list(cell)
    if items is None:
        if not isinstance(cell, str) and to_text(cell) == "":  # None, NaN
            return []
        raise InputError(f"expected a list of texts, got {type(cell).__name__} ({quoted(cell)})")
    kept: list[str] = []
    left = max_chars
    for item in items:
        line = " ".join(clean(to_text(item), left).split()) if left > 0 else ""
        if line:
            kept.append(line)
            left -= len(line)
        if len(kept) == most or left <= 0:
            break
    return kept


def _number(cell: Any) -> str:
    """A number in its shortest decimal form, also where it came as text."""
    if isinstance(cell, str):
        text = cell.strip()
        if not text:
            return ""
        if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
            raise InputError(f"expected a number, got the text {quoted(cell)}")
        cell = float(text) if re.search("[.eE]", text) else int(text)
    is_flag = isinstance(cell, bool) or type(cell).__name__ in ("bool", "bool_")
    if is_flag or not (isinstance(cell, Real) or to_text(cell) == ""):
        raise InputError(f"expected a number, got {type(cell).__name__} ({quoted(cell)})")
    if not isinstance(cell, Real):
        return ""
    if not isinstance(cell, Integral) and math.isinf(cell):
        raise InputError(f"expected a finite number, got {quoted(cell)}")
    return to_text(cell)


@functools.lru_cache(maxsize=256)
def _parts(prompt: Prompt) -> tuple[tuple[str, Slot | None], ...]:
    """The text before each slot with that slot, and what is after the last one."""
    slots = {slot.name: slot for slot in prompt.slots}
    pieces = SLOT.split(prompt.user)  # text, name, text, ..., text
    return tuple(
        (text, slots[name] if name is not None else None)
        for text, name in zip(pieces[::2], [*pieces[1::2], None], strict=True)
    )


def _segments(prompt: Prompt, values: Mapping[str, Value]) -> Iterator[Segment]:
    names = [slot.name for slot in prompt.slots]
    end = ""
    for text, slot in _parts(prompt):
        if slot is None:
            if end + text:
                yield Segment(end + text)
            return
        value = values[slot.name]
        line = "\n" if slot.type == "list" else ""
        yield Segment(f"{end}{text}<{slot.name}>{line}")
        data = neutral(_written(value), names)
        if data:
            yield Segment(data, data=True, max_tokens=slot.max_tokens)
        end = f"{line if data else ''}</{slot.name}>"


def _written(value: Value) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(f"{number}. {item}" for number, item in enumerate(value, 1))


def _names_tag(text: str, start: int, names: Sequence[str]) -> bool:
    """Whether what follows position `start` reads as one of `names`, perhaps after a slash."""
    seen = ""
    for position in range(start, len(text)):
        letters = _plain(text[position])
        if not letters:
            continue
        seen = (seen + letters).lstrip(_SLASHES)
        if any(seen.startswith(name) for name in names):
            return True
        if not any(name.startswith(seen) for name in names):
            return False
    return False


@functools.lru_cache(maxsize=4096)
def _plain(char: str) -> str:
    """The letters that a character reads as; none for blanks, accents and what is not seen."""
    if char.isspace() or unicodedata.category(char) in ("Cc", "Cf", "Mn", "Me"):
        return ""
    parts = unicodedata.normalize("NFKD", char).casefold()
    return "".join(part for part in parts if unicodedata.category(part) not in ("Mn", "Me") and not part.isspace())
