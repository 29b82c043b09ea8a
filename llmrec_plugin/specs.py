"""Declarations: what a plugin or a feature repo says about a feature or a model.

Frozen, keyword-only dataclasses, checked when they are built. They hold no model and do no work, so
declaring a thousand features costs nothing. A declaration travels as JSON (`to_spec` / `from_spec`)
inside the Feast registry, which is how a process that never saw the feature repo can serve it.

A **fingerprint** is the SHA-256 over everything that changes the numbers of a feature: the exported
model (graph and tokenizer hashes), text template, cleaning rules, prefix, pooling, normalization,
maximum length, reduction, metric. Names, entities and descriptions are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, TypeGuard, get_args

from llmrec_plugin.errors import DeclarationError

Pooling: TypeAlias = Literal["mean", "cls", "last_token", "max"]
Metric: TypeAlias = Literal["cosine", "dot", "euclidean"]
OnEmpty: TypeAlias = Literal["null", "zeros"]
Reduction: TypeAlias = Literal["prefix"]
Storage: TypeAlias = Literal["list", "float32", "float16", "int8"]
Precision: TypeAlias = Literal["fp32", "int8", "fp16", "bf16"]
Rotation: TypeAlias = Literal["pca"]

PIPELINE_VERSION = 1
"""Part of every fingerprint: raised when a change of our own code changes the numbers."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_REVISION = re.compile(r"[0-9a-f]{40}\Z")


def digest(value: Any) -> str:
    """The SHA-256 (64 hex digits) of `value` written as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def template_columns(template: str, *, owner: str = "template") -> tuple[str, ...]:
    """The column names a text template reads, in order of first appearance.

    Raises:
        DeclarationError: The template reads no column, or uses anything but plain ``{column}``.
    """
    _check_text(owner, "text", template)
    columns: dict[str, None] = {}
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as exc:
        raise DeclarationError(f"{owner}: the text template {template!r} is malformed: {exc}.") from exc
    for _, column, spec, conversion in parts:
        if column is None:
            continue
        if not column.isidentifier() or spec or conversion:
            raise DeclarationError(
                f"{owner}: the text template may hold only plain columns such as {{title}}, got "
                f"{{{column}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}. "
                "Write literal braces as {{ and }}."
            )
        columns[column] = None
    if not columns:
        raise DeclarationError(f"{owner}: the text template {template!r} reads no column; write e.g. '{{title}}'.")
    return tuple(columns)


def _check_choice(owner: str, field: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise DeclarationError(f"{owner}: {field} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def _check_flag(owner: str, field: str, value: object) -> None:
    if not isinstance(value, bool):  # 1 == True, but it would give another fingerprint
        raise DeclarationError(f"{owner}: {field} must be True or False, got {value!r}.")


def _check_text(owner: str, field: str, value: object) -> None:
    if not isinstance(value, str):
        raise DeclarationError(f"{owner}: {field} must be a string, got {value!r}.")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise DeclarationError(f"{owner}: {field} holds a lone surrogate, which no encoder accepts: {value!r}.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_positive(owner: str, field: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DeclarationError(f"{owner}: {field} must be a positive integer, got {value!r}.")


def _layers(owner: str, value: object) -> tuple[int, ...]:
    """Layer indices as a tuple; recipes and JSON give lists."""
    layers = tuple(value) if isinstance(value, (list, tuple)) else ()
    wrong = any(not isinstance(layer, int) or isinstance(layer, bool) or layer < 0 for layer in layers)
    if not layers or wrong or list(layers) != sorted(set(layers)):
        raise DeclarationError(
            f"{owner}: layers must be increasing indices from 0, e.g. (0, 2, 4), or None for all; got {value!r}."
        )
    return layers


def _check_name(kind: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.match(name) or "__" in name:
        raise DeclarationError(
            f"{kind} name {name!r}: expected lower-case letters, digits and single underscores, starting with a "
            "letter (it becomes a Feast view and column name), e.g. 'item_title_embedding'."
        )


@dataclass(frozen=True, kw_only=True)
class EncoderModel:
    """A text encoder that `llmrec export` can turn into an ONNX artifact.

    Attributes:
        name: The name features refer to.
        source: Where the PyTorch weights are: ``package:<module>/<folder>`` (inside an installed Python
            package), ``path:<folder>`` (a Hugging Face folder) or ``hub:<org>/<name>@<revision>`` (a hub
            repository at a full 40-digit commit).
        pooling: How token vectors become one vector: attention-masked ``mean`` or ``max``, the first token
            (``cls``) or the last real token (``last_token``).
        normalize: Whether the vector is scaled to unit L2 norm.
        dims: Length of the vector.
        max_tokens: Longest input in tokens, special tokens included; longer texts are truncated.
        metric: The similarity the model was trained for.
        padding_side: The side on which shorter texts of a batch are padded.
        tolerance: Largest absolute difference to PyTorch that export accepts.
        precision: Number type of the large matrix products. ``fp32`` gives PyTorch's numbers. The others are faster
            and coarser: ``int8`` on every CPU, ``fp16`` on GPUs, ``bf16`` where a runtime computes in it.
        layers: Indices of the transformer layers that are kept, increasing; None keeps all. Fewer layers are faster
            and give other vectors.
        rotation: ``pca`` turns the vectors so that the first components vary most, which suits features that keep a
            prefix of them. Similarities of whole vectors stay as they are.
        min_overlap: The share of the ten nearest neighbors by the full fp32 model that this one must find too, in
            [0, 1]; export refuses a model below it.
    """

    name: str
    source: str
    pooling: Pooling
    normalize: bool
    dims: int
    max_tokens: int
    metric: Metric
    padding_side: Literal["right", "left"] = "right"
    tolerance: float = 1e-5
    precision: Precision = "fp32"
    layers: tuple[int, ...] | None = None
    rotation: Rotation | None = None
    min_overlap: float = 0.95

    def __post_init__(self) -> None:
        owner = f"model {self.name!r}"
        if not isinstance(self.name, str) or not _MODEL_NAME.match(self.name):
            raise DeclarationError(f"{owner}: expected letters, digits, '.', '_' and '-', e.g. 'all-minilm-l6-v2'.")
        _check_text(owner, "source", self.source)
        kind, _, place = self.source.partition(":")
        if kind not in ("package", "path", "hub") or not place:
            raise DeclarationError(
                f"{owner}: source must start with 'package:', 'path:' or 'hub:', got {self.source!r}."
            )
        if kind == "hub" and not _REVISION.match(place.partition("@")[2]):
            raise DeclarationError(
                f"{owner}: a hub source must pin a full commit, 'hub:org/name@<40 hex digits>', got {self.source!r}."
            )
        _check_choice(owner, "pooling", self.pooling, get_args(Pooling))
        _check_choice(owner, "metric", self.metric, get_args(Metric))
        _check_choice(owner, "padding_side", self.padding_side, ("right", "left"))
        _check_flag(owner, "normalize", self.normalize)
        _check_positive(owner, "dims", self.dims)
        _check_positive(owner, "max_tokens", self.max_tokens)
        if not _is_number(self.tolerance) or not 0 < self.tolerance <= 1e-2:
            raise DeclarationError(f"{owner}: tolerance must be in (0, 0.01], got {self.tolerance!r}.")
        _check_choice(owner, "precision", self.precision, get_args(Precision))
        _check_choice(owner, "rotation", self.rotation, (None, *get_args(Rotation)))
        if self.layers is not None:
            object.__setattr__(self, "layers", _layers(owner, self.layers))
        if not _is_number(self.min_overlap) or not 0 <= self.min_overlap <= 1:
            raise DeclarationError(f"{owner}: min_overlap must be in [0, 1], got {self.min_overlap!r}.")


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """What the embedding features share: how an assembled text becomes a vector.

    Attributes:
        name: Name of the feature, of its Feast view and of its output column, by convention
            ``<entity>_<content>_<kind>``, e.g. ``item_title_embedding``.
        entity: Name of the Feast entity whose rows are read and stored; None for a feature that
            exists only at request time, such as a search query.
        model: Name of the encoder, as registered by a plugin or exported from a folder.
        pooling: Must equal the artifact's pooling; stated so that a reader need not look it up.
        normalize: Whether the stored vector has unit L2 norm (after the reduction, if there is one).
        prefix: Put before every text, e.g. ``"query: "``; the empty string for models without one.
        metric: The similarity these vectors are meant for; becomes the vector index's metric.
        max_tokens: Truncation length in tokens, special tokens included; at most the model's.
        dims: Length of the vector that comes out.
        reduction: ``"prefix"`` keeps the first `dims` components (Matryoshka Representation Learning,
            Kusupati et al. 2022, section 3); None keeps all.
        on_empty: What a row without text gives: ``"null"`` or the ``"zeros"`` vector.
        max_chars: Texts are cut to this many characters before tokenization, to bound time.
        storage: How Feast holds the vector: ``"list"`` as ``Array(Float32)``, which vector indexes need, or
            packed into ``Bytes`` as ``"float32"``, ``"float16"`` or ``"int8"`` (see `llmrec_plugin.pipeline.packing`),
            which a ranker fetches many times faster.
        status: Whether the views have a second column ``<name>_status``: ``"ok"``; ``"empty"`` for a row without
            text; ``"invalid"`` for one that could not be read; ``"fallback"`` for one that missed its deadline.
        deadline_ms: Request time only: milliseconds a row may wait for inference, None for as long as it takes.
        on_deadline: What a row that missed the deadline gives: ``"null"`` or the ``"zeros"`` vector.
        description: For people; shown in the Feast UI.
    """

    name: str
    entity: str | None
    model: str
    pooling: Pooling
    normalize: bool
    prefix: str
    metric: Metric
    max_tokens: int
    dims: int
    reduction: Reduction | None = None
    on_empty: OnEmpty = "null"
    max_chars: int = 20_000
    storage: Storage = "list"
    status: bool = False
    deadline_ms: int | None = None
    on_deadline: OnEmpty = "null"
    description: str = ""

    _LABELS: ClassVar[frozenset[str]] = frozenset(
        {"name", "entity", "description", "model", "status", "deadline_ms", "on_deadline"}
    )
    """Fields that do not change the numbers; what a model computes is covered by its artifact's id."""
    _UNCHANGED: ClassVar[dict[str, object]] = {"storage": "list"}
    """Fields younger than stored fingerprints, with the value that leaves the numbers as they were."""

    def __post_init__(self) -> None:
        _check_name("feature", self.name)
        owner = f"feature {self.name!r}"
        if self.entity is not None and (not isinstance(self.entity, str) or not self.entity):
            raise DeclarationError(f"{owner}: entity must be a Feast entity's name or None, got {self.entity!r}.")
        if not isinstance(self.model, str) or not self.model:
            raise DeclarationError(f"{owner}: model must be the name of a registered model, got {self.model!r}.")
        _check_text(owner, "prefix", self.prefix)
        _check_choice(owner, "pooling", self.pooling, get_args(Pooling))
        _check_choice(owner, "metric", self.metric, get_args(Metric))
        _check_flag(owner, "normalize", self.normalize)
        _check_choice(owner, "reduction", self.reduction, (None, *get_args(Reduction)))
        _check_choice(owner, "on_empty", self.on_empty, get_args(OnEmpty))
        _check_positive(owner, "max_tokens", self.max_tokens)
        _check_positive(owner, "dims", self.dims)
        _check_positive(owner, "max_chars", self.max_chars)
        _check_choice(owner, "storage", self.storage, get_args(Storage))
        _check_flag(owner, "status", self.status)
        _check_choice(owner, "on_deadline", self.on_deadline, get_args(OnEmpty))
        if self.deadline_ms is not None:
            _check_positive(owner, "deadline_ms", self.deadline_ms)

    @property
    def status_name(self) -> str:
        """Name of the status column, where there is one."""
        return f"{self.name}_status"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns the feature reads."""
        raise TypeError(f"{type(self).__name__} declares no columns")  # every subclass does

    def encoding_fingerprint(self, artifact_id: str) -> str:
        """Covers what maps one finished text to its vector; the cache key of that vector."""
        return digest(
            [PIPELINE_VERSION, artifact_id, self.prefix, self.normalize, self.max_tokens, self.dims, self.reduction]
        )

    def vector_space(self, artifact_id: str) -> str:
        """Equal for two features whose vectors may be compared with each other."""
        return digest([PIPELINE_VERSION, artifact_id, self.normalize, self.dims, self.reduction])

    def fingerprint(self, artifact_id: str) -> str:
        """Covers everything that changes the numbers of this feature; 64 hex digits."""
        spec = {
            key: value
            for key, value in to_spec(self).items()
            if key not in self._LABELS and self._UNCHANGED.get(key, ...) != value
        }
        return digest([PIPELINE_VERSION, artifact_id, spec])


@dataclass(frozen=True, kw_only=True)
class EmbeddingFeature(_Encoded):
    """One vector per row: columns -> text template -> encoder -> `dims` float32 values.

    Attributes:
        text: Template over the columns, e.g. ``"{title}. {description}"``. A missing value renders as
            nothing; a row whose columns are all missing or blank is empty (see `on_empty`).
    """

    text: str

    kind: ClassVar[str] = "embedding"

    def __post_init__(self) -> None:
        super().__post_init__()
        template_columns(self.text, owner=f"feature {self.name!r}")

    @property
    def columns(self) -> tuple[str, ...]:
        return template_columns(self.text)


@dataclass(frozen=True, kw_only=True)
class HistoryEmbeddingFeature(_Encoded):
    """One vector per user from the texts of the last events.

    Attributes:
        events: Column holding a list of strings per row, the event texts.
        order: Whether that list starts with the newest or with the oldest event.
        last_n: How many of the newest events are read.
        combine: ``"mean"`` encodes each event and averages the vectors; ``"concat"`` joins the texts,
            newest first, and encodes the result once, so truncation drops the oldest.
        half_life: With ``combine="mean"``, the event at position p (0 = newest) weighs
            ``0.5 ** (p / half_life)``; None weighs all alike.
        separator: What ``combine="concat"`` puts between two events.
    """

    events: str
    order: Literal["newest_first", "oldest_first"]
    last_n: int
    combine: Literal["mean", "concat"] = "mean"
    half_life: float | None = None
    separator: str = "\n"

    kind: ClassVar[str] = "history_embedding"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"feature {self.name!r}"
        if not isinstance(self.events, str) or not self.events.isidentifier():
            raise DeclarationError(f"{owner}: events must be a column name, got {self.events!r}.")
        _check_choice(owner, "order", self.order, ("newest_first", "oldest_first"))
        _check_choice(owner, "combine", self.combine, ("mean", "concat"))
        _check_positive(owner, "last_n", self.last_n)
        _check_text(owner, "separator", self.separator)
        if _is_number(self.half_life):
            object.__setattr__(self, "half_life", float(self.half_life))  # 2 and 2.0 are one declaration
        wrong = not _is_number(self.half_life) or not self.half_life > 0  # type: ignore[operator]
        if self.half_life is not None and (self.combine == "concat" or wrong):
            raise DeclarationError(
                f"{owner}: half_life must be a positive number of events and needs combine='mean', "
                f"got half_life={self.half_life!r} with combine={self.combine!r}."
            )

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.events,)


@dataclass(frozen=True, kw_only=True)
class SimilarityFeature:
    """One float per pair of vectors, computed at request time.

    Each side names an embedding feature. A side with an entity is read from the store; a side without
    one is computed from the request. Both must live in the same vector space (same model, dims,
    normalization, reduction); prefixes and templates may differ.

    Attributes:
        name: Name of the feature, of its Feast view and of its output column.
        left: Name of an embedding feature.
        right: Name of another embedding feature.
        metric: ``cosine`` in [-1, 1], ``dot`` or ``euclidean`` (a distance: smaller is closer).
        status: Whether the view has a second column ``<name>_status``: ``"ok"``, or why a side has no vector:
            ``"invalid"``, ``"empty"`` (no text, or nothing stored) or ``"fallback"``, in this order if both have none.
        description: For people; shown in the Feast UI.
    """

    name: str
    left: str
    right: str
    metric: Metric
    status: bool = False
    description: str = ""

    kind: ClassVar[str] = "similarity"

    def __post_init__(self) -> None:
        _check_name("feature", self.name)
        owner = f"feature {self.name!r}"
        _check_choice(owner, "metric", self.metric, get_args(Metric))
        _check_flag(owner, "status", self.status)
        for side in ("left", "right"):
            if not isinstance(getattr(self, side), str) or not getattr(self, side):
                raise DeclarationError(f"{owner}: {side} must be the name of an embedding feature.")
        if self.left == self.right:
            raise DeclarationError(f"{owner}: left and right are both {self.left!r}; name two different features.")

    @property
    def status_name(self) -> str:
        """Name of the status column, where there is one."""
        return f"{self.name}_status"

    def fingerprint(self, left: str, right: str) -> str:
        """The fingerprint, from the fingerprints of both sides."""
        return digest([PIPELINE_VERSION, self.kind, self.metric, left, right])


TextFeature: TypeAlias = EmbeddingFeature | HistoryEmbeddingFeature
Feature: TypeAlias = EmbeddingFeature | HistoryEmbeddingFeature | SimilarityFeature

_KINDS: dict[str, type] = {cls.kind: cls for cls in get_args(Feature)}


def to_spec(feature: Feature | _Encoded) -> dict[str, Any]:
    """The declaration as JSON-ready data, with its ``kind``."""
    values = {field.name: getattr(feature, field.name) for field in fields(feature)}
    return {"kind": feature.kind, **values}  # type: ignore[union-attr]


def from_spec(spec: dict[str, Any]) -> Feature:
    """The declaration that `to_spec` wrote.

    Raises:
        DeclarationError: The kind or a field is unknown, e.g. written by a newer version.
    """
    values = dict(spec)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise DeclarationError(
            f"Expected a feature of kind {', '.join(map(repr, _KINDS))}, got {kind!r}. "
            "The registry may have been written by a newer llmrec-plugin; upgrade this process."
        )
    try:
        return _KINDS[kind](**values)
    except TypeError as exc:
        raise DeclarationError(
            f"The stored declaration does not fit {_KINDS[kind].__name__}: {exc}. Run `feast apply` with this version."
        ) from exc
