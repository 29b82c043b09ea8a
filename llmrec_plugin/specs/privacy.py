"""What a feature keeps from models and from those who read its vectors.

`Redaction` takes personal data out of texts before any model reads them; `GaussianNoise` makes the vectors that leave a
feature differentially private. See docs/how-to/privacy.md for what each of them does and does not protect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs.checks import check_flag, check_text, is_number

_LABEL = re.compile(r"[a-z](_?[a-z])*\Z")
_LONGEST_LABEL = 32
_SPECIAL = frozenset(
    "mask cls sep pad unk bos eos unused inst sys sys_inst gmask smask sop eop start end user assistant system".split()
)
"""Names that tokenizers give special tokens in square brackets."""
_KEY_ID = re.compile(r"[0-9a-f]{16}\Z")
_CONTEXTS = "a b-\n_1"
"""Holds every place at which a pattern without length could match: beginning, end, borders of words and of lines."""

LEAST_DELTA = 1e-12
MOST_EPSILON = 200.0


@dataclass(frozen=True, kw_only=True)
class Redaction:
    """Which personal data is replaced in a row's values before a template, a prompt or a model sees them.

    Each find becomes a placeholder with the name of its kind, such as ``[EMAIL]``. What is found is described in
    `llmrec_plugin.pipeline.redaction`.

    Attributes:
        email: Whether e-mail addresses become ``[EMAIL]``.
        phone: Whether telephone numbers become ``[PHONE]``.
        card: Whether payment card numbers, checked by their last digit, become ``[CARD]``.
        patterns: Pairs of a label and a regular expression in RE2's syntax, applied in this order and before the
            others: ``("customer", r"C-\\d{6}")`` makes ``[CUSTOMER]`` of ``C-123456``. RE2 reads a text in linear time
            whatever the pattern. A pattern may not match without taking a character.
    """

    email: bool = False
    phone: bool = False
    card: bool = False
    patterns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        owner = "redaction"
        for field in ("email", "phone", "card"):
            check_flag(owner, field, getattr(self, field))
        object.__setattr__(self, "patterns", _checked_patterns(owner, self.patterns))
        if not (self.email or self.phone or self.card or self.patterns):
            raise DeclarationError(f"{owner}: nothing is redacted; set email, phone, card or patterns, or redact=None.")

    @property
    def labels(self) -> tuple[str, ...]:
        """The kinds of what is found."""
        own = [label for label in ("email", "card", "phone") if getattr(self, label)]
        return tuple(dict.fromkeys([*(label for label, _ in self.patterns), *own]))


def placeholder(label: str) -> str:
    """What stands for a find: ``[EMAIL]``."""
    return f"[{label.upper()}]"


def _checked_patterns(owner: str, value: Any) -> tuple[tuple[str, str], ...]:
    pairs = value.items() if isinstance(value, Mapping) else value
    if not isinstance(value, (Mapping, list, tuple)) or any(
        not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs
    ):
        raise DeclarationError(
            f"{owner}: patterns must be pairs of a label and a regular expression, e.g. "
            f"(('customer', r'C-\\d{{6}}'),), got {value!r:.80}."
        )
    checked = []
    for label, pattern in pairs:
        if not isinstance(label, str) or not _LABEL.match(label) or len(label) > _LONGEST_LABEL:
            raise DeclarationError(
                f"{owner}: a label must be lower-case letters and single underscores, at most {_LONGEST_LABEL} "
                f"characters, e.g. 'customer', got {label!r}."
            )
        if label in _SPECIAL:
            raise DeclarationError(
                f"{owner}: the label {label!r} would write {placeholder(label)}, which tokenizers read as a special "
                "token. Choose another."
            )
        check_text(owner, f"patterns[{label!r}]", pattern)
        _check_pattern(f"{owner}: the pattern of {label!r}", pattern)
        checked.append((label, pattern))
    return tuple(checked)


def _check_pattern(owner: str, pattern: str) -> None:
    import pyarrow as pa  # only where somebody declares a pattern; its kernels are RE2
    import pyarrow.compute as pc

    probes = pa.array(["", *_CONTEXTS, _CONTEXTS])
    try:
        # What a match took stands between the marks; they lie side by side where it took nothing.
        marked = pc.replace_substring_regex(probes, pattern=f"({pattern})", replacement="\x02\\1\x03").to_pylist()
    except pa.ArrowInvalid as exc:
        reason = str(exc).removeprefix("Invalid regular expression: ")
        raise DeclarationError(
            f"{owner} is no regular expression of RE2: {reason}. RE2 has neither lookaround nor references to groups: "
            f"https://github.com/google/re2/wiki/Syntax. Got {pattern!r:.80}."
        ) from exc
    if any("\x02\x03" in text for text in marked):
        raise DeclarationError(f"{owner} can match without taking a character, got {pattern!r:.80}; ask for one.")


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Differential privacy for the vectors of users, by the Gaussian mechanism.

    A row's vector, as it would be without this, is clipped to the L2 norm `clip_norm`; normal noise is added to every
    component. Replacing all that a user contributes moves the clipped vector by at most ``2 * clip_norm``, and the
    noise is calibrated for that by Balle and Wang 2018, theorem 8: one vector is (`epsilon`, `delta`)-differentially
    private with regard to replacing one user's data. A second one, of the same user's other data or of another
    feature, adds up: see `llmrec_plugin.privacy.accounting`. A user without data has the noise alone.

    The noise is a function of the secret key, the feature, the user and the row's text, so that batch, on-demand and
    historical reads give one vector, and reading it again tells nothing more.

    Attributes:
        clip_norm: Longest L2 norm of a vector before the noise; 1 for vectors of unit norm.
        epsilon: Of one vector.
        delta: Of one vector; well below one divided by the number of users.
        user: Column with the user's key, which text and numbers may be. It is no part of the text.
        key_id: Which secret key draws the noise: what `llmrec_plugin.privacy.new_noise_key` gave when it was made.
    """

    clip_norm: float
    epsilon: float
    delta: float
    user: str
    key_id: str

    def __post_init__(self) -> None:
        owner = "noise"
        for field, least, most in (
            ("clip_norm", 0.0, float("inf")),
            ("epsilon", 0.0, MOST_EPSILON),
            ("delta", 0.0, 1.0),
        ):
            value = getattr(self, field)
            if not is_number(value) or not least < value <= most or value == float("inf"):
                upper = "" if most == float("inf") else f" and at most {most:g}"
                raise DeclarationError(f"{owner}: {field} must be a number above {least:g}{upper}, got {value!r}.")
            object.__setattr__(self, field, float(value))  # 1 and 1.0 are one declaration
        if not LEAST_DELTA <= self.delta < 1:
            raise DeclarationError(f"{owner}: delta must be at least {LEAST_DELTA:g} and below 1, got {self.delta!r}.")
        if not isinstance(self.user, str) or not self.user.isidentifier():
            raise DeclarationError(f"{owner}: user must be a column name, got {self.user!r}.")
        if not isinstance(self.key_id, str) or not _KEY_ID.match(self.key_id):
            raise DeclarationError(
                f"{owner}: key_id must be the 16 hex digits that name the secret key, got {self.key_id!r:.40}. "
                "Make a key with llmrec_plugin.privacy.new_noise_key; it gives the id."
            )
