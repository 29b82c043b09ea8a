"""The check that goes through Feast: published by one process, read by another that never saw the repo."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.pipeline.columns import Written
from llmrec_plugin.pipeline.packing import unpack
from llmrec_plugin.specs import NetworkFeature, SimilarityFeature, TokenFeature
from llmrec_plugin.testing.checks.values import allowed_difference, ordinary_rows
from llmrec_plugin.testing.child import call_fresh
from llmrec_plugin.testing.outcomes import CheckSkipped, fail
from llmrec_plugin.testing.repos import plan_of
from llmrec_plugin.testing.subjects import Subject
from llmrec_plugin.testing.values import first_difference, shown

ROWS = 4
_PACKED = {"float16": 1e-3, "int8": 1e-2}
"""How far packing may move a vector, as a share of its length, where rounding falls otherwise."""
_REMEDY = (
    "What Feast stores and serves must be what is computed here. Compare with `feast apply` and `feast materialize` in "
    "a repo of your own, and with a process that has the registry only."
)


def feast_gives_the_same(subject: Subject) -> None:
    """Feast gives these values: materialized, on demand and in training rows, in a process that never saw the repo."""
    subject.bound()  # what cannot be computed is skipped
    rows = ordinary_rows(subject)[:ROWS]
    expected = subject.compute(rows).values
    plan = feast_plan(subject, rows)
    with tempfile.TemporaryDirectory(prefix="llmrec-check-") as folder:
        environ = {"LLMREC_CACHE": str(Path(folder) / "cache")}
        root = str(Path(folder) / "feast")
        Path(root).mkdir()
        answer = call_fresh(
            "llmrec_plugin.testing.feast_steps:publish_and_read", environ=environ, folder=root, plan=plan
        )
    compare_with_feast(subject, expected, answer)


def feast_plan(subject: Subject, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What to publish and to read; see `llmrec_plugin.testing.feast_steps.publish_and_read`.

    Raises:
        CheckSkipped: The feature reads stored features, whose views are not the kit's to make.
    """
    feature = subject.feature
    sides = [feature.left, feature.right] if isinstance(feature, SimilarityFeature) else []
    if isinstance(feature, NetworkFeature) and feature.entity is None:
        read = [name for name in feature.columns if name in subject.declared.features]
        if read:
            raise CheckSkipped(f"It reads {read[0]!r} from the store at request time; check that in a repo of yours.")
    plan = plan_of([*map(subject.feature_named, sides), feature], rows)
    if sides:  # which have this check of their own
        plan |= {"online": [f"{feature.name}:{feature.name}"], "historical": []}
    return plan


def compare_with_feast(subject: Subject, expected: list[Any], answer: dict[str, dict[str, list[Any]]]) -> None:
    """Checks that what Feast gave is what was computed.

    Raises:
        CheckFailed: A row differs.
    """
    feature: Any = subject.feature
    allowed = max(allowed_difference(subject), _PACKED.get(getattr(feature, "storage", "list"), 0.0))
    plain = [_comparable(value.value if isinstance(value, Written) else value) for value in expected]
    for way, columns in answer.items():
        for reference, values in columns.items():
            found = first_difference(plain, [_unpacked(feature, value) for value in values], allowed)
            if found is not None:
                row, _ = found
                what = shown(values[row]) if row < len(values) else "nothing"
                fail(f"{shown(plain[row])} for row {row}", f"{what} from Feast, {way}, {reference}", _REMEDY)


def _unpacked(feature: Any, value: Any) -> Any:
    if isinstance(value, bytes) and not isinstance(feature, (TokenFeature, SimilarityFeature)):
        return unpack([value], feature.storage, feature.dims, owner=feature.name)[0]
    return _comparable(value)


def _comparable(value: Any) -> Any:
    """Lists and tuples of strings as tuples, of numbers as arrays; NaN, which stands for null in frames, as None."""
    if isinstance(value, (list, tuple)):
        return tuple(value) if all(isinstance(item, str) for item in value) else np.asarray(value, dtype=np.float32)
    return None if isinstance(value, float) and value != value else value
