"""JSON Schema (draft 2020-12) of outputs, by the package ``jsonschema``. Nothing is ever fetched.

The package takes a while to import and is needed only where an output is JSON.
"""

from __future__ import annotations

import functools
import json
from typing import Any, TypeAlias

from llmrec_plugin.errors import DeclarationError, texts_are_shown

Schema: TypeAlias = dict[str, Any] | bool


def check_schema(owner: str, schema: Schema) -> None:
    """Checks that `schema` is JSON Schema and refers to nothing outside itself.

    Raises:
        DeclarationError: It is not; names the place.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        raise DeclarationError(f"{owner}: schema at {exc.json_path}: {exc.message:.200}.") from exc
    except RecursionError as exc:
        raise DeclarationError(f"{owner}: the schema is nested too deep.") from exc
    outside = [ref for ref in _references(schema) if not ref.startswith("#")]
    if outside:
        raise DeclarationError(f"{owner}: $ref must name a part of this schema, '#/...', got {outside[0]!r}.")


def misfit(value: Any, schema: Schema) -> str:
    """Why a JSON value does not fit `schema`, beginning with the place; the empty string if it does."""
    from referencing.exceptions import Unresolvable

    try:
        error = next(_validator(json.dumps(schema, sort_keys=True)).iter_errors(value), None)
    except RecursionError:
        return "$: value or schema is nested too deep"
    except Unresolvable as exc:
        return f"$: the schema refers to {exc.ref!r}, which it does not have"
    if error is None:
        return ""
    said = f"{error.message:.200}" if texts_are_shown() else f"does not fit {error.validator!r}"
    return f"{error.json_path}: {said}"


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    return Draft202012Validator(json.loads(schema), registry=Registry())  # an empty registry fetches nothing


def _references(part: Any) -> list[str]:
    if isinstance(part, list):
        return [ref for item in part for ref in _references(item)]
    if not isinstance(part, dict):
        return []
    own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
    return own + [ref for item in part.values() for ref in _references(item)]
