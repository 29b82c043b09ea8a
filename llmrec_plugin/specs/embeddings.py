"""Features whose values are vectors, and similarities of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs.checks import (
    PIPELINE_VERSION,
    check_choice,
    check_flag,
    check_name,
    check_positive,
    check_text,
    digest,
    is_number,
    rebuilt,
    template_columns,
    to_spec,
)
from llmrec_plugin.specs.models import Metric, Pooling
from llmrec_plugin.specs.privacy import GaussianNoise, Redaction
from llmrec_plugin.specs.tokens import Scores, TokenFeature

if TYPE_CHECKING:
    from llmrec_plugin.specs.networks import NetworkFeature

OnEmpty: TypeAlias = Literal["null", "zeros"]
Reduction: TypeAlias = Literal["prefix"]
Storage: TypeAlias = Literal["list", "float32", "float16", "int8"]


def check_published(owner: str, feature: _Encoded | NetworkFeature) -> None:
    """Checks the options that say whose value it is and what stands where there is none; rebuilds what JSON gave."""
    if feature.entity is not None and (not isinstance(feature.entity, str) or not feature.entity):
        raise DeclarationError(f"{owner}: entity must be a Feast entity's name or None, got {feature.entity!r}.")
    if not isinstance(feature.model, str) or not feature.model:
        raise DeclarationError(f"{owner}: model must be the name of a registered model, got {feature.model!r}.")
    check_choice(owner, "on_empty", feature.on_empty, get_args(OnEmpty))
    check_flag(owner, "status", feature.status)
    check_text(owner, "description", feature.description)
    check_choice(owner, "on_deadline", feature.on_deadline, get_args(OnEmpty))
    if feature.deadline_ms is not None:
        check_positive(owner, "deadline_ms", feature.deadline_ms)
    if feature.redact is not None:
        object.__setattr__(feature, "redact", rebuilt(owner, "redact", feature.redact, Redaction))
    if feature.noise is not None:
        object.__setattr__(feature, "noise", rebuilt(owner, "noise", feature.noise, GaussianNoise))
        if feature.on_empty != "zeros" or feature.status:
            raise DeclarationError(
                f"{owner}: with noise, on_empty must be 'zeros' and status False, or a value would tell who has no "
                f"data; got on_empty={feature.on_empty!r} and status={feature.status!r}."
            )


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
        redact: Personal data that is taken out of the row's values before anything else reads them.
        noise: Makes the vectors differentially private. A row without text has noise, too, as it would else be known
            by its value: `on_empty` must be ``"zeros"`` and `status` False.
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
    redact: Redaction | None = None
    noise: GaussianNoise | None = None
    description: str = ""

    _LABELS: ClassVar[frozenset[str]] = frozenset(
        {"name", "entity", "description", "model", "status", "deadline_ms", "on_deadline"}
    )
    """Fields that do not change the numbers; what a model computes is covered by its artifact's id."""
    _UNCHANGED: ClassVar[dict[str, object]] = {"storage": "list", "redact": None, "noise": None}
    """Fields younger than stored fingerprints, with the value that leaves the numbers as they were."""

    def __post_init__(self) -> None:
        check_name("feature", self.name)
        owner = f"feature {self.name!r}"
        check_text(owner, "prefix", self.prefix)
        check_choice(owner, "pooling", self.pooling, get_args(Pooling))
        check_choice(owner, "metric", self.metric, get_args(Metric))
        check_flag(owner, "normalize", self.normalize)
        check_choice(owner, "reduction", self.reduction, (None, *get_args(Reduction)))
        check_positive(owner, "max_tokens", self.max_tokens)
        check_positive(owner, "dims", self.dims)
        check_positive(owner, "max_chars", self.max_chars)
        check_choice(owner, "storage", self.storage, get_args(Storage))
        check_published(owner, self)

    @property
    def status_name(self) -> str:
        """Name of the status column, where there is one."""
        return f"{self.name}_status"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns the feature reads."""
        user = () if self.noise is None else (self.noise.user,)
        return tuple(dict.fromkeys((*self.text_columns, *user)))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Those of `columns` whose values a model reads."""
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
            if key not in self._LABELS and key != "of" and self._UNCHANGED.get(key, ...) != value
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
    def text_columns(self) -> tuple[str, ...]:
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
        check_choice(owner, "order", self.order, ("newest_first", "oldest_first"))
        check_choice(owner, "combine", self.combine, ("mean", "concat"))
        check_positive(owner, "last_n", self.last_n)
        check_text(owner, "separator", self.separator)
        if is_number(self.half_life):
            object.__setattr__(self, "half_life", float(self.half_life))  # 2 and 2.0 are one declaration
        wrong = not is_number(self.half_life) or not self.half_life > 0  # type: ignore[operator]
        if self.half_life is not None and (self.combine == "concat" or wrong):
            raise DeclarationError(
                f"{owner}: half_life must be a positive number of events and needs combine='mean', "
                f"got half_life={self.half_life!r} with combine={self.combine!r}."
            )

    @property
    def text_columns(self) -> tuple[str, ...]:
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
        check_name("feature", self.name)
        owner = f"feature {self.name!r}"
        check_choice(owner, "metric", self.metric, get_args(Metric))
        check_flag(owner, "status", self.status)
        check_text(owner, "description", self.description)
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


@dataclass(frozen=True, kw_only=True)
class GeneratedEmbeddingFeature(_Encoded):
    """The vector of what another feature writes: columns -> generator -> text -> encoder.

    The text is written once for both features. A list of tags is joined by ``", "``, JSON is encoded as it is written.

    Attributes:
        of: The feature that writes the text; its columns are read. It need not be published itself.
    """

    of: TokenFeature

    kind: ClassVar[str] = "generated_embedding"

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = f"feature {self.name!r}"
        object.__setattr__(self, "of", rebuilt(owner, "of", self.of, TokenFeature))
        if isinstance(self.of.output, Scores):
            raise DeclarationError(f"{owner}: feature {self.of.name!r} gives numbers; of must write a text.")

    @property
    def text_columns(self) -> tuple[str, ...]:
        return self.of.columns


TextFeature: TypeAlias = EmbeddingFeature | HistoryEmbeddingFeature | GeneratedEmbeddingFeature
