"""Every error this package raises on purpose.

Each message says what was expected, what came and what to do next, and each class also
inherits the builtin it refines, so callers may catch either::

    LLMRecError
    ├── DeclarationError (ValueError)          a declaration that cannot mean anything
    ├── UnknownNameError (LookupError)         no feature or model of that name
    ├── NameCollisionError (ValueError)        two plugins declare the same name
    ├── PluginError (RuntimeError)             one plugin failed; names plugin, version, hook, cause
    ├── InputError (ValueError)                rows that a feature cannot read
    │   ├── MissingColumnError                 a column of the template is not there
    │   └── ColumnTypeError                    a column holds something that is not text
    ├── ArtifactError (RuntimeError)
    │   ├── ArtifactNotFoundError              not exported yet, or exported elsewhere
    │   ├── ArtifactCorruptError               a file differs from its manifest
    │   └── ArtifactMismatchError              the artifact is not what the feature declares
    ├── FingerprintMismatchError (RuntimeError)
    ├── FetchError (RuntimeError)              features that were fetched are not those asked for
    ├── OnlineStoreError (RuntimeError)        the online store cannot do what was asked
    ├── CacheError (RuntimeError)              the value cache cannot be pruned or verified
    ├── ErasureError (RuntimeError)            something that was to be erased is still there
    ├── RolloutError (RuntimeError)            versions cannot be kept side by side, or not be switched now
    ├── SourceError (RuntimeError)             weights or tokenizer cannot be found or exported
    ├── ParityError (RuntimeError)             the exported graph differs from PyTorch
    ├── QualityError (RuntimeError)            a reduced model loses more neighbors than its declaration allows
    ├── ProviderError (RuntimeError)           the device asked for cannot be used
    │   └── RemoteError                        an endpoint that serves a model gave no vectors
    ├── EngineError (RuntimeError)             a compute engine or offline store that would lose or repeat work
    ├── LedgerError (RuntimeError)             the record of written rows cannot be used
    ├── MissingExtraError (ImportError)        an optional dependency is not installed
    └── SettingsError (ValueError)             an environment variable holds no value of its setting
"""

from __future__ import annotations

import copyreg
import difflib
import os
from collections.abc import Iterable
from typing import Any


def texts_are_shown() -> bool:
    """Whether messages, which end up in logs, may hold what rows hold and models wrote (``LLMREC_LOG_TEXTS=1``)."""
    return os.environ.get("LLMREC_LOG_TEXTS") == "1"


def quoted(value: object) -> str:
    """A value of a row, or what a model wrote, for a message: its beginning where texts are shown, else its size."""
    if texts_are_shown():
        return f"{value!r:.60}"
    size = f"{len(value)} long, " if isinstance(value, str | bytes | list | tuple | dict) else ""
    return f"<{size}shown with LLMREC_LOG_TEXTS=1>"


def suggestion(name: str, known: Iterable[str]) -> str:
    """``Did you mean 'title'?``, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else ""


class LLMRecError(Exception):
    """Base class of every error raised by llmrec_plugin."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Rebuilt from the message, not through __init__, so that a worker process can hand over any of them.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class DeclarationError(LLMRecError, ValueError):
    """A declaration contradicts itself or another declaration."""


class UnknownNameError(LLMRecError, LookupError):
    """No feature, model or plugin of that name; the message lists near matches, else what is known, and a remedy."""

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        known = sorted(known)
        hint = suggestion(name, known) or f"Known: {', '.join(known) or 'none'}. {remedy}".rstrip()
        super().__init__(f"No {kind} is named {name!r}. {hint}")


class NameCollisionError(LLMRecError, ValueError):
    """Two plugins declare the same name; the message names both."""


class PluginError(LLMRecError, RuntimeError):
    """One plugin failed; the message names it, its version, the hook and the cause."""


class InputError(LLMRecError, ValueError):
    """The rows handed to a feature cannot be read as it declares."""


class MissingColumnError(InputError):
    """A column named by the declaration is not among the columns that came."""

    def __init__(self, feature: str, missing: Iterable[str], got: Iterable[str]) -> None:
        super().__init__(
            f"Feature {feature!r} reads column(s) {', '.join(map(repr, sorted(missing)))}, "
            f"but the rows have only {', '.join(map(repr, sorted(got))) or 'no columns'}. "
            "Add the column to the source or the request, or change the feature's declaration."
        )


class ColumnTypeError(InputError):
    """A column has a type that cannot be read as text."""


class ArtifactError(LLMRecError, RuntimeError):
    """An exported model cannot be used."""


class ArtifactNotFoundError(ArtifactError):
    """The exported model a feature needs is in none of the artifact folders."""


class ArtifactCorruptError(ArtifactError):
    """A file of an exported model differs from what its manifest records."""


class ArtifactMismatchError(ArtifactError):
    """An exported model is not what the feature declares (pooling, dims, length, ...)."""


class FingerprintMismatchError(LLMRecError, RuntimeError):
    """A value was declared under another fingerprint than the one that would compute it."""


class FetchError(LLMRecError, RuntimeError):
    """A feature server refused a request, or the features that came are not those of the layout."""


class OnlineStoreError(LLMRecError, RuntimeError):
    """The online store cannot do what was asked of it."""


class CacheError(LLMRecError, RuntimeError):
    """The value cache cannot be read or written where that must not go unseen."""


class ErasureError(LLMRecError, RuntimeError):
    """Something that was to be erased is still there; the message names it."""


class RolloutError(LLMRecError, RuntimeError):
    """Two versions of a view cannot be kept side by side here, or cannot be switched now."""


class SourceError(LLMRecError, RuntimeError):
    """The weights or the tokenizer of a model cannot be found, read or exported."""


class SettingsError(LLMRecError, ValueError):
    """An environment variable holds something that is not a value of its setting."""


class ParityError(LLMRecError, RuntimeError):
    """The exported graph and PyTorch disagree by more than the tolerance."""


class QualityError(LLMRecError, RuntimeError):
    """A reduced model finds fewer of the full model's neighbors than its declaration asks; nothing was stored."""


class ProviderError(LLMRecError, RuntimeError):
    """The execution provider asked for is not usable on this machine."""


class RemoteError(ProviderError):
    """An endpoint cannot be reached, refused a request, or answered something else than vectors."""


class EngineError(LLMRecError, RuntimeError):
    """Feast was configured with an engine or an offline store that would lose vectors or compute them again."""


class LedgerError(LLMRecError, RuntimeError):
    """The record of what was written to the online store cannot be read or written."""


class MissingExtraError(LLMRecError, ImportError):
    """An optional dependency is missing; the message gives the pip command."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f'{purpose} needs the package {module!r}, which is not installed. Run: pip install "llmrec-plugin[{extra}]"'
        )
