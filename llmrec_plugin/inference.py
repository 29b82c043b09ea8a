r"""The contract of a runtime: an engine that runs exported models.

    texts -> tokenize -> length-ordered batches -> Session.run -> vectors
             \_______________ Encoder _______________/

The encoder tokenizes, orders and checks; a session turns one batch into vectors. ONNX Runtime is built in; others are
registered by `llmrec_register_runtimes` and chosen by ``LLMREC_RUNTIME``. A runtime changes no numbers: whatever runs a
model must give the golden vectors of its artifact, or the model is not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, get_args

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs import Precision

if TYPE_CHECKING:
    import numpy as np

    from llmrec_plugin.artifacts import Artifact

Device: TypeAlias = Literal["auto", "cpu", "cuda", "tensorrt"]
Profile: TypeAlias = Literal["batch", "online"]
"""``batch``: the most texts per second; ``online``: the shortest wait for a single text."""

_NAME = re.compile(r"[a-z][a-z0-9_-]*\Z")
_OPENER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


class Batch(NamedTuple):
    """Texts that are encoded together.

    Attributes:
        ids: Token ids, (rows, length) int64, padded as the manifest says.
        mask: 1 for tokens and 0 for padding, (rows, length) int64.
        texts: The rows as text, cut to the tokens in `ids`; empty unless the runtime reads texts.
    """

    ids: np.ndarray
    mask: np.ndarray
    texts: Sequence[str] = ()

    def inputs(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The inputs of an encoder graph by name, each (rows, length) int64; `names` are the manifest's.

        All tokens are of type 0. Positions count real tokens only, so padding on the left does not move a text.
        """
        makers = {
            "input_ids": lambda: self.ids,
            "attention_mask": lambda: self.mask,
            "token_type_ids": lambda: self.ids * 0,
            "position_ids": lambda: (self.mask.cumsum(axis=1) - 1).clip(min=0),
        }
        return {name: makers[name]() for name in names}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How a session uses the machine. It changes the speed and no value.

    Attributes:
        threads: Threads that work on one run.
        callers: Runs at a time.
        spinning: Whether idle threads spin for a moment before they wait: runs begin sooner, and other processes get
            less of the CPU.
        token_budget: Largest rows x length of a batch.
        shape_step: Rows and lengths are padded to multiples of it, where the runtime is faster with few shapes.
        overlapping: Whether texts are tokenized while the session runs: pays where that leaves the CPU idle.
    """

    threads: int
    callers: int
    spinning: bool
    token_budget: int
    shape_step: int = 1
    overlapping: bool = False

    def __post_init__(self) -> None:
        for field in ("threads", "callers", "token_budget", "shape_step"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DeclarationError(f"placement: {field} must be a positive integer, got {value!r}.")
        for field in ("spinning", "overlapping"):
            value = getattr(self, field)
            if not isinstance(value, bool):
                raise DeclarationError(f"placement: {field} must be True or False, got {value!r}.")


class Session(Protocol):
    """A model, loaded.

    Attributes:
        provider: What computes, for messages and records, e.g. ``CPUExecutionProvider``.
        placement: How the machine is used; what was asked for, or what suits the runtime.
        adjustable: Whether another placement may be faster, so that it pays to measure some.
    """

    provider: str
    placement: Placement
    adjustable: bool

    def run(self, batch: Batch) -> np.ndarray:
        """The vectors of a batch, (rows, dims) float32 in its order.

        Called by up to ``placement.callers`` threads at a time. A row's vector must not depend on the other rows.
        """


class Opener(Protocol):
    """Opens an exported model; what `Runtime.opener` names."""

    def __call__(self, artifact: Artifact, *, device: Device, placement: Placement) -> Session:
        """The model of `artifact`, whose files were compared with their hashes.

        Args:
            artifact: ``artifact.path("model.onnx")`` is the graph; ``artifact.manifest`` names inputs and output.
            device: ``cuda`` and ``tensorrt`` must be usable, ``auto`` takes a GPU where it works, ``cpu`` never does.
            placement: How to use the machine, if the runtime has the choice.

        Raises:
            ProviderError: The device is not usable.
            MissingExtraError: A package of the runtime is not installed.
        """


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Declares an engine that runs exported models.

    Attributes:
        name: What ``LLMREC_RUNTIME`` calls it.
        opener: ``module:function`` of an `Opener`, imported when a model is loaded.
        precisions: Precisions of the artifacts it runs, see `EncoderModel.precision`.
        reads: Whether its sessions need the token ids of a batch or its texts.
        description: For people.
    """

    name: str
    opener: str
    precisions: tuple[Precision, ...]
    reads: Literal["tokens", "texts"] = "tokens"
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.match(self.name) or self.name == "auto":
            raise DeclarationError(
                f"runtime {self.name!r}: expected a name of lower-case letters, digits, '-' and '_' other than 'auto', "
                "e.g. 'openvino'."
            )
        if not isinstance(self.opener, str) or not _OPENER.match(self.opener):
            raise DeclarationError(
                f"runtime {self.name!r}: opener must be 'module:function', e.g. 'my_package.engine:open_model', "
                f"got {self.opener!r}."
            )
        known = get_args(Precision)
        if not isinstance(self.precisions, tuple) or not self.precisions or not set(self.precisions) <= set(known):
            raise DeclarationError(
                f"runtime {self.name!r}: precisions must be a tuple of some of {', '.join(map(repr, known))}, "
                f"got {self.precisions!r}."
            )
        if self.reads not in ("tokens", "texts"):
            raise DeclarationError(f"runtime {self.name!r}: reads must be 'tokens' or 'texts', got {self.reads!r}.")
