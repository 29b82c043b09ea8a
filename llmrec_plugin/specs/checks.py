"""What every declaration checks, and how it is hashed."""

from __future__ import annotations

import hashlib
import json
import re
import string
from dataclasses import fields, is_dataclass
from typing import Any, TypeGuard

from llmrec_plugin.errors import DeclarationError

PIPELINE_VERSION = 1
"""Part of every fingerprint: raised when a change of our own code changes the numbers."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SERVED = re.compile(r"[!-~]+@[!-?A-~]+\Z")  # printable ASCII; no '@' in the version
_REVISION = re.compile(r"[0-9a-f]{40}\Z")


def digest(value: Any) -> str:
    """The SHA-256 (64 hex digits) of `value` written as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def template_columns(template: str, *, owner: str = "template") -> tuple[str, ...]:
    """The column names a text template reads, in order of first appearance.

    Raises:
        DeclarationError: The template reads no column, or uses anything but plain ``{column}``.
    """
    check_text(owner, "text", template)
    columns: dict[str, None] = {}
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as exc:
        raise DeclarationError(f"{owner}: the text template {template!r} is malformed: {exc}.") from exc
    for _, column, spec, conversion in parts:
        if column is None:
            continue
        if not column.isidentifier() or spec or conversion:
            raise DeclarationError(
                f"{owner}: the text template may hold only plain columns such as {{title}}, got "
                f"{{{column}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}. "
                "Write literal braces as {{ and }}."
            )
        columns[column] = None
    if not columns:
        raise DeclarationError(f"{owner}: the text template {template!r} reads no column; write e.g. '{{title}}'.")
    return tuple(columns)


def check_choice(owner: str, field: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise DeclarationError(f"{owner}: {field} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_flag(owner: str, field: str, value: object) -> None:
    if not isinstance(value, bool):  # 1 == True, but it would give another fingerprint
        raise DeclarationError(f"{owner}: {field} must be True or False, got {value!r}.")


def check_text(owner: str, field: str, value: object) -> None:
    if not isinstance(value, str):
        raise DeclarationError(f"{owner}: {field} must be a string, got {value!r}.")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise DeclarationError(f"{owner}: {field} holds a lone surrogate, which no encoder accepts: {value!r}.")


def is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_positive(owner: str, field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DeclarationError(f"{owner}: {field} must be a positive integer, got {value!r}.")


def check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.match(name) or "__" in name:
        raise DeclarationError(
            f"{kind} name {name!r}: expected lower-case letters, digits and single underscores, starting with a "
            "letter (it becomes a Feast view and column name), e.g. 'item_title_embedding'."
        )


def check_model_name(name: object) -> None:
    if not isinstance(name, str) or not _MODEL_NAME.match(name):
        raise DeclarationError(f"model {name!r}: expected letters, digits, '.', '_' and '-', e.g. 'all-minilm-l6-v2'.")


def check_source(owner: str, source: object, *, endpoint: bool = False) -> None:
    """Checks where a model comes from; `endpoint` says whether it may be one that an endpoint serves."""
    check_text(owner, "source", source)
    kind, _, place = str(source).partition(":")
    kinds = ("package", "path", "hub", "endpoint") if endpoint else ("package", "path", "hub")
    if kind not in kinds or not place:
        *most, last = (f"'{name}:'" for name in kinds)
        raise DeclarationError(f"{owner}: source must start with {', '.join(most)} or {last}, got {source!r}.")
    if kind == "hub" and not _REVISION.match(place.partition("@")[2]):
        raise DeclarationError(
            f"{owner}: a hub source must pin a full commit, 'hub:org/name@<40 hex digits>', got {source!r}."
        )
    if kind == "endpoint" and not _SERVED.match(place):
        raise DeclarationError(
            f"{owner}: an endpoint source must name the served model and its version, "
            f"'endpoint:<served model>@<version>', got {source!r}."
        )


def check_int(owner: str, field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DeclarationError(f"{owner}: {field} must be an integer of at least {least}, got {value!r}.")


def strings(owner: str, field: str, value: object, *, least: int = 1) -> tuple[str, ...]:
    """Distinct strings as a tuple; JSON and people give lists."""
    items = tuple(value) if isinstance(value, (list, tuple)) else ()
    for item in items:
        check_text(owner, field, item)
    if len(items) < least or not all(items) or len(set(items)) < len(items):
        raise DeclarationError(f"{owner}: {field} must be {least} or more distinct, non-empty strings, got {value!r}.")
    return items


def to_spec(value: Any) -> dict[str, Any]:
    """A declaration as JSON-ready data, with its ``kind``."""
    spec = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return {"kind": value.kind, **spec} if hasattr(value, "kind") else spec


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_spec(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def rebuilt(owner: str, field: str, value: object, *classes: type) -> Any:
    """The declaration inside another one: itself, or rebuilt from what `to_spec` wrote of it.

    Raises:
        DeclarationError: It is neither.
    """
    expected = " or ".join(cls.__name__ for cls in classes)
    if isinstance(value, classes):
        return value
    if isinstance(value, dict):
        values = dict(value)
        kinds = {getattr(cls, "kind", None): cls for cls in classes}
        kind = values.pop("kind", None)
        cls = kinds.get(kind) if kind is None or isinstance(kind, str) else None
        if cls is not None:
            try:
                return cls(**values)
            except TypeError as exc:
                raise DeclarationError(f"{owner}: {field} does not fit {cls.__name__}: {exc}.") from exc
    raise DeclarationError(f"{owner}: {field} must be a {expected}, got {value!r:.80}.")
