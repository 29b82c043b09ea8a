"""What importing a store or an engine says where its library is not installed."""

from __future__ import annotations

import importlib
import sys

from llmrec_plugin.errors import MissingExtraError


def import_without(libraries: dict[str, str]) -> dict[str, str]:
    """Module -> the message of its `MissingExtraError`, while its library cannot be imported."""
    for loaded in list(sys.modules):
        if loaded.startswith("feast.infra.online_stores.") or loaded in libraries:
            del sys.modules[loaded]  # they have imported the libraries
    sys.modules.update(dict.fromkeys(libraries.values()))
    messages = {}
    for module in libraries:
        try:
            importlib.import_module(module)
        except MissingExtraError as exc:
            messages[module] = str(exc)
    return messages
