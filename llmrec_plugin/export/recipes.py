"""Recipes: one model's declaration as a TOML file, so that an export can be repeated and reviewed."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs import EncoderModel, GeneratorModel, LabelModel, Model, NetworkModel


def load_recipe(path: Path) -> Model:
    """The model that the recipe at `path` declares.

    Its keys are the fields of `EncoderModel`; of `GeneratorModel` where there is a ``task``; of `LabelModel` where
    there is a ``head``; of `NetworkModel` where there is a ``network``.

    Raises:
        DeclarationError: It is no TOML, a field is unknown or missing, or a value cannot mean anything.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:  # also bytes that are not UTF-8
        raise DeclarationError(f"Recipe {path} is not TOML: {exc}.") from exc
    kinds: dict[str, type[Model]] = {"task": GeneratorModel, "head": LabelModel, "network": NetworkModel}
    kind = next((kinds[name] for name in kinds if name in values), EncoderModel)
    known = [field.name for field in fields(kind)]
    required = [field.name for field in fields(kind) if field.default is MISSING]
    unknown = sorted(set(values) - set(known))
    missing = [name for name in required if name not in values]
    if unknown or missing:
        raise DeclarationError(
            f"Recipe {path}: unknown fields: {', '.join(unknown) or 'none'}; "
            f"missing fields: {', '.join(missing) or 'none'}. The fields are {', '.join(known)}."
        )
    return kind(**values)
