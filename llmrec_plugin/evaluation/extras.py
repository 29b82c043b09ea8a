"""Packages of the extra ``evaluate``, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from llmrec_plugin.errors import MissingExtraError


def need(module: str) -> Any:
    """The imported module.

    Raises:
        MissingExtraError: It is not installed; names the extra that has it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        extra = "export" if module == "torch" else "evaluate"
        raise MissingExtraError(module.partition(".")[0], extra, "llmrec evaluate") from exc
