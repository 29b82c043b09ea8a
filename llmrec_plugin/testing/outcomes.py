"""How a check ends that does not pass."""

from __future__ import annotations

from typing import NoReturn

from llmrec_plugin.errors import LLMRecError


class CheckFailed(LLMRecError, AssertionError):  # noqa: N818 - how pytest and its peers name it
    """A declaration, or what computes it, does not keep a promise; says what was expected, what came, what to do."""


class CheckSkipped(LLMRecError, RuntimeError):  # noqa: N818 - as above
    """A check that cannot be made here; says why."""


def fail(expected: str, got: str, remedy: str) -> NoReturn:
    """Ends a check.

    Args:
        expected: What should have come, to follow the word "expected".
        got: What came.
        remedy: What to do, as a sentence.

    Raises:
        CheckFailed: Always.
    """
    raise CheckFailed(f"expected {expected}, got {got}. {remedy}")
