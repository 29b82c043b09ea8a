"""Prompts: versioned instructions with typed slots for data.

A prompt is written as a file and read by `llmrec_plugin.prompts.load_prompt`; the declaration holds its whole text, so
that it travels with the feature. What fills a slot is data: delimited, cut to the slot's tokens, unable to close its
delimiter or to spell a special token. See docs/how-to/prompts.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs.checks import (
    check_choice,
    check_flag,
    check_name,
    check_positive,
    check_text,
    digest,
    rebuilt,
    to_spec,
)

SlotKind: TypeAlias = Literal["text", "list", "number"]

SLOT = re.compile(r"\{\{ *([A-Za-z_][A-Za-z0-9_]*) *\}\}")
"""How a prompt's text names a slot: ``{{title}}``."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place for data in a prompt.

    Attributes:
        name: Name in the prompt's text, and of the column that fills it unless the feature says otherwise.
        type: ``text``; ``list``, of texts, written as a numbered list; ``number``, an integer or a decimal.
        max_tokens: Longer values are cut to this many tokens of the generator's tokenizer.
        max_items: Items of a list that are written, the first ones.
        required: Whether a row without this value has no input; else the slot is written as empty.
    """

    name: str
    type: SlotKind = "text"
    max_tokens: int = 256
    max_items: int = 50
    required: bool = True

    def __post_init__(self) -> None:
        check_name("slot", self.name)
        owner = f"slot {self.name!r}"
        check_choice(owner, "type", self.type, get_args(SlotKind))
        check_positive(owner, "max_tokens", self.max_tokens)
        check_positive(owner, "max_items", self.max_items)
        check_flag(owner, "required", self.required)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Instructions for a generator.

    Attributes:
        name: For people and messages.
        version: Raised when the text changes; part of the fingerprint together with the text.
        user: The text; ``{{name}}`` stands for a slot. What is before the first slot is the same for all rows and is
            computed once.
        system: Instructions that a chat model gets apart from the text; no slots.
        slots: The slots of `user`, in any order; each is used at least once.
    """

    name: str
    version: int
    user: str
    system: str = ""
    slots: tuple[Slot, ...] = ()

    def __post_init__(self) -> None:
        owner = f"prompt {self.name!r}"
        check_text("prompt", "name", self.name)
        check_positive(owner, "version", self.version)
        check_text(owner, "user", self.user)
        check_text(owner, "system", self.system)
        slots = self.slots if isinstance(self.slots, (list, tuple)) else (self.slots,)
        object.__setattr__(self, "slots", tuple(rebuilt(owner, "slots", slot, Slot) for slot in slots))
        declared = [slot.name for slot in self.slots]
        used = set(SLOT.findall(self.user))
        if len(set(declared)) < len(declared) or set(declared) != used or not declared:
            raise DeclarationError(
                f"{owner}: expected each slot declared once and used, e.g. '{{{{title}}}}' with Slot(name='title'); "
                f"declared are {sorted(declared)}, used are {sorted(used)}."
            )
        if SLOT.search(self.system):
            raise DeclarationError(f"{owner}: system holds a slot; data belongs into user.")

    @property
    def fingerprint(self) -> str:
        """Covers all that changes what is written; 64 hex digits."""
        return digest(to_spec(self))
