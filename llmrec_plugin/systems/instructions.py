"""Instructions that depend on the declaring repo: options of its catalogue, factors of its domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmrec_plugin import Prompt
from llmrec_plugin.errors import DeclarationError


def told(prompt: Prompt, label: str, choices: Sequence[str]) -> Prompt:
    """`prompt` with a line ``label: choice; choice; ...`` at the end of its system text.

    The line is the same for all rows and part of the prompt's fingerprint.

    Raises:
        DeclarationError: There are no choices, or one is empty, repeated, longer than a line or looks like a slot.
    """
    wrong = [
        choice
        for choice in choices
        if not isinstance(choice, str) or not choice.strip() or "\n" in choice or "{{" in choice or ";" in choice
    ]
    if not choices or isinstance(choices, str) or wrong or len(set(choices)) < len(choices):
        raise DeclarationError(
            f"prompt {prompt.name!r}: {label.lower()} must be distinct strings of one line without ';' and '{{{{', got "
            f"{choices!r:.120}."
        )
    return replace(prompt, system=f"{prompt.system.rstrip()}\n{label}: {'; '.join(choices)}".lstrip())


def renamed(columns: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """Slot -> column, as `llmrec_plugin.TokenFeature` keeps it."""
    return tuple(sorted((columns or {}).items()))
