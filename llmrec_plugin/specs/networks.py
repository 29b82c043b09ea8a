"""Trained networks over columns, and the features they compute: sequences of ids, stored vectors, pictures, pairs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias, get_args

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs.checks import (
    PIPELINE_VERSION,
    check_choice,
    check_model_name,
    check_name,
    check_positive,
    check_source,
    check_text,
    digest,
    is_number,
    rebuilt,
    template_columns,
    to_spec,
)
from llmrec_plugin.specs.embeddings import EmbeddingFeature, HistoryEmbeddingFeature, OnEmpty, Storage, check_published
from llmrec_plugin.specs.models import Metric
from llmrec_plugin.specs.privacy import GaussianNoise, Redaction

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


@dataclass(frozen=True, kw_only=True)
class NetworkModel:
    """A trained PyTorch network that ``llmrec export`` turns into ONNX.

    Attributes:
        name: The name features refer to.
        source: The folder that training wrote: ``path:<folder>`` or ``package:<module>/<folder>``.
        network: ``<module>:<function>`` of a plugin; called at export with that folder (`pathlib.Path`), it returns an
            `llmrec_plugin.networks.Network`.
        tolerance: Largest absolute difference to PyTorch that export accepts.
    """

    name: str
    source: str
    network: str
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        check_model_name(self.name)
        owner = f"model {self.name!r}"
        check_source(owner, self.source)
        if not isinstance(self.network, str) or not _FUNCTION.match(self.network):
            raise DeclarationError(f"{owner}: network must be '<module>:<function>', got {self.network!r}.")
        if not is_number(self.tolerance) or not 0 < self.tolerance <= 1e-2:
            raise DeclarationError(f"{owner}: tolerance must be in (0, 0.01], got {self.tolerance!r}.")


InputSource: TypeAlias = str | EmbeddingFeature | HistoryEmbeddingFeature
"""A column, a text template (for `Tokens`), or an embedding feature (for `Vector`) that is computed on the way."""


@dataclass(frozen=True, kw_only=True)
class NetworkFeature:
    """One vector or number per row: columns -> inputs -> network.

    Attributes:
        name: Name of the feature, of its Feast view and of its output column.
        entity: Name of the Feast entity whose rows are read and stored; None for a feature of request time only, such
            as one of a session or of a pair.
        model: Name of the network.
        inputs: Input of the network -> what it is read from: a column's name; for a text, a template such as
            ``"{title}. {plot}"``; for a vector, also an embedding feature, which need not be published itself. Where
            `entity` is None a column may be a stored feature's name: it is then read from the online store.
        dims: Length of the vector; None for one number (``Float32``).
        metric: The similarity these vectors are meant for; None for a number.
        space: The space that the artifact must have, see `llmrec_plugin.networks.Network`; empty: whatever it has.
        on_empty: What a row without input gives: ``"null"``, or ``"zeros"`` (a number: 0).
        storage: How Feast holds a vector, as in `EmbeddingFeature`; numbers are ``Float32``.
        status: Whether the views have a second column ``<name>_status``, as in `EmbeddingFeature`.
        deadline_ms: Request time only: milliseconds a row may wait for inference, None for as long as it takes.
        on_deadline: What a row that missed the deadline gives, as `on_empty`.
        redact: Personal data that is taken out of the values of texts, as in `EmbeddingFeature`.
        noise: Makes vectors differentially private, as in `EmbeddingFeature`; only where each input is a column.
        description: For people; shown in the Feast UI.
    """

    name: str
    entity: str | None
    model: str
    inputs: Any  # a mapping or pairs; kept as sorted pairs
    dims: int | None
    metric: Metric | None
    space: str = ""
    on_empty: OnEmpty = "null"
    storage: Storage = "list"
    status: bool = False
    deadline_ms: int | None = None
    on_deadline: OnEmpty = "null"
    redact: Redaction | None = None
    noise: GaussianNoise | None = None
    description: str = ""

    kind: ClassVar[str] = "network"
    _LABELS: ClassVar[frozenset[str]] = frozenset(
        {"name", "entity", "description", "model", "status", "deadline_ms", "on_deadline", "space"}
    )

    def __post_init__(self) -> None:
        check_name("feature", self.name)
        owner = f"feature {self.name!r}"
        object.__setattr__(self, "inputs", _checked_inputs(owner, self.inputs))
        if self.dims is not None:
            check_positive(owner, "dims", self.dims)
        check_choice(owner, "metric", self.metric, (None,) if self.dims is None else get_args(Metric))
        check_text(owner, "space", self.space)
        check_choice(owner, "storage", self.storage, get_args(Storage) if self.dims is not None else ("list",))
        check_published(owner, self)
        if self.noise is not None:
            self._check_noise(owner)

    def _check_noise(self, owner: str) -> None:
        if self.dims is None:
            raise DeclarationError(f"{owner}: noise is for vectors, got dims=None.")
        if self.parts:
            # Its last bits differ between batches, and noise that depends on them would be drawn again and again.
            raise DeclarationError(
                f"{owner}: noise needs inputs that are columns, but {self.parts[0][0]!r} is computed on the way. "
                f"Publish the feature {self.parts[0][1].name!r} and name it as a column, or declare the noise on it."
            )

    @property
    def status_name(self) -> str:
        """Name of the status column, where there is one."""
        return f"{self.name}_status"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns the feature reads."""
        read = [column for _, source in self.inputs for column in columns_of_source(source)]
        return tuple(dict.fromkeys(read if self.noise is None else [*read, self.noise.user]))

    @property
    def parts(self) -> tuple[tuple[str, EmbeddingFeature | HistoryEmbeddingFeature], ...]:
        """Input and embedding feature, for the inputs that are computed."""
        return tuple((name, source) for name, source in self.inputs if not isinstance(source, str))

    def encoding_fingerprint(self, artifact_id: str) -> str:
        """Covers what maps one row's inputs, computed ones included, to its value; the cache key of that value."""
        return digest([PIPELINE_VERSION, self.kind, artifact_id])

    def vector_space(self, artifact_id: str, space: str) -> str:
        """Equal for two features whose vectors may be compared with each other.

        Args:
            artifact_id: Of the network.
            space: The artifact's, see `llmrec_plugin.networks.Network`.
        """
        return digest([PIPELINE_VERSION, self.kind, space or artifact_id, self.dims])

    def fingerprint(self, artifact_id: str) -> str:
        """Covers everything that changes the values but `parts`, whose fingerprints join it; 64 hex digits."""
        spec = {
            key: value
            for key, value in to_spec(self).items()
            if key not in self._LABELS and not (key in ("redact", "noise") and value is None)
        }
        spec["inputs"] = [pair for pair in self.inputs if isinstance(pair[1], str)]
        return digest([PIPELINE_VERSION, artifact_id, spec])


def columns_of_source(source: InputSource) -> tuple[str, ...]:
    """The columns behind one input."""
    if not isinstance(source, str):
        return source.columns
    return template_columns(source) if "{" in source else (source,)


def _checked_inputs(owner: str, value: object) -> tuple[tuple[str, InputSource], ...]:
    try:
        pairs: dict[Any, Any] = dict(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        pairs = {}
    checked: list[tuple[str, InputSource]] = []
    for name, source in pairs.items():
        if isinstance(source, str):
            check_text(owner, f"inputs[{name!r}]", source)
            if "{" in source:
                template_columns(source, owner=owner)
            elif not source.isidentifier():
                raise DeclarationError(f"{owner}: input {name!r} must name a column or a template, got {source!r}.")
            checked.append((str(name), source))
        else:
            part = rebuilt(owner, f"inputs[{name!r}]", source, EmbeddingFeature, HistoryEmbeddingFeature)
            # For people, of a view of its own; a change of it is no change of this feature.
            checked.append((str(name), replace(part, description="")))
    if not checked or not all(name.isidentifier() for name, _ in checked):
        raise DeclarationError(f"{owner}: inputs must map the network's inputs to columns, got {value!r}.")
    return tuple(sorted(checked, key=lambda pair: pair[0]))
