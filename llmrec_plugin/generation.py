r"""The contract of a generator: an engine that writes text, or scores answers, for many prompts.

    rows -> slots of a prompt -> Request -> GenerationSession -> Completion -> typed value
            \_______________ transform, cache _______________________________/

A request is a prompt in segments. Segments of instructions are the same for every row and are read as they are;
segments of data come from rows and are never more than data: a session encodes them so that no special token can be
spelled, and cuts them, and only them, where the prompt is too long. ONNX Runtime is built in; others come by
`llmrec_register_generators` and are chosen by ``LLMREC_GENERATOR``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs import Decoding, Output

if TYPE_CHECKING:
    import numpy as np

    from llmrec_plugin.artifacts import GeneratorArtifact
    from llmrec_plugin.inference import Device

Finish: TypeAlias = Literal["stop", "length", "error"]

_NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")
_OPENER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


class Segment(NamedTuple):
    """A part of a prompt.

    Attributes:
        text: The text.
        data: Whether it comes from a row; else it belongs to the instructions.
        max_tokens: Data is cut to this many tokens; None leaves it to the length of the whole prompt.
    """

    text: str
    data: bool = False
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One row's prompt.

    Attributes:
        user: The prompt.
        system: Instructions that a chat model gets apart from it.
        seed: Of this row's draws, from 0 to 2**63 - 1; depends on the row's input alone.
    """

    user: tuple[Segment, ...]
    system: str = ""
    seed: int = 0


class Completion(NamedTuple):
    """What a model wrote for one request.

    Attributes:
        text: The text, without special tokens.
        finish: ``stop``: the model or the constraint ended it; ``length``: it was cut at the most tokens allowed;
            ``error``: there is none.
        tokens: Token ids that were written, without the one that ends; empty where a session does not know them.
        logprob: Sum of the log probabilities of the tokens, of the end as well, before any constraint; NaN if unknown.
        error: What went wrong, for ``error``.
        lasting: Whether the same request would end the same way again, so that the completion may be kept. An endpoint
            that did not answer may answer tomorrow.
    """

    text: str
    finish: Finish
    tokens: tuple[int, ...] = ()
    logprob: float = float("nan")
    error: str = ""
    lasting: bool = True


class GenerationSession(Protocol):
    """A generator, loaded.

    Attributes:
        provider: What computes, for messages and records, e.g. ``CPUExecutionProvider``.
    """

    provider: str

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        output: Output | None = None,
        *,
        done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """What the model writes for each request, in their order.

        A completion depends on its own request alone, whatever is computed together with it. A request that cannot be
        answered gives ``finish="error"`` and no exception.

        Args:
            requests: The prompts.
            decoding: How tokens are chosen.
            output: What the text will be parsed as, so that a session can keep the model to it: only tags of the
                vocabulary, only the options, only JSON of the schema. None: anything.
            done: Called with the position of a request and its completion as soon as it is complete, from one thread at
                a time.

        Raises:
            InputError: The instructions alone are longer than the model's context.
        """

    def score(self, requests: Sequence[Request], answers: Sequence[str]) -> np.ndarray:
        """Log probability of each answer after each prompt, (requests, answers) float32; NaN where there is none.

        An answer of several tokens has the sum of their log probabilities.
        """


class GeneratorOpener(Protocol):
    """Opens a generator; what `Generator.opener` names."""

    def __call__(self, artifact: GeneratorArtifact, *, device: Device, threads: int | None) -> GenerationSession:
        """The generator of `artifact`, whose files were compared with their hashes.

        Raises:
            ProviderError: The device is not usable.
            MissingExtraError: A package is not installed.
        """


@dataclass(frozen=True, kw_only=True)
class Generator:
    """Declares an engine that runs generators.

    Attributes:
        name: What ``LLMREC_GENERATOR`` calls it.
        opener: ``module:function`` of a `GeneratorOpener`, imported when a model is loaded.
        description: For people.
    """

    name: str
    opener: str
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name) or self.name == "auto":
            raise DeclarationError(
                f"generator {self.name!r}: expected a name of lower-case letters, digits, '-' and '_' other than "
                "'auto', e.g. 'openai'."
            )
        if not isinstance(self.opener, str) or not _OPENER.match(self.opener):
            raise DeclarationError(
                f"generator {self.name!r}: opener must be 'module:function', e.g. 'my_package.engine:open_generator', "
                f"got {self.opener!r}."
            )
