"""The conformance kit: what a plugin promises, as checks in its author's own tests, and fixtures for the rest.

    from llmrec_plugin.testing import parametrize_with_checks

    @parametrize_with_checks("acme")  # a plugin's name, module or object, or a list of features and models
    def test_conformance(check):
        check()

`check_plugin` does the same without pytest. Fixtures: ``pytest_plugins = ["llmrec_plugin.testing.fixtures"]`` in
``conftest.py``. See docs/how-to/test-your-plugin.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmrec_plugin.testing.conformance import (
        Check,
        Report,
        Result,
        check_plugin,
        checks_of,
        parametrize_with_checks,
    )
    from llmrec_plugin.testing.network import NetworkUseError, refuse_network
    from llmrec_plugin.testing.outcomes import CheckFailed, CheckSkipped

__all__ = [
    "Check",
    "CheckFailed",
    "CheckSkipped",
    "NetworkUseError",
    "Report",
    "Result",
    "check_plugin",
    "checks_of",
    "parametrize_with_checks",
    "refuse_network",
]

_MODULES = ("conformance", "network", "outcomes")


def __getattr__(name: str) -> Any:
    """Imports what is asked for, so that the command line need not load numpy and the runtime to list its commands."""
    if name in __all__:
        for module in _MODULES:
            found = importlib.import_module(f"{__name__}.{module}")
            if name in vars(found):
                return vars(found)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
