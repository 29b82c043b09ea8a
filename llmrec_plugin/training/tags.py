"""Trains the head of a `LabelModel`: which labels of a closed vocabulary a text has."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.artifacts import sha256_file
from llmrec_plugin.errors import InputError
from llmrec_plugin.export.heads import Head, read_head, write_head
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.specs import digest
from llmrec_plugin.training.loop import Plan, fit
from llmrec_plugin.training.rows import Split, count_labels, group_rows, limited, split_rows, texts_of
from llmrec_plugin.training.scores import best_thresholds, f1_scores, nearest

HEAD_FILE = "head.safetensors"
QUALITY_FILE = "quality.json"
NEIGHBORS = (3, 5, 10, 20, 50)
NEAR = 0.95
"""Cosine from which the nearest training text is nearly the same text."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TagColumns:
    """Names of the columns.

    Attributes:
        text: What the model reads.
        labels: What it learns: lists of strings. A row without any is left out, for nobody labelled it.
        name: What near duplicates share the stem of, or None.
    """

    text: str = "description"
    labels: str = "tags"
    name: str | None = "name"


def train_tags(
    rows: Sequence[Mapping[str, Any]],
    encode: Callable[[list[str]], np.ndarray],
    output: Path,
    plan: Plan,
    *,
    columns: TagColumns = TagColumns(),
    held_out: frozenset[str] = frozenset(),
    most_rows: int | None = None,
    evaluated: int | None = None,
    least_support: int = 20,
    hidden: int = 0,
    batch: int = 256,
    progress: bool = True,
    report: Callable[[str], None] = _log.info,
) -> dict[str, Any]:
    """Trains a head, measures it on rows without near duplicates in training, and writes both.

    Args:
        rows: Objects with a text and labels.
        encode: From n texts to their vectors, (n, dims) float32.
        output: Folder for ``head.safetensors``, ``quality.json`` and, below ``work``, what a later run goes on from.
        plan: How long and how fast to learn.
        columns: Names of the columns.
        held_out: Names of rows to test on; empty: a tenth of all groups.
        most_rows: Training rows at most; None: all.
        evaluated: Test rows at most; None: all.
        least_support: Training rows that a label must have to be learned.
        hidden: Width of a layer with ReLU before the linear one; 0: none.
        batch: Rows of a batch.
        progress: Whether to show bars.
        report: Called with one line of progress at a time.

    Returns:
        What ``quality.json`` holds.

    Raises:
        InputError: There are too few rows or labels, or no such column.
    """
    texts, labels = texts_of(rows, columns.text), [_labels(row, columns.labels) for row in rows]
    names = texts_of(rows, columns.name) if columns.name else None
    # Groups over all rows: an unlabelled row may be what makes two labelled ones near duplicates.
    groups = group_rows(texts, names)
    kept = np.array([bool(text and tags) for text, tags in zip(texts, labels, strict=True)])
    if not kept.any():
        raise InputError(f"No row has both a text in {columns.text!r} and labels in {columns.labels!r}.")
    wanted = np.array([name in held_out for name in names]) if names and held_out else None
    split = _labelled(split_rows(groups, held_out=wanted, seed=plan.seed), kept)
    split = limited(split, groups, train=most_rows, test=evaluated, seed=plan.seed)
    counts = count_labels(labels[row] for row in split.train)
    vocabulary = sorted(label for label, count in counts.items() if count >= least_support)
    if not vocabulary:
        raise InputError(f"No label is in {least_support} of the {len(split.train)} training rows.")
    report(f"{len(vocabulary)} of {len(counts)} labels; rows: {split.sizes()}")

    vectors = encode(texts_at(texts, split))
    parts = dict(zip(("train", "validation", "test"), np.split(vectors, _ends(split)), strict=True))
    truth = {part: to_matrix([labels[row] for row in getattr(split, part)], vocabulary) for part in parts}
    network, history = _learn(
        parts, truth, plan, hidden=hidden, batch=batch, checkpoint=output / "work" / "head.pt", progress=progress,
        report=report,
    )  # fmt: skip
    head = _as_head(network, vocabulary, parts["validation"], truth["validation"])
    measured = measure(head, parts, truth)
    quality = {
        "task": "labels",
        "columns": asdict(columns),
        "rows": split.sizes(),
        "labels": len(vocabulary),
        "label_coverage": _coverage([labels[row] for row in split.test], set(vocabulary)),
        "hidden": hidden,
        "plan": asdict(plan),
        "epochs": [asdict(epoch) for epoch in history],
        **measured,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_head(head, output / HEAD_FILE)
    quality["sha256"] = sha256_file(output / HEAD_FILE)
    (output / QUALITY_FILE).write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
    read_head(output / HEAD_FILE).check_fits(vectors.shape[1], str(output / HEAD_FILE))
    return quality


def to_matrix(labels: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> np.ndarray:
    """Which labels each row has, (rows, vocabulary) bool; labels that are not in the vocabulary are left out."""
    column = {label: index for index, label in enumerate(vocabulary)}
    matrix = np.zeros((len(labels), len(vocabulary)), dtype=bool)
    for row, found in enumerate(labels):
        matrix[row, [column[label] for label in found if label in column]] = True
    return matrix


def measure(head: Head, parts: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """F1 on the test rows, of the head and of what needs no training.

    Args:
        head: The head.
        parts: Vectors of ``train``, ``validation`` and ``test``, each (n, dims) float32.
        truth: Their labels, each (n, labels) bool.

    Returns:
        ``validation`` and ``test`` of the head, ``baselines`` on the test rows by their name, and the share of test
        rows whose nearest training text has a cosine of at least `NEAR`.
    """
    scores: dict[str, Any] = {
        part: f1_scores(truth[part], _sigmoid(head.logits(parts[part])) >= head.thresholds)
        for part in ("validation", "test")
    }
    most = min(max(NEIGHBORS), len(parts["train"]))
    unit = {
        part: vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        for part, vectors in parts.items()
    }
    around = {part: nearest(unit[part], unit["train"], most) for part in ("validation", "test")}
    rows, cosines = around["test"]
    baselines = {
        "most frequent labels": _most_frequent(truth),
        "labels of the nearest training text": f1_scores(truth["test"], truth["train"][rows[:, 0]]),
    }
    votes, threshold, count = _best_vote(around["validation"], truth)
    found = _vote(around["test"], truth["train"], count) >= threshold
    baselines[f"vote of the {count} nearest training texts"] = f1_scores(truth["test"], found)
    near = float((cosines[:, 0] >= NEAR).mean())
    return {**scores, "baselines": baselines, "vote_validation_micro_f1": votes, "near_training_text": near}


def texts_at(texts: Sequence[str], split: Split) -> list[str]:
    """The texts of the training, validation and test rows, in this order."""
    return [texts[row] for part in (split.train, split.validation, split.test) for row in part]


def _ends(split: Split) -> list[int]:
    return [len(split.train), len(split.train) + len(split.validation)]


def _labels(row: Mapping[str, Any], column: str) -> list[str]:
    found = row.get(column) or []
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise InputError(f"The column {column!r} must hold lists of strings, got {found!r:.80}.")
    return found


def _labelled(split: Split, kept: np.ndarray) -> Split:
    return Split(**{name: rows[kept[rows]] for name, rows in vars(split).items()})


def _coverage(labels: Sequence[Sequence[str]], vocabulary: set[str]) -> float:
    total = sum(map(len, labels))
    return sum(label in vocabulary for row in labels for label in row) / max(total, 1)


def _learn(
    parts: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
    plan: Plan,
    *,
    hidden: int,
    batch: int,
    checkpoint: Path,
    progress: bool,
    report: Callable[[str], None],
) -> tuple[Any, list[Any]]:
    torch = require("torch")
    dims, labels = parts["train"].shape[1], truth["train"].shape[1]
    # Components of a unit vector are small; at this scale one learning rate suits weights and biases.
    scale = dims**0.5
    inputs = {part: torch.from_numpy(parts[part]) * scale for part in ("train", "validation")}
    targets = {part: torch.from_numpy(truth[part]).float() for part in ("train", "validation")}
    torch.manual_seed(plan.seed)
    layers = [torch.nn.Dropout(0.1), torch.nn.Linear(hidden or dims, labels)]
    if hidden:
        layers = [torch.nn.Linear(dims, hidden), torch.nn.ReLU(), *layers]
    network = torch.nn.Sequential(*layers)
    with torch.no_grad():  # begins at each label's own frequency
        share = targets["train"].mean(0).clamp(1e-4, 1 - 1e-4)
        network[-1].bias.copy_(torch.logit(share))
    criterion = torch.nn.functional.binary_cross_entropy_with_logits

    def batches(seed: int) -> list[Any]:
        order = torch.randperm(len(inputs["train"]), generator=torch.Generator().manual_seed(seed))
        return list(order.split(batch))

    history = fit(
        network,
        batches,
        lambda rows: criterion(network(inputs["train"][rows]), targets["train"][rows]),
        lambda: float(criterion(network(inputs["validation"]), targets["validation"])),
        plan,
        checkpoint=checkpoint,
        identity=digest([str(hidden), str(batch), _hash(parts["train"]), _hash(truth["train"])]),
        progress=progress,
        report=report,
    )
    with torch.no_grad():
        network[0 if hidden else -1].weight.mul_(scale)
    return network, history


def _hash(values: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _as_head(network: Any, vocabulary: Sequence[str], vectors: np.ndarray, truth: np.ndarray) -> Head:
    """The network as it will be stored, rounded to float16, with thresholds for it."""
    linear = [layer for layer in network if hasattr(layer, "weight")]
    halves = [[_half(layer.weight), _half(layer.bias)] for layer in linear]
    weight, bias = halves[-1]
    hidden: dict[str, Any] = {"hidden_weight": halves[0][0], "hidden_bias": halves[0][1]} if len(halves) > 1 else {}
    head = Head(labels=tuple(vocabulary), thresholds=np.zeros(len(vocabulary)), weight=weight, bias=bias, **hidden)
    thresholds = best_thresholds(truth, _sigmoid(head.logits(vectors)))
    return Head(**{**vars(head), "thresholds": thresholds.astype(np.float16).astype(np.float32)})


def _half(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().numpy(), dtype=np.float16).astype(np.float32)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)


def _most_frequent(truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Every row gets the same most frequent labels; how many, the validation rows decide."""
    order = np.argsort(-truth["train"].sum(0), kind="stable")

    def give(part: str, count: int) -> np.ndarray:
        found = np.zeros_like(truth[part])
        found[:, order[:count]] = True
        return found

    counts = range(1, min(16, len(order) + 1))
    best = max(counts, key=lambda count: f1_scores(truth["validation"], give("validation", count))["micro_f1"])
    return {**f1_scores(truth["test"], give("test", best)), "labels_given": float(best)}


def _vote(around: tuple[np.ndarray, np.ndarray], labels: np.ndarray, count: int) -> np.ndarray:
    """The share of each label among the nearest rows, weighted by cosine, (n, labels) float32."""
    rows, cosines = around[0][:, :count], np.maximum(around[1][:, :count], 1e-6)
    shares = np.stack([weights @ labels[own] for own, weights in zip(rows, cosines, strict=True)])
    return np.asarray(shares / cosines.sum(1, keepdims=True), dtype=np.float32)


def _best_vote(around: tuple[np.ndarray, np.ndarray], truth: Mapping[str, np.ndarray]) -> tuple[float, float, int]:
    """Micro F1 on the validation rows, threshold and number of neighbors of the best vote."""
    tried = []
    for count in (count for count in NEIGHBORS if count <= around[0].shape[1]):
        shares = _vote(around, truth["train"], count)
        for threshold in np.arange(0.1, 0.65, 0.05):
            f1 = f1_scores(truth["validation"], shares >= threshold)["micro_f1"]
            tried.append((f1, float(threshold), count))
    if not tried:
        raise InputError(f"Fewer than {min(NEIGHBORS)} training rows.")
    return max(tried)
