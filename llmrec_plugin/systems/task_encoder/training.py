"""Tunes an encoder on pairs of a query and the item that came next, and measures it beside itself before.

    loss = -log( exp(q.i+ / t) / sum over the batch's items i that may be negatives of exp(q.i / t) )

with unit vectors, temperature t, and, if symmetric, the same from the items' side. Needs the extra ``export``, and
``tune`` for LoRA.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin import EncoderModel
from llmrec_plugin.errors import InputError
from llmrec_plugin.systems.task_encoder.pairs import Pairs, Task, false_negatives
from llmrec_plugin.training.encoders import TrainableEncoder
from llmrec_plugin.training.loop import Plan, fit
from llmrec_plugin.training.lora import add_lora, merge_lora, train_last_layers


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How an encoder is tuned.

    Attributes:
        pairs: Training pairs at most, the newest ones.
        evaluated: Validation pairs at most, drawn.
        layers: The last layers that are trained; 0 trains LoRA instead.
        rank: Of LoRA; 0 trains layers instead.
        max_tokens: Longest text that is read in training.
        temperature: What similarities are divided by.
        symmetric: Whether an item shall find its query, too.
        epochs: Passes over the pairs at most.
        patience: Epochs without a better validation loss after which to stop.
        batch: Pairs of an update; their items are each other's negatives.
        learning_rate: The highest.
        seed: Of pairs, order, dropout and LoRA.
    """

    pairs: int = 4000
    evaluated: int = 1000
    layers: int = 2
    rank: int = 0
    max_tokens: int = 96
    temperature: float = 0.05
    symmetric: bool = True
    epochs: int = 3
    patience: int = 1
    batch: int = 64
    learning_rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.layers > 0) == (self.rank > 0):
            raise InputError(f"task-encoder: expected either layers or rank, got {self.layers} and {self.rank}.")
        if self.batch < 2 or not self.temperature > 0:
            raise InputError(f"task-encoder: expected batch >= 2 and temperature > 0, got {self}.")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How well queries find the items that came next, among all items of training and validation.

    Attributes:
        recall: Share of the queries whose item is among the first ten; items that the user had before are no answers.
        ndcg: Mean of 1 / log2(rank + 1) for an item at rank 10 or better.
    """

    recall: float
    ndcg: float


def train_encoder(
    task: Task,
    model: EncoderModel,
    output: Path,
    settings: EncoderSettings,
    *,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Tunes a copy of the encoder and saves it into `output`, with what was measured.

    `output` gets a folder that ``llmrec export`` and sentence-transformers take, ``quality.json``, and ``work/`` with
    the checkpoint of a run that was stopped. Equal input, seed and thread count give equal weights on one machine.

    Args:
        task: What to learn.
        model: The encoder to start from.
        output: Folder to write.
        settings: How.
        progress: Whether to show a bar.
        report: Called with one line of progress.

    Returns:
        The content of ``quality.json``.

    Raises:
        InputError: `output` holds another run, or the encoder has fewer layers.
        SourceError: The encoder cannot be found or read.
        MissingExtraError: torch, transformers or, for LoRA, peft is not installed.
    """
    rng = np.random.default_rng(settings.seed)
    train = task.train.take(np.arange(max(len(task.train) - settings.pairs, 0), len(task.train)))
    drawn = np.sort(rng.permutation(len(task.validation))[: settings.evaluated])
    validation = task.validation.take(drawn)
    report(f"{len(train)} training pairs, {len(validation)} validation pairs, {len(task.texts)} items")
    encoder = TrainableEncoder(model, settings.max_tokens)
    before = measure(encoder, task.texts, validation)
    report(f"frozen: recall@10 {before.recall:.4f}, NDCG@10 {before.ndcg:.4f}")
    if settings.rank:
        encoder.network = add_lora(encoder.network, rank=settings.rank, dropout=0.05, seed=settings.seed)
    else:
        train_last_layers(model, encoder.network, settings.layers)
    texts = encoder.tokens(task.texts)
    learned, held_out = (_Encoded(encoder.tokens(pairs.queries), pairs) for pairs in (train, validation))
    history = fit(
        encoder.network,
        lambda seed: learned.batches(settings.batch, seed),
        lambda batch: _loss(encoder, texts, batch, settings),
        lambda: _mean_loss(encoder, texts, held_out.batches(settings.batch, 0), settings),
        Plan(
            epochs=settings.epochs,
            patience=settings.patience,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
        ),
        checkpoint=output / "work" / "checkpoint.pt",
        identity=_identity(encoder.weights_sha256, settings, train, task.texts),
        progress=progress,
        report=report,
    )
    network = merge_lora(encoder.network) if settings.rank else encoder.network
    encoder.network = network
    after = measure(encoder, task.texts, validation)
    report(f"tuned: recall@10 {after.recall:.4f}, NDCG@10 {after.ndcg:.4f}")
    encoder.save(output, network)
    quality = {
        "settings": asdict(settings),
        "base": {"source": model.source, "weights_sha256": encoder.weights_sha256},
        "pairs": {"train": len(train), "validation": len(validation), "without_query": task.without_query},
        "items": len(task.texts),
        "epochs": [asdict(epoch) for epoch in history],
        "validation": {
            "tuned": asdict(after),
            "frozen": asdict(before),
            "popularity": asdict(found(np.tile(task.counts.astype(float), (len(validation), 1)), validation)),
        },
    }
    (output / "quality.json").write_text(json.dumps(quality, indent=2) + "\n", encoding="utf-8")
    return quality


def contrastive_loss(queries: Any, items: Any, excluded: Any, *, temperature: float, symmetric: bool) -> Any:
    """Mean loss of n pairs, a scalar tensor.

    Args:
        queries: (n, dims) float32, not necessarily of unit length.
        items: (n, dims) float32; row i belongs to query i.
        excluded: (n, n) bool: item j is no negative of query i; False where i = j.
        temperature: What cosines are divided by.
        symmetric: Whether to add the loss of items finding their queries, and halve.
    """
    import torch

    unit = torch.nn.functional.normalize
    logits = (unit(queries, dim=1) @ unit(items, dim=1).T / temperature).masked_fill(excluded, -torch.inf)
    own = torch.arange(len(logits))
    loss = torch.nn.functional.cross_entropy(logits, own)
    return (loss + torch.nn.functional.cross_entropy(logits.T, own)) / 2 if symmetric else loss


def measure(encoder: TrainableEncoder, texts: Sequence[str], pairs: Pairs) -> Measured:
    """Recall and NDCG at 10 over all items, by cosine."""
    items, queries = (_unit(encoder.vectors(values)) for values in (texts, pairs.queries))
    return found(queries @ items.T, pairs)


def found(scores: np.ndarray, pairs: Pairs) -> Measured:
    """Recall and NDCG at 10 from scores, (n, items) float; an item that ties with others is behind half of them."""
    scores = scores.copy()
    for row, past in enumerate(pairs.past):
        had = [item for item in past if item != pairs.items[row]]
        scores[row, had] = -np.inf
    own = scores[np.arange(len(scores)), pairs.items][:, None]
    ranks = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2  # from 0
    hits = ranks < 10
    return Measured(recall=float(hits.mean()), ndcg=float(np.where(hits, 1 / np.log2(ranks + 2), 0).mean()))


class _Encoded:
    """Pairs with the token ids of their queries."""

    def __init__(self, queries: list[list[int]], pairs: Pairs) -> None:
        self._queries = queries
        self._pairs = pairs

    def batches(self, size: int, seed: int) -> list[tuple[list[list[int]], Pairs]]:
        """Queries of like lengths together, the batches in any order; a rest of one pair is left out."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self._queries))
        lengths = np.array([len(self._queries[row]) for row in order])
        chunk = 8 * size
        parts = [
            order[start : start + chunk][np.argsort(lengths[start : start + chunk], kind="stable")]
            for start in range(0, len(order), chunk)
        ]
        ordered = np.concatenate(parts)
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        batches = [rows for rows in batches if len(rows) > 1]
        return [
            ([self._queries[row] for row in batches[at]], self._pairs.take(batches[at]))
            for at in rng.permutation(len(batches))
        ]


def _loss(
    encoder: TrainableEncoder,
    texts: Sequence[list[int]],
    batch: tuple[list[list[int]], Pairs],
    settings: EncoderSettings,
) -> Any:
    import torch

    tokens, pairs = batch
    distinct, rows = np.unique(pairs.items, return_inverse=True)
    items = encoder.encode([texts[item] for item in distinct])[torch.from_numpy(rows)]
    excluded = torch.from_numpy(false_negatives(pairs))
    return contrastive_loss(
        encoder.encode(tokens), items, excluded, temperature=settings.temperature, symmetric=settings.symmetric
    )


def _mean_loss(
    encoder: TrainableEncoder,
    texts: Sequence[list[int]],
    batches: Sequence[tuple[list[list[int]], Pairs]],
    settings: EncoderSettings,
) -> float:
    total = sum(len(pairs) for _, pairs in batches)
    return sum(_loss(encoder, texts, batch, settings).item() * len(batch[1]) for batch in batches) / total


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _identity(weights: str, settings: EncoderSettings, train: Pairs, texts: Sequence[str]) -> str:
    content = json.dumps([weights, asdict(settings), train.queries, train.items.tolist(), list(texts)])
    return hashlib.sha256(content.encode()).hexdigest()
