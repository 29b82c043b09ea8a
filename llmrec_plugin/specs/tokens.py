"""Features whose values a model writes: tags, a choice, a short text, JSON, the score of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs.checks import (
    PIPELINE_VERSION,
    check_choice,
    check_flag,
    check_int,
    check_name,
    check_positive,
    check_text,
    digest,
    is_number,
    rebuilt,
    strings,
    template_columns,
    to_spec,
)
from llmrec_plugin.specs.privacy import Redaction
from llmrec_plugin.specs.prompts import Prompt
from llmrec_plugin.specs.schemas import check_schema

DecodingMethod: TypeAlias = Literal["greedy", "beam", "sample"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
        method: ``greedy``: the most probable; ``beam``: the sequence of the highest score among `beams` kept ones;
            ``sample``: drawn. A draw depends on `seed` and on the row's own input, so a value can be computed again.
        max_new_tokens: Tokens that are written at most.
        beams: Sequences that ``beam`` keeps.
        length_penalty: ``beam`` divides the log probability by ``length ** length_penalty``.
        temperature: ``sample`` divides the logits by it.
        top_k: ``sample`` draws from this many of the most probable tokens; None from all.
        top_p: ``sample`` draws from the fewest tokens whose probabilities sum to it.
        repetition_ngram: No sequence of this many tokens is written twice in a row's output; 0 allows it.
        seed: Of the draws.
    """

    method: DecodingMethod = "greedy"
    max_new_tokens: int = 64
    beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_ngram: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        owner = "decoding"
        check_choice(owner, "method", self.method, get_args(DecodingMethod))
        check_positive(owner, "max_new_tokens", self.max_new_tokens)
        check_positive(owner, "beams", self.beams)
        check_int(owner, "repetition_ngram", self.repetition_ngram, 0)
        check_int(owner, "seed", self.seed, 0)
        if (self.method == "beam") != (self.beams > 1):
            raise DeclarationError(f"{owner}: method='beam' needs beams of 2 or more, and only that method has them.")
        if self.top_k is not None:
            check_positive(owner, "top_k", self.top_k)
        if not is_number(self.temperature) or not self.temperature > 0:
            raise DeclarationError(f"{owner}: temperature must be positive, got {self.temperature!r}.")
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise DeclarationError(f"{owner}: top_p must be in (0, 1], got {self.top_p!r}.")
        if not is_number(self.length_penalty):
            raise DeclarationError(f"{owner}: length_penalty must be a number, got {self.length_penalty!r}.")
        for field in ("temperature", "top_p", "length_penalty"):
            object.__setattr__(self, field, float(getattr(self, field)))  # 1 and 1.0 are one declaration
        if self.method != "sample" and (self.temperature, self.top_k, self.top_p) != (1.0, None, 1.0):
            raise DeclarationError(f"{owner}: temperature, top_k and top_p need method='sample'.")


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Some of a closed vocabulary, as ``Array(String)``.

    Attributes:
        vocabulary: All tags. Empty: the labels of a model that scores labels.
        max_items: Tags of a value at most; a model that writes stops there, one that scores keeps the best.
        min_score: A model that scores labels keeps tags of at least this probability, or the model's own threshold
            of each label where None.
        ids: Whether there is a second column ``<name>_ids``, ``Array(Int64)``: positions in the vocabulary.
        scores: Whether there is a column ``<name>_scores``, ``Array(Float32)``: the probability of each tag; only
            for models that score labels.
    """

    vocabulary: tuple[str, ...] = ()
    max_items: int = 8
    min_score: float | None = None
    ids: bool = False
    scores: bool = False

    kind: ClassVar[str] = "tags"

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocabulary", strings("tags", "vocabulary", self.vocabulary, least=0))
        check_positive("tags", "max_items", self.max_items)
        check_flag("tags", "ids", self.ids)
        check_flag("tags", "scores", self.scores)
        if self.min_score is not None and not (is_number(self.min_score) and 0 <= self.min_score <= 1):
            raise DeclarationError(f"tags: min_score must be in [0, 1] or None, got {self.min_score!r}.")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Exactly one of `options`, as ``String``."""

    options: tuple[str, ...]

    kind: ClassVar[str] = "choice"

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", strings("choice", "options", self.options, least=2))


@dataclass(frozen=True, kw_only=True)
class ShortText:
    """A text, as ``String``.

    Attributes:
        max_chars: A longer one is cut at the last word that fits.
        min_chars: A shorter one is invalid.
        stop: The text ends before the first of these strings.
        prefix: A marker such as ``"[newtitle]"`` that the model is asked to write first and that is taken off; a text
            without it is invalid. The empty string asks for none.
    """

    max_chars: int = 500
    min_chars: int = 1
    stop: tuple[str, ...] = ("\n",)
    prefix: str = ""

    kind: ClassVar[str] = "text"

    def __post_init__(self) -> None:
        check_positive("text", "max_chars", self.max_chars)
        check_int("text", "min_chars", self.min_chars, 0)
        check_text("text", "prefix", self.prefix)
        object.__setattr__(self, "stop", strings("text", "stop", self.stop, least=0))


@dataclass(frozen=True, kw_only=True)
class Json:
    """A JSON value that fits a schema, as ``String`` in canonical form (sorted keys, no spaces).

    Attributes:
        schema: JSON Schema, as a mapping or as JSON text; see `llmrec_plugin.specs.schemas` for what is understood.
    """

    schema: str

    kind: ClassVar[str] = "json"

    def __post_init__(self) -> None:
        schema = self.schema
        try:
            value = json.loads(schema) if isinstance(schema, str) else dict(schema)
            if not isinstance(value, dict):
                raise ValueError(f"a schema is a mapping, got {type(value).__name__}")
            text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        except (TypeError, ValueError) as exc:
            raise DeclarationError(f"json: schema must be JSON Schema, got {schema!r:.80}: {exc}.") from exc
        check_schema("json", value)
        object.__setattr__(self, "schema", text)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Probabilities of given answers, from one pass over the prompt; nothing is written.

    The probability of an answer is that of its tokens after the prompt, normalized over `answers`.

    Attributes:
        answers: The answers, written exactly as they would follow the prompt, e.g. ``(" yes", " no")``.
        of: The value is this answer's probability, ``Float32``; None gives all, ``Array(Float32)`` in their order.
    """

    answers: tuple[str, ...]
    of: str | None = None

    kind: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", strings("scores", "answers", self.answers, least=2))
        if self.of is not None and self.of not in self.answers:
            raise DeclarationError(f"scores: of must be one of {self.answers!r} or None, got {self.of!r}.")


Output: TypeAlias = Tags | Choice | ShortText | Json | Scores


@dataclass(frozen=True, kw_only=True)
class TokenFeature:
    """One typed value per row that a model writes: columns -> prompt -> generator -> value.

    Attributes:
        name: Name of the feature, of its Feast view and of its output column, by convention
            ``<entity>_<content>_<kind>``, e.g. ``item_description_tags``.
        entity: Name of the Feast entity whose rows are read and stored; None for a feature of request time only.
        model: Name of the generator or of the model that scores labels.
        output: What the value is.
        prompt: What the model reads: instructions with slots, filled with the columns of the slots' names.
        text: Instead of a prompt, for models that were trained on plain input: a template over the columns, as in
            `EmbeddingFeature`.
        columns_of: Slot -> column where the names differ.
        decoding: How tokens are chosen.
        fallback: The value of a row whose output is invalid or that missed its deadline: a list of strings for `Tags`,
            a string for `Choice`, `ShortText` and `Json`, a number or a list of numbers for `Scores`; None is null.
        max_chars: Texts are cut to this many characters before tokenization, to bound time.
        status: Whether the views have a column ``<name>_status``: ``"ok"``: computed; ``"cached"``: computed before;
            ``"fallback"``: `fallback` stands for a value; ``"invalid"``: there is none; ``"empty"``: no input.
        deadline_ms: Request time only: milliseconds a row may wait, None for as long as it takes.
        redact: Personal data that is taken out of the row's values before anything else reads them; slots for numbers
            stay as they are.
        description: For people; shown in the Feast UI.
    """

    name: str
    entity: str | None
    model: str
    output: Output
    prompt: Prompt | None = None
    text: str | None = None
    columns_of: tuple[tuple[str, str], ...] = ()
    decoding: Decoding = Decoding()
    fallback: Any = None
    max_chars: int = 20_000
    status: bool = False
    deadline_ms: int | None = None
    redact: Redaction | None = None
    description: str = ""

    kind: ClassVar[str] = "tokens"
    _LABELS: ClassVar[frozenset[str]] = frozenset({"name", "entity", "description", "model", "status", "deadline_ms"})
    _UNCHANGED: ClassVar[dict[str, object]] = {"redact": None}
    """Fields younger than stored fingerprints, with the value that leaves the numbers as they were."""

    def __post_init__(self) -> None:
        check_name("feature", self.name)
        owner = f"feature {self.name!r}"
        if self.entity is not None and (not isinstance(self.entity, str) or not self.entity):
            raise DeclarationError(f"{owner}: entity must be a Feast entity's name or None, got {self.entity!r}.")
        if not isinstance(self.model, str) or not self.model:
            raise DeclarationError(f"{owner}: model must be the name of a registered model, got {self.model!r}.")
        set_ = object.__setattr__
        set_(self, "output", rebuilt(owner, "output", self.output, *get_args(Output)))
        set_(self, "decoding", rebuilt(owner, "decoding", self.decoding, Decoding))
        if self.prompt is not None:
            set_(self, "prompt", rebuilt(owner, "prompt", self.prompt, Prompt))
        if (self.prompt is None) == (self.text is None):
            raise DeclarationError(f"{owner}: declare either prompt or text.")
        if self.text is not None:
            template_columns(self.text, owner=owner)
        set_(self, "columns_of", self._renamed(owner))
        set_(self, "fallback", _checked_fallback(owner, self.output, self.fallback))
        check_positive(owner, "max_chars", self.max_chars)
        check_flag(owner, "status", self.status)
        check_text(owner, "description", self.description)
        if self.deadline_ms is not None:
            check_positive(owner, "deadline_ms", self.deadline_ms)
        if self.redact is not None:
            set_(self, "redact", rebuilt(owner, "redact", self.redact, Redaction))

    def _renamed(self, owner: str) -> tuple[tuple[str, str], ...]:
        try:
            pairs = dict(self.columns_of)
        except (TypeError, ValueError) as exc:
            raise DeclarationError(
                f"{owner}: columns_of must be pairs of slot and column, got {self.columns_of!r:.80}."
            ) from exc
        slots = {slot.name for slot in self.prompt.slots} if self.prompt else set()
        wrong = [slot for slot, column in pairs.items() if slot not in slots or not str(column).isidentifier()]
        if wrong:
            raise DeclarationError(f"{owner}: columns_of names {wrong}; expected slots of the prompt: {sorted(slots)}.")
        return tuple(sorted(pairs.items()))

    @property
    def status_name(self) -> str:
        """Name of the status column, where there is one."""
        return f"{self.name}_status"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns the feature reads."""
        if self.prompt is None:
            return template_columns(str(self.text))
        renamed = dict(self.columns_of)
        return tuple(dict.fromkeys(renamed.get(slot.name, slot.name) for slot in self.prompt.slots))

    def generation_fingerprint(self, artifact_id: str) -> str:
        """Covers what maps one row's input to its value; the cache key of that value."""
        prompt = None if self.prompt is None else self.prompt.fingerprint
        return digest([PIPELINE_VERSION, artifact_id, prompt, to_spec(self.output), to_spec(self.decoding)])

    def fingerprint(self, artifact_id: str) -> str:
        """Covers everything that changes the values of this feature; 64 hex digits."""
        spec = {
            key: value
            for key, value in to_spec(self).items()
            if key not in self._LABELS and self._UNCHANGED.get(key, ...) != value
        }
        return digest([PIPELINE_VERSION, artifact_id, spec])


def _checked_fallback(owner: str, output: Output, value: Any) -> Any:
    """The fallback as plain JSON data: tuples for lists, floats for numbers."""
    if value is None:
        return None
    fits: bool
    if isinstance(output, Tags):
        value = tuple(value) if isinstance(value, (list, tuple)) else value
        known = set(output.vocabulary)
        fits = isinstance(value, tuple) and all(isinstance(tag, str) and (not known or tag in known) for tag in value)
        expected = "a list of tags of the vocabulary"
    elif isinstance(output, Choice):
        fits, expected = value in output.options, f"one of {output.options!r}"
    elif isinstance(output, Json):
        if isinstance(value, (Mapping, list)):
            value = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        fits, expected = isinstance(value, str), "a JSON value"
    elif isinstance(output, ShortText):
        fits, expected = isinstance(value, str), "a string"
    elif output.of is not None:
        fits, expected = is_number(value), "a number"
        value = float(value) if fits else value
    else:
        value = tuple(value) if isinstance(value, (list, tuple)) else value
        fits = isinstance(value, tuple) and len(value) == len(output.answers) and all(map(is_number, value))
        expected = f"{len(output.answers)} numbers"
        value = tuple(map(float, value)) if fits else value
    if not fits:
        raise DeclarationError(f"{owner}: fallback must be {expected} or None, got {value!r}.")
    return value
