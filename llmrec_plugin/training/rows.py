"""The rows to train on, and their split into parts that share no near duplicates."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.errors import InputError

LARGE_GROUP = 40
"""A group with more rows is only trained on: in a small validation part it would weigh more than all else."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SHORTEST_SHARED = 40
"""Characters of the shortest first sentence that makes two rows near duplicates; shorter ones are often formulas."""

_PREFIX = re.compile(r"^(?:python3?-|lib)")
_SUFFIX = re.compile(
    r"(?:-(?:all|bin|cli|client|common|core|data|dbg|dev|doc|docs|examples|extra|extras|gtk|gui|headers|java|l10n|lang|"
    r"nox|perl|plugin|plugins|server|source|static|test|tests|tools|util|utils|v\d+)|[-.\d]*\d[a-z]?)$"
)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Row numbers of each part, increasing int64; no group of near duplicates is in two of them.

    Attributes:
        train: Rows to learn from.
        validation: Rows that decide when to stop and where thresholds lie.
        test: Rows that are only measured.
        left_out: Rows of no part: near duplicates of those that the caller held out.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    left_out: np.ndarray

    def sizes(self) -> dict[str, int]:
        """Rows of each part, by its name."""
        return {name: len(getattr(self, name)) for name in ("train", "validation", "test", "left_out")}


def read_rows(place: Path) -> list[dict[str, Any]]:
    """The objects of a ``.jsonl`` or ``.jsonl.gz`` file, or of all such files of a folder, in order of their names.

    Raises:
        InputError: There is none, or a line is no JSON object.
    """
    files = sorted({*place.glob("*.jsonl"), *place.glob("*.jsonl.gz")}) if place.is_dir() else [place]
    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            with (
                gzip.open(path, "rt", encoding="utf-8")
                if path.suffix == ".gz"
                else path.open(encoding="utf-8") as lines
            ):
                rows += [json.loads(line) for line in lines if line.strip()]
        except (OSError, EOFError, ValueError) as exc:
            raise InputError(f"{path} cannot be read: {exc}. Expected one JSON object a line, UTF-8.") from exc
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{place}: expected one JSON object a line in .jsonl or .jsonl.gz, found {len(rows)} lines.")
    return rows


def texts_of(rows: Iterable[Mapping[str, Any]], column: str) -> list[str]:
    """The texts of a column, runs of white space made one space; empty where there is none.

    Raises:
        InputError: No row has the column.
    """
    found = [row.get(column) for row in rows]
    if not any(isinstance(value, str) for value in found):
        raise InputError(f"No row has a text in the column {column!r}.")
    return [" ".join(value.split()) if isinstance(value, str) else "" for value in found]


def first_sentence(text: str) -> str:
    """The text up to its first full stop that ends a sentence."""
    return _SENTENCE_END.split(text, maxsplit=1)[0]


def stem(name: str) -> str:
    """What package names of one origin share: ``libfoo-dev``, ``libfoo2`` and ``foo-doc`` give ``foo``."""
    kept = _PREFIX.sub("", name.lower())
    while (shorter := _SUFFIX.sub("", kept)) != kept and len(shorter) > 1:
        kept = shorter
    return kept


def group_rows(texts: Sequence[str], names: Sequence[str] | None = None) -> np.ndarray:
    """The number of each row's group of near duplicates, (n,) int64.

    Two rows are near duplicates if their texts or their texts' first sentences are equal, or the stems of their names,
    and so are the near duplicates of near duplicates.
    """
    parent = list(range(len(texts)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    seen: dict[tuple[str, str], int] = {}
    for row, text in enumerate(texts):
        for key in _keys(text, names[row] if names else ""):
            parent[root(row)] = root(seen.setdefault(key, row))
    roots = np.array([root(row) for row in range(len(texts))])
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def _keys(text: str, name: str) -> Iterator[tuple[str, str]]:
    lowered = text.lower()
    if lowered:
        yield "text", lowered
    sentence = first_sentence(lowered)
    if len(sentence) >= _SHORTEST_SHARED:
        yield "sentence", sentence
    if name:
        yield "stem", stem(name)


def split_rows(
    groups: np.ndarray,
    *,
    held_out: np.ndarray | None = None,
    validation: float = 0.06,
    test: float = 0.1,
    seed: int = 0,
) -> Split:
    """Splits rows by their groups.

    Args:
        groups: Group of each row, (n,) int64.
        held_out: Rows to test on, (n,) bool; their near duplicates are in no part. None: drawn.
        validation: Share of the other rows that validate.
        test: Share of all rows that are tested on, where `held_out` is None.
        seed: Of the draws.

    Raises:
        InputError: A part would be empty.
    """
    size = np.bincount(groups)
    free = np.ones(len(size), dtype=bool)
    tested = np.zeros(len(groups), dtype=bool)
    if held_out is not None:
        free[groups[held_out]] = False
        tested = held_out.copy()
    blocked = ~free[groups] & ~tested
    order = np.random.default_rng(seed).permutation(len(size))
    order = order[free[order] & (size[order] <= LARGE_GROUP)]
    taken: dict[str, np.ndarray] = {}
    shares = {"test": test if held_out is None else 0.0, "validation": validation}
    usable = int(size[free].sum())
    for part, share in shares.items():
        count = int(np.searchsorted(np.cumsum(size[order]), share * usable)) if share else 0
        taken[part] = np.isin(groups, order[:count])
        order = order[count:]
    tested |= taken["test"]
    trained = ~(tested | taken["validation"] | blocked)
    parts = [np.flatnonzero(mask) for mask in (trained, taken["validation"], tested, blocked)]
    if not all(map(len, parts[:3])):
        raise InputError(
            f"{len(groups)} rows in {len(size)} groups of near duplicates leave {len(parts[0])} rows to train on, "
            f"{len(parts[1])} to validate and {len(parts[2])} to test; give more rows."
        )
    return Split(train=parts[0], validation=parts[1], test=parts[2], left_out=parts[3])


def limited(split: Split, groups: np.ndarray, *, train: int | None, test: int | None, seed: int = 0) -> Split:
    """A smaller split, for machines with less time.

    Args:
        split: The whole one.
        groups: Group of each row, (n,) int64.
        train: Training rows at most, one of each group first; and a tenth of it to validate. None: all.
        test: Test rows at most; None: all.
        seed: Of the draws.
    """
    draw = np.random.default_rng(seed)

    def some(rows: np.ndarray, most: int | None) -> np.ndarray:
        rows = draw.permutation(rows)
        if most is None or most >= len(rows):
            return np.sort(rows)
        order = np.argsort(groups[rows], kind="stable")
        ordered = groups[rows][order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        rank = np.empty(len(rows), dtype=np.int64)  # of a row in its group
        rank[order] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
        return np.sort(rows[np.argsort(rank, kind="stable")[:most]])

    return Split(
        train=some(split.train, train),
        validation=some(split.validation, None if train is None else max(train // 10, 1)),
        test=some(split.test, test),
        left_out=split.left_out,
    )


def count_labels(labels: Iterable[Sequence[str]]) -> dict[str, int]:
    """In how many rows each label is."""
    counts: dict[str, int] = defaultdict(int)
    for row in labels:
        for label in set(row):
            counts[label] += 1
    return dict(counts)
