"""Whether a value is what its feature declares, and whether two are the same."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from llmrec_plugin.pipeline.columns import Written, fallback_of
from llmrec_plugin.specs import (
    Choice,
    Feature,
    Json,
    NetworkFeature,
    Scores,
    ShortText,
    SimilarityFeature,
    Tags,
    TokenFeature,
)
from llmrec_plugin.specs.schemas import misfit
from llmrec_plugin.testing.outcomes import fail

ROUNDING = 1e-5
"""Of a value's length: what the order of sums may change in float32."""
_UNIT = 1e-3


def tolerance(precision: str = "fp32") -> float:
    """How far two computations of one value may differ, as a share of its length."""
    return ROUNDING if precision == "fp32" else 2e-2


def difference(left: Any, right: Any) -> float:
    """How far two values differ, as a share of the longer's length; infinite for values that cannot be compared."""
    if left is None or right is None:
        return 0.0 if left is right else math.inf
    if isinstance(left, Written) and isinstance(right, Written):
        return _written_difference(left, right)
    try:
        a, b = (np.asarray(value, dtype=np.float64) for value in (left, right))
    except (TypeError, ValueError):
        return 0.0 if left == right else math.inf
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    scale = max(1.0, float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(a - b)) / scale


def _written_difference(left: Written, right: Written) -> float:
    if isinstance(left.value, float) or (isinstance(left.value, tuple) and left.value and _is_number(left.value[0])):
        return difference(left.value, right.value)
    if left.value != right.value or left.ids != right.ids:
        return math.inf
    return difference(left.scores, right.scores) if left.scores else 0.0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def first_difference(left: Sequence[Any], right: Sequence[Any], allowed: float) -> tuple[int, float] | None:
    """The first row whose values differ by more than `allowed`, and by how much."""
    if len(left) != len(right):
        return min(len(left), len(right)), math.inf
    for row, (a, b) in enumerate(zip(left, right, strict=True)):
        found = difference(a, b)
        if found > allowed:
            return row, found
    return None


def shown(value: Any) -> str:
    """A value, shortened, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {np.array2string(value.ravel()[:4], precision=5)}"
    return repr(value.value if isinstance(value, Written) else value)[:80]


def check_value(feature: Feature, value: Any, status: str, what: str, *, labels: Sequence[str] = ()) -> None:
    """Checks that a value is what the declaration and the row's status say.

    Args:
        feature: The declaration.
        value: Of the row.
        status: Of the row.
        what: Which row it is, for messages.
        labels: The labels of the model, for tags without a vocabulary.

    Raises:
        CheckFailed: It is not.
    """
    if status not in ("ok", "empty", "invalid", "fallback"):
        fail("a status ok, empty, invalid or fallback", f"{status!r} for {what}", "Mend what computes the rows.")
    if status == "ok":
        problem = _problem(feature, value, labels)
        if problem:
            fail(problem, f"{shown(value)} for {what}", "Mend the declaration, or what computes the value.")
        return
    expected = _stand_in(feature, status)
    if difference(value, expected) > 0:
        fail(
            f"{shown(expected)} for a row of status {status!r}, as is declared",
            f"{shown(value)} for {what}",
            "Declare another on_empty, on_deadline or fallback, or mend what computes the value.",
        )


def _stand_in(feature: Feature, status: str) -> Any:
    """What stands for a value that there is none of."""
    if status == "invalid" or isinstance(feature, SimilarityFeature):
        return None
    if isinstance(feature, TokenFeature):
        return fallback_of(feature) if status == "fallback" else None
    kind = feature.on_empty if status == "empty" else feature.on_deadline
    if kind == "null":
        return None
    return 0.0 if feature.dims is None else np.zeros(feature.dims, dtype=np.float32)


def _problem(feature: Feature, value: Any, labels: Sequence[str]) -> str:
    """What was expected instead of the value; empty if nothing."""
    if isinstance(feature, TokenFeature):
        return _problem_of_written(feature, value, labels)
    if isinstance(feature, SimilarityFeature) or (isinstance(feature, NetworkFeature) and feature.dims is None):
        if not isinstance(value, float) or not math.isfinite(value):
            return "a finite float"
        cosine = isinstance(feature, SimilarityFeature) and feature.metric == "cosine"
        return "a cosine in [-1, 1]" if cosine and abs(value) > 1 + ROUNDING else ""
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != (feature.dims,):
        return f"a float32 vector of shape ({feature.dims},)"
    if not np.isfinite(value).all():
        return "finite components"
    unit = getattr(feature, "normalize", False) and feature.noise is None
    return "a vector of unit L2 norm" if unit and abs(float(np.linalg.norm(value)) - 1) > _UNIT else ""


def _problem_of_written(feature: TokenFeature, value: Any, labels: Sequence[str]) -> str:
    output, content = feature.output, getattr(value, "value", None)
    if isinstance(output, Scores):
        several = output.of is None
        numbers = content if several and isinstance(content, tuple) else (content,)
        if several and len(numbers) != len(output.answers):
            return f"a probability for each of {len(output.answers)} answers"
        fits = all(isinstance(number, float) and -ROUNDING <= number <= 1 + ROUNDING for number in numbers)
        return "" if fits else "probabilities in [0, 1]"
    if isinstance(output, Tags):
        return _problem_of_tags(output, value, labels)
    if isinstance(output, Choice):
        return "" if content in output.options else f"one of the options {output.options!r:.80}"
    if not isinstance(content, str):
        return "a string"
    if isinstance(output, Json):
        return _problem_of_json(output, content)
    assert isinstance(output, ShortText)
    fits = output.min_chars <= len(content) <= output.max_chars
    return "" if fits else f"a text of {output.min_chars} to {output.max_chars} characters"


def _problem_of_tags(output: Tags, value: Any, labels: Sequence[str]) -> str:
    known = tuple(output.vocabulary or labels)
    tags = getattr(value, "value", None)
    if not isinstance(tags, tuple) or len(tags) > output.max_items or len(set(tags)) < len(tags):
        return f"at most {output.max_items} distinct tags"
    if known and not set(tags) <= set(known):
        return f"tags of the vocabulary, such as {known[0]!r}"
    if output.ids and known and tuple(known[number] for number in value.ids) != tags:
        return "ids that are the tags' positions in the vocabulary"
    return "a score for each tag" if output.scores and len(value.scores) != len(tags) else ""


def _problem_of_json(output: Json, content: str) -> str:
    try:
        parsed = json.loads(content)
    except ValueError:
        return "JSON"
    problem = misfit(json.loads(output.schema), parsed)
    return f"JSON of the declared schema ({problem})" if problem else ""
