"""JSON Schema, as far as outputs need it: what a declaration may ask of a JSON value, and whether a value fits.

Understood are ``type``, ``enum``, ``const``; ``properties``, ``required``, ``additionalProperties``,
``minProperties``, ``maxProperties``; ``items``, ``prefixItems``, ``minItems``, ``maxItems``, ``uniqueItems``;
``minLength``, ``maxLength``, ``pattern``; ``minimum``, ``maximum``, ``exclusiveMinimum``, ``exclusiveMaximum``,
``multipleOf``; ``anyOf``, ``oneOf``, ``allOf``, ``not``; ``$ref`` into ``$defs`` or ``definitions``. ``title``,
``description``, ``default``, ``examples``, ``format`` and ``$comment`` may stand there and check nothing. Anything
else is refused rather than passed over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from llmrec_plugin.errors import DeclarationError

Schema: TypeAlias = dict[str, Any] | bool

DEEPEST = 64
"""Levels of nesting of a value or a schema at most."""

_TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and float(value).is_integer(),
    "number": lambda value: _is_number(value),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "format", "$comment", "$schema", "$id"})
_SCHEMAS = frozenset({"additionalProperties", "items", "not"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_MAPPINGS = frozenset({"properties", "$defs", "definitions"})
_COUNTS = frozenset({"minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"})
_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_OTHERS = frozenset({"type", "enum", "const", "required", "uniqueItems", "pattern", "$ref"})


def check_schema(owner: str, schema: Schema) -> None:
    """Checks that `schema` is JSON Schema, and holds nothing that `misfit` does not understand.

    Raises:
        DeclarationError: It is not; names the place in the schema.
    """
    _check(owner, schema, schema, "#", 0)


def misfit(value: Any, schema: Schema) -> str:
    """Why a JSON value does not fit a checked schema, with the place in the value; empty if it fits."""
    return _misfit(value, schema, schema, "$", 0)


def _check(owner: str, schema: Any, root: Schema, place: str, depth: int) -> None:
    def refuse(trouble: str) -> NoReturn:
        raise DeclarationError(f"{owner}: schema at {place}: {trouble}.")

    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        refuse(f"expected a mapping, got {schema!r:.60}")
    if depth > DEEPEST:
        refuse(f"nested deeper than {DEEPEST} levels")
    for word, wanted in schema.items():
        below: list[tuple[str, Any]] = []
        if word in _SCHEMAS:
            below = [(word, wanted)]
        elif word in _LISTS:
            if not isinstance(wanted, list) or not wanted:
                refuse(f"{word} must be a list of schemas, got {wanted!r:.60}")
            below = [(f"{word}/{number}", part) for number, part in enumerate(wanted)]
        elif word in _MAPPINGS:
            if not isinstance(wanted, dict):
                refuse(f"{word} must map names to schemas, got {wanted!r:.60}")
            below = [(f"{word}/{name}", part) for name, part in wanted.items()]
        elif word in _COUNTS:
            if not _is_count(wanted):
                refuse(f"{word} must be an integer of at least 0, got {wanted!r:.60}")
        elif word in _NUMBERS:
            if not _is_number(wanted) or (word == "multipleOf" and wanted <= 0):
                refuse(f"{word} must be a number, got {wanted!r:.60}")
        elif word in _OTHERS:
            trouble = _trouble(word, wanted, root)
            if trouble:
                refuse(trouble)
        elif word not in _ANNOTATIONS:
            refuse(f"{word!r} is not understood here; leave it out, or say it with other words of JSON Schema")
        for name, part in below:
            _check(owner, part, root, f"{place}/{name}", depth + 1)


def _trouble(word: str, wanted: Any, root: Schema) -> str:
    """What is wrong with a word that holds neither schemas nor numbers."""
    if word == "type":
        names = wanted if isinstance(wanted, list) else [wanted]
        if not names or not all(isinstance(name, str) and name in _TYPES for name in names):
            return f"type must be of {', '.join(_TYPES)}, got {wanted!r:.60}"
    elif word == "enum":
        if not isinstance(wanted, list) or not wanted:
            return f"enum must be a list of values, got {wanted!r:.60}"
    elif word == "required":
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            return f"required must be a list of names, got {wanted!r:.60}"
    elif word == "uniqueItems":
        if not isinstance(wanted, bool):
            return f"uniqueItems must be true or false, got {wanted!r:.60}"
    elif word == "pattern":
        try:
            re.compile(wanted)
        except (re.error, TypeError, RecursionError, OverflowError) as exc:
            return f"pattern must be a regular expression, got {wanted!r:.60}: {exc}"
    elif word == "$ref":
        try:
            _follow(wanted, root)
        except (KeyError, TypeError, ValueError, IndexError):
            return f"$ref must name a part of this schema, e.g. '#/$defs/item', got {wanted!r:.60}"
    return ""


def _misfit(value: Any, schema: Schema, root: Schema, place: str, depth: int) -> str:
    if depth > DEEPEST:
        return f"{place}: nested deeper than {DEEPEST} levels"
    if isinstance(schema, bool):
        return "" if schema else f"{place}: nothing is allowed here"
    for check in (_plain, _combined, _numeric, _textual, _listed, _mapped):
        trouble = check(value, schema, root, place, depth)
        if trouble:
            return trouble
    return ""


def _plain(value: Any, schema: dict[str, Any], root: Schema, place: str, depth: int) -> str:
    if "$ref" in schema:
        trouble = _misfit(value, _follow(schema["$ref"], root), root, place, depth + 1)
        if trouble:
            return trouble
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if not any(_TYPES[name](value) for name in names):
            return f"{place}: expected {' or '.join(names)}, got {_shown(value)}"
    if "enum" in schema and not any(_same(value, choice) for choice in schema["enum"]):
        return f"{place}: expected one of {_shown(schema['enum'])}, got {_shown(value)}"
    if "const" in schema and not _same(value, schema["const"]):
        return f"{place}: expected {_shown(schema['const'])}, got {_shown(value)}"
    return ""


def _combined(value: Any, schema: dict[str, Any], root: Schema, place: str, depth: int) -> str:
    def misfits(word: str) -> list[str]:
        return [_misfit(value, part, root, place, depth + 1) for part in schema.get(word, ())]

    every, some, one = misfits("allOf"), misfits("anyOf"), misfits("oneOf")
    if any(every):
        return next(filter(None, every))
    if some and all(some):
        return some[0]
    if one and one.count("") != 1:
        return f"{place}: fits {one.count('')} of {len(one)} alternatives, expected one"
    if "not" in schema and not _misfit(value, schema["not"], root, place, depth + 1):
        return f"{place}: {_shown(value)} is excluded"
    return ""


def _numeric(value: Any, schema: dict[str, Any], root: Schema, place: str, depth: int) -> str:
    if not _is_number(value):
        return ""
    least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    if not (least <= value <= most and above < value < below):
        return f"{place}: {_shown(value)} is out of bounds"
    step = schema.get("multipleOf")
    if step and abs(value / step - round(value / step)) > 1e-9:
        return f"{place}: expected a multiple of {step}, got {_shown(value)}"
    return ""


def _textual(value: Any, schema: dict[str, Any], root: Schema, place: str, depth: int) -> str:
    if not isinstance(value, str):
        return ""
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
        return f"{place}: a text of {len(value)} characters is too short or too long"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{place}: {_shown(value)} does not match {schema['pattern']!r}"
    return ""


def _listed(value: Any, schema: dict[str, Any], root: Schema, place: str, depth: int) -> str:
    if not isinstance(value, list):
        return ""
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        return f"{place}: {len(value)} items are too few or too many"
    if schema.get("uniqueItems"):
        written = [json.dumps(item, sort_keys=True) for item in value]
        if len(set(written)) < len(written):
            return f"{place}: an item is there twice"
    first = schema.get("prefixItems", [])
    for number, item in enumerate(value):
        part = first[number] if number < len(first) else schema.get("items", True)
        trouble = _misfit(item, part, root, f"{place}[{number}]", depth + 1)
        if trouble:
            return trouble
    return ""


def _mapped(value: Any, schema: dict[str, Any], root: Schema, place: str, depth: int) -> str:
    if not isinstance(value, dict):
        return ""
    for name in schema.get("required", ()):
        if name not in value:
            return f"{place}: {name!r} is missing"
    if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", math.inf):
        return f"{place}: {len(value)} names are too few or too many"
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, item in value.items():
        if name not in known and others is False:
            return f"{place}: {name!r:.60} is not in the schema"
        trouble = _misfit(item, known.get(name, others), root, f"{place}.{name:.40}", depth + 1)
        if trouble:
            return trouble
    return ""


def _follow(reference: str, root: Any) -> Schema:
    """The part of the schema that a reference names."""
    if reference == "#":
        return root  # type: ignore[no-any-return]
    head, *path = reference.split("/")
    if head != "#" or path[0] not in ("$defs", "definitions"):
        raise ValueError(reference)
    part = root
    for step in path:
        part = part[step.replace("~1", "/").replace("~0", "~")]
    if not isinstance(part, (dict, bool)):
        raise TypeError(reference)
    return part


def _same(value: Any, other: Any) -> bool:
    """Equality of JSON values, where 1 and 1.0 are one and true is none of them."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_same(value[name], other[name]) for name in value)
    return bool(value == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."
