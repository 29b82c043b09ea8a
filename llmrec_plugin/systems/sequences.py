"""Interactions as sequences of item ids, and the full ranking that sequence models are measured by.

Ids are those of `llmrec_plugin.networks`: an item at position p of the vocabulary has the id p + 1, and 0 is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import ITEM, TIME, USER, Dataset, Split, split_dataset

CUTS = (10, 50)
RULE = (
    "Each event of the part is one question: which item comes next, given what the user did before. All items of the "
    "vocabulary are ranked{seen}; ties by key, the later in the alphabet first. An item that is not in the vocabulary "
    "is a miss. Events of users without a known earlier item are left out, for the model and for popularity alike."
)

Score = Callable[[Sequence[np.ndarray]], np.ndarray]
"""From n histories, (length,) int64 each, oldest first, to a score of every item, (n, items) float32."""


@dataclass(frozen=True)
class Questions:
    """Events to be guessed.

    Attributes:
        histories: All that the user did before, ids oldest first, one (length,) int64 for each event.
        targets: What the user did, (n,) int64; 0 for an item that the vocabulary lacks.
        left_out: Events that have no history.
    """

    histories: list[np.ndarray]
    targets: np.ndarray
    left_out: int = 0

    def sample(self, size: int, seed: int) -> Questions:
        """At most `size` of them, drawn by a seed, in their order."""
        if len(self.targets) <= size:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.targets), size, replace=False))
        return Questions([self.histories[row] for row in rows], self.targets[rows], self.left_out)


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """A split as sequences.

    Attributes:
        items: The vocabulary, sorted.
        train: Each user's training events, ids oldest first, one (length,) int64 for each user.
        validation: Questions to choose with.
        test: Questions to measure with.
    """

    items: tuple[str, ...]
    train: list[np.ndarray]
    validation: Questions
    test: Questions

    def counts(self) -> np.ndarray:
        """Training events of each item, (items,) int64."""
        return np.bincount(np.concatenate(self.train), minlength=len(self.items) + 1)[1:]


def last_out_split(dataset: Dataset) -> Split:
    """Leave one out: each user's last event tests, the one before validates; users with fewer than 3 train only.

    Raises:
        InputError: No user has three events.
    """
    rows = dataset.interactions
    behind = rows.groupby(USER, sort=False).cumcount(ascending=False).to_numpy()
    enough = rows.groupby(USER, sort=False)[USER].transform("size").to_numpy() >= 3
    if not enough.any():
        raise InputError(f"data set {dataset.name!r}: leave-one-out needs a user with three events or more.")
    test, validation = enough & (behind == 0), enough & (behind == 1)
    parts = (~test & ~validation, validation, test)
    train, validation, test = (
        rows[part].drop(columns="part", errors="ignore").reset_index(drop=True) for part in parts
    )
    return Split(train=train, validation=validation, test=test)


def split_by(dataset: Dataset, how: str, seed: int) -> Split:
    """The split of the ``--split`` option: ``data`` (see `split_dataset`) or ``leave-one-out``."""
    return last_out_split(dataset) if how == "leave-one-out" else split_dataset(dataset, seed=seed)


def to_sequences(split: Split, items: Sequence[str] | None = None) -> Sequences:
    """A split as sequences of ids.

    Where there are times, a history is all that happened earlier, whatever part it is in, and of events of one moment
    none is in the history of another. Without times it is the user's events of the parts before, in their order.

    Args:
        split: The parts.
        items: The vocabulary; default: the items of the training part.

    Raises:
        InputError: No training event is left, or no event to validate or test with.
    """
    import pandas as pd

    vocabulary = tuple(sorted(set(split.train[ITEM]) if items is None else items))
    parts = (split.train, split.validation, split.test)
    rows = pd.concat([part.assign(part=number) for number, part in enumerate(parts)], ignore_index=True)
    timed = TIME in rows.columns
    if timed:
        rows = rows.sort_values(TIME, kind="stable", ignore_index=True)
    ids = pd.Categorical(rows[ITEM], categories=list(vocabulary)).codes.astype(np.int64) + 1
    part = rows["part"].to_numpy()
    moments = rows[TIME].astype("int64").to_numpy() if timed else part
    train: list[np.ndarray] = []
    asked: list[tuple[list[np.ndarray], list[int], list[int]]] = [([], [], []), ([], [], [])]
    for where in rows.groupby(USER, sort=True).indices.values():
        known = where[ids[where] > 0]
        mine = ids[known[part[known] == 0]]
        if len(mine):
            train.append(mine)
        for number, (histories, targets, left_out) in enumerate(asked, 1):
            before = known[part[known] <= number]
            for row in where[part[where] == number]:
                end = np.searchsorted(moments[before], moments[row])
                if end:
                    histories.append(ids[before[:end]])
                    targets.append(int(ids[row]))
                else:
                    left_out.append(int(row))
    questions = [
        Questions(histories, np.array(targets, dtype=np.int64), len(left_out)) for histories, targets, left_out in asked
    ]
    if not train or not all(len(part.targets) for part in questions):
        raise InputError(
            f"Sequences need training events, and events with a history to validate and test with; got {len(train)} "
            f"training users, {len(questions[0].targets)} and {len(questions[1].targets)} such events."
        )
    return Sequences(items=vocabulary, train=train, validation=questions[0], test=questions[1])


def windows(sequences: Sequence[np.ndarray], length: int, *, overlap: int = 0) -> list[np.ndarray]:
    """Cuts sequences into pieces of at most `length`, from the newest end; pieces of fewer than two are left out.

    Args:
        sequences: Ids, oldest first.
        length: Of the longest piece.
        overlap: How many of a piece's first ids end the piece before it.

    Raises:
        InputError: No piece is left.
    """
    step = length - overlap
    pieces = []
    for sequence in sequences:
        ends = range(len(sequence), overlap, -step)
        pieces += [sequence[max(0, end - length) : end] for end in ends]
    long = [piece for piece in pieces if len(piece) > 1]
    if not long:
        raise InputError("Sequences to learn from need a user with two training events or more, found none.")
    return long


def padded(sequences: Sequence[np.ndarray], length: int) -> np.ndarray:
    """The last `length` ids of each, zeros behind them, (n, longest) int64."""
    cut = [sequence[-length:] for sequence in sequences]
    ids = np.zeros((len(cut), max(map(len, cut), default=0)), dtype=np.int64)
    for row, sequence in enumerate(cut):
        ids[row, : len(sequence)] = sequence
    return ids


def batches_by_length(pieces: Sequence[np.ndarray], batch: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of `pieces` in batches of about equal lengths, in a drawn order; each an array of positions."""
    lengths = np.array([len(piece) for piece in pieces])
    order = np.lexsort((rng.random(len(lengths)), lengths))
    found = [order[start : start + batch] for start in range(0, len(order), batch)]
    return [found[position] for position in rng.permutation(len(found))]


def ranks(scores: np.ndarray, targets: np.ndarray, seen: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """The rank of each target among all items, from 1; a target that the vocabulary lacks ranks behind all.

    Args:
        scores: (n, items) float32, higher is better.
        targets: Ids, (n,) int64.
        seen: Ids that are not ranked, for each row; the target itself always is.

    Raises:
        InputError: A score is NaN, which has no rank.
    """
    if np.isnan(scores).any():
        raise InputError("ranks: a score is NaN, which has no rank; the training may have diverged.")
    found = np.full(len(targets), scores.shape[1] + 1, dtype=np.int64)
    for row, target in enumerate(targets):
        if target == 0:
            continue
        values, mine = scores[row], scores[row, target - 1]
        ahead = values > mine
        ahead[target:] |= values[target:] == mine
        if seen is not None:
            ahead[seen[row] - 1] = False
        found[row] = 1 + int(ahead.sum())
    return found


def summary(found: np.ndarray) -> dict[str, float]:
    """Hit rate and NDCG at `CUTS` from ranks; with one target, NDCG is ``1 / log2(rank + 1)`` of a hit."""
    values: dict[str, float] = {}
    for cut in CUTS:
        hits = found <= cut
        values[f"hr@{cut}"] = float(hits.mean())
        values[f"ndcg@{cut}"] = float((hits / np.log2(found + 1)).mean())
    return values


def measured(score: Score, questions: Questions, *, exclude_seen: bool, batch: int = 256) -> dict[str, float]:
    """The measures of `summary` of a full ranking."""
    found = []
    for start in range(0, len(questions.targets), batch):
        histories, targets = questions.histories[start : start + batch], questions.targets[start : start + batch]
        found.append(ranks(score(histories), targets, histories if exclude_seen else None))
    return summary(np.concatenate(found))


def quality_of(score: Score, sequences: Sequences, *, exclude_seen: bool, evaluated: int, seed: int) -> dict[str, Any]:
    """What ``quality.json`` says of a sequence model: the rule, the counts, and the ranking beside popularity's.

    Args:
        score: Of the model.
        sequences: The split.
        exclude_seen: Whether items of the history are not ranked.
        evaluated: Test events at most, drawn by `seed`.
        seed: See `evaluated`.
    """
    asked = sequences.test.sample(evaluated, seed)
    counts = sequences.counts().astype(np.float32)

    def popularity(histories: Sequence[np.ndarray]) -> np.ndarray:
        return np.broadcast_to(counts, (len(histories), len(counts)))

    return {
        "rule": RULE.format(seen=" but those of the history" if exclude_seen else ""),
        "items": len(sequences.items),
        "training_events": int(counts.sum()),
        "test_events": len(sequences.test.targets),
        "evaluated_events": len(asked.targets),
        "events_without_history": sequences.test.left_out,
        "events_with_unknown_item": int((asked.targets == 0).sum()),
        "test": measured(score, asked, exclude_seen=exclude_seen),
        "baselines": {"popularity": measured(popularity, asked, exclude_seen=exclude_seen)},
    }


def fingerprint(sequences: Sequences) -> str:
    """A hash of vocabulary and training events, 64 hex digits."""
    parts = ["\n".join(sequences.items).encode(), *(ids.tobytes() + b"|" for ids in sequences.train)]
    return sha256(b"".join(parts)).hexdigest()


def catalogue_texts(dataset: Dataset, template: str) -> dict[str, str]:
    """Item -> text, of the items that have one, by key.

    Raises:
        InputError: No item has a text, or the template names a column that there is not.
    """
    texts = dataset.item_texts(template)
    found = {key: texts[key] for key in sorted(texts) if texts[key]}
    if not found:
        raise InputError(f"data set {dataset.name!r}: no item has a text by the template {template!r}.")
    return found


def example_histories(items: Sequence[str], max_length: int) -> list[list[str]]:
    """Twelve histories of keys, newest first: short, long, too long, with keys that nobody knows."""
    rng = np.random.default_rng(0)
    lengths = [1, 1, 2, 3, 5, 8, max_length // 2 + 1, max_length - 1, max_length, max_length, max_length + 1]
    rows = [[items[int(item)] for item in rng.integers(0, len(items), max(length, 1))] for length in lengths]
    unknown = "\x00unknown"
    rows[3] = [unknown, *rows[3]]
    rows.append([*rows[6], unknown, *rows[2], unknown])
    return rows
