"""Checks of values: computed from rows, in this process, without the value cache."""

from __future__ import annotations

import copy
import gc
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.errors import LLMRecError
from llmrec_plugin.pipeline.columns import output_arrays, output_fields
from llmrec_plugin.specs import SimilarityFeature, TokenFeature
from llmrec_plugin.testing.outcomes import CheckSkipped, fail
from llmrec_plugin.testing.rows import Hostile, Row, columns_of, hostile_rows
from llmrec_plugin.testing.subjects import Outcome, Subject
from llmrec_plugin.testing.values import check_value, first_difference, shown, tolerance

ROWS = 12
WRITTEN_ROWS = 6
"""Of features that a generator writes, which takes longer."""
THREADS = 4
_ORDER_REMEDY = (
    "A row's value must depend on that row alone: look for state that is kept between rows or calls, for padding that "
    "is not masked, and for rows that are sorted and not put back."
)


def ordinary_rows(subject: Subject) -> list[Row]:
    """Rows that nothing is wrong with."""
    return subject.rows(WRITTEN_ROWS if isinstance(subject.declaration, TokenFeature) else ROWS)


def allowed_difference(subject: Subject) -> float:
    """How far two computations of a value may differ."""
    feature = subject.feature
    names = (feature.left, feature.right) if isinstance(feature, SimilarityFeature) else ()
    subjects = [Subject(subject.feature_named(name), subject.declared) for name in names] or [subject]
    precisions = {getattr(item.artifact().manifest, "precision", "fp32") for item in subjects}
    return max(map(tolerance, precisions))


def check_same(subject: Subject, expected: Outcome, got: Outcome, what: str, remedy: str) -> None:
    """Checks that rows have the same values and statuses as before.

    Raises:
        CheckFailed: A row differs.
    """
    found = first_difference(expected.values, got.values, allowed_difference(subject))
    if found is None and expected.statuses != got.statuses:
        pairs = zip(expected.statuses, got.statuses, strict=True)
        row = next(number for number, (a, b) in enumerate(pairs) if a != b)
        fail(f"status {expected.statuses[row]!r} of row {row}", f"{got.statuses[row]!r} {what}", remedy)
    if found is not None:
        row, by = found
        sides = [shown(side.values[row]) if row < len(side.values) else "nothing" for side in (expected, got)]
        fail(f"{sides[0]} for row {row}", f"{sides[1]} {what}, a difference of {by:.2g} of its length", remedy)


def values_have_the_declared_form(subject: Subject) -> None:
    """One value per row, of the declared shape and type, finite; columns of the declared arrow types."""
    rows = ordinary_rows(subject)
    outcome = subject.compute(rows)
    if len(outcome.values) != len(rows) or len(outcome.statuses) != len(rows):
        fail(f"{len(rows)} values and statuses", f"{len(outcome.values)} and {len(outcome.statuses)}", _ORDER_REMEDY)
    _check_form(subject, outcome, [f"row {number}" for number in range(len(rows))])
    if "ok" not in outcome.statuses:
        fail(
            "a value for at least one ordinary row",
            f"only statuses {sorted(set(outcome.statuses))}",
            "Pass rows= with rows that the feature has values for, or mend prompt, vocabulary or model.",
        )
    if not isinstance(subject.declaration, TokenFeature) and set(outcome.statuses) != {"ok"}:
        row = next(number for number, status in enumerate(outcome.statuses) if status != "ok")
        fail("a value for every ordinary row", f"status {outcome.statuses[row]!r} of row {row}", "Pass rows= that fit.")
    if not isinstance(subject.declaration, SimilarityFeature):
        feature: Any = subject.declaration
        arrays = output_arrays(feature, outcome.values, outcome.statuses)
        for field, array in zip(output_fields(feature), arrays, strict=True):
            if array.type != field.type or len(array) != len(rows):
                fail(f"{len(rows)} x {field.type} in column {field.name!r}", f"{len(array)} x {array.type}", "")


def _check_form(subject: Subject, outcome: Outcome, names: Sequence[str]) -> None:
    artifact = subject.artifact() if isinstance(subject.declaration, TokenFeature) else None
    labels = artifact.manifest.labels if isinstance(artifact, Artifact) else ()
    for name, value, status in zip(names, outcome.values, outcome.statuses, strict=True):
        check_value(subject.feature, value, status, name, labels=labels)


def order_is_kept(subject: Subject) -> None:
    """Rows in another order give the same values in that order."""
    rows = ordinary_rows(subject)
    outcome = subject.compute(rows)
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    shuffled = subject.compute([rows[number] for number in order])
    expected = Outcome(*([column[number] for number in order] for column in outcome))
    check_same(subject, expected, shuffled, "when the rows are given in another order", _ORDER_REMEDY)


def row_alone_equals_row_in_batch(subject: Subject) -> None:
    """Each row has the value alone that it has among others."""
    rows = ordinary_rows(subject)
    outcome = subject.compute(rows)
    alone = [subject.compute([row]) for row in rows]
    together = Outcome(
        [value for item in alone for value in item.values], [status for item in alone for status in item.statuses]
    )
    check_same(subject, outcome, together, "when it is computed alone", _ORDER_REMEDY)


def duplicates_are_equal(subject: Subject) -> None:
    """Equal rows have equal values, and a second run gives what the first gave."""
    rows = ordinary_rows(subject)[:4]
    once = subject.compute(rows)
    twice = subject.compute([row for row in rows for _ in range(3)])
    expected = Outcome(*([item for item in column for _ in range(3)] for column in once))
    remedy = "Values must not be drawn or counted; seed a draw by the row's own input. " + _ORDER_REMEDY
    check_same(subject, expected, twice, "for its duplicate", remedy)
    check_same(subject, once, subject.compute(rows), "in a second run", remedy)


def hostile_values_follow_the_policy(subject: Subject) -> None:
    """Blank, huge, broken and misleading values give what is declared, raise nothing and touch no neighbour."""
    ordinary = ordinary_rows(subject)[:4]
    expected = subject.compute(ordinary)
    hostile = hostile_rows(subject.bound(), ordinary)
    mixed = [row for number, item in enumerate(hostile) for row in (item.row, ordinary[number % len(ordinary)])]
    try:
        outcome = subject.compute(mixed)
    except LLMRecError as exc:
        fail("a value or a status for every hostile row", f"{type(exc).__name__}: {exc}", _HOSTILE_REMEDY)
    except Exception as exc:  # a runtime of the plugin may raise anything
        fail("a value or a status for every hostile row", f"{type(exc).__name__}: {exc}", _HOSTILE_REMEDY)
    neighbours = Outcome(outcome.values[1::2], outcome.statuses[1::2])
    repeated = Outcome(*([column[n % len(ordinary)] for n in range(len(hostile))] for column in expected))
    check_same(subject, repeated, neighbours, "beside hostile rows", _ORDER_REMEDY)
    _check_hostile(subject, hostile, Outcome(outcome.values[::2], outcome.statuses[::2]))


_HOSTILE_REMEDY = (
    "One row must never fail the others: a row that cannot be read is 'invalid' and null. Mend the runtime or the "
    "tokenizer that raised."
)


def _check_hostile(subject: Subject, hostile: Sequence[Hostile], outcome: Outcome) -> None:
    _check_form(subject, outcome, [f"a row with {item.what}" for item in hostile])
    for item, status in zip(hostile, outcome.statuses, strict=True):
        if item.status is not None and status != item.status:
            fail(
                f"status {item.status!r} for a row with {item.what}",
                repr(status),
                "What is missing or cannot be read must not be computed as if it were a text.",
            )


def inputs_are_unchanged(subject: Subject) -> None:
    """The rows that were given are afterwards what they were."""
    columns = columns_of(ordinary_rows(subject))
    before = copy.deepcopy(columns)
    subject.compute_columns(columns)
    changed = [name for name, values in columns.items() if repr(values) != repr(before.get(name))]
    if changed or columns.keys() != before.keys():
        names = changed or sorted(columns.keys() ^ before.keys())
        fail("rows that are only read", f"changed column {names[0]!r}", "Copy what is changed; others use these rows.")


def threads_agree(subject: Subject) -> None:
    """Threads that compute at the same time, as requests do, get what one gets."""
    rows = ordinary_rows(subject)[:6]
    expected = subject.compute(rows)
    with ThreadPoolExecutor(THREADS) as pool:
        outcomes = list(pool.map(lambda _: subject.compute(rows, "on_demand"), range(2 * THREADS)))
    for outcome in outcomes:
        check_same(
            subject,
            expected,
            outcome,
            f"in one of {THREADS} threads",
            "Sessions and tokenizers are shared by all threads of a server: guard their state, or keep none.",
        )


SMALL, LARGE = 64, 256
_PER_ROW = 4_096
"""Bytes that bookkeeping may take for a row, besides 8 times its input and output."""


def memory_is_bounded(subject: Subject) -> None:
    """Memory of Python and numpy grows with the rows of a call by no more than their size, and is given back."""
    if isinstance(subject.declaration, TokenFeature) and not isinstance(subject.artifact(), Artifact):
        raise CheckSkipped("A generator would write for too long; its memory is bounded by its own batches.")
    rows = subject.rows(LARGE)
    subject.compute(rows[:SMALL])  # loads the model and fills what is kept for good
    size = _bytes(rows) / len(rows) + 4 * (getattr(subject.declaration, "dims", None) or 16)
    allowed, may_stay = 8 * size + _PER_ROW, size + _PER_ROW / 4
    tracemalloc.start()
    try:
        small, kept_small = _traced(subject, rows[:SMALL])
        large, kept_large = _traced(subject, rows)
    finally:
        tracemalloc.stop()
    grown, left = (large - small) / (LARGE - SMALL), (kept_large - kept_small) / LARGE
    if grown > allowed or left > may_stay:
        fail(
            f"at most {allowed:,.0f} bytes a row at work, and at most {may_stay:,.0f} when its value is gone",
            f"{left:,.0f} that are kept" if left > may_stay else f"{grown:,.0f} at work",
            "Compute in batches of bounded size, and keep nothing of a row when its value is given out.",
        )


def _traced(subject: Subject, rows: Sequence[Row]) -> tuple[int, int]:
    """Bytes at the peak of a call above where it began, and bytes in use afterwards."""
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    subject.compute(rows)
    _, peak = tracemalloc.get_traced_memory()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    return peak - before, after


def _bytes(value: Any) -> int:
    if isinstance(value, (list, tuple)):
        return 8 + sum(map(_bytes, value))
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return len(value) if isinstance(value, (str, bytes)) else 8
