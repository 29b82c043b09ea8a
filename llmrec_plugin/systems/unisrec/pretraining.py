"""Contrastive pre-training of UniSRec over several data sets, which share nothing but the text encoder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llmrec_plugin.interactions import Dataset
from llmrec_plugin.systems.sequences import fingerprint, padded
from llmrec_plugin.systems.trained import write_trained
from llmrec_plugin.systems.unisrec.catalogue import Catalogue, Encode, read_catalogue
from llmrec_plugin.systems.unisrec.network import Size, UniSRec
from llmrec_plugin.systems.unisrec.training import PRETRAINED
from llmrec_plugin.training.loop import Plan, fit

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """How sequences are told apart.

    Attributes:
        item_drop: Share of items that an augmented sequence leaves out.
        word_drop: Share of words that an augmented item text leaves out.
        sequence_weight: Weight of the sequence-sequence loss beside the sequence-item loss.
        temperature: What cosines are divided by.
        batch: Events of a batch; the others of the batch are the negatives.
        rows: Events of an epoch at most, drawn anew for each.
    """

    item_drop: float = 0.2
    word_drop: float = 0.15
    sequence_weight: float = 1e-3
    temperature: float = 0.07
    batch: int = 256
    rows: int = 50_000


@dataclass(frozen=True)
class Domains:
    """Several data sets with the ids of one: those of the second begin where those of the first end.

    Attributes:
        vectors: Of padding, of all texts, and of all texts with words left out, (1 + 2 items, dims) float32.
        items: Items of all data sets.
        train: Each user's events, ids oldest first.
        ends: User and position of every event but the first of a user, (n, 2) int64.
        histories: Of the validation events.
        targets: Of the validation events, (m,) int64.
    """

    vectors: np.ndarray
    items: int
    train: list[np.ndarray]
    ends: np.ndarray
    histories: list[np.ndarray]
    targets: np.ndarray


def pretrain_unisrec(
    datasets: Sequence[Dataset],
    encode: Encode,
    output: Path,
    plan: Plan,
    *,
    template: str,
    encoder: Mapping[str, str],
    contrast: Contrast = Contrast(),
    split: str = "data",
    validated: int = 2_000,
    device: str = "cpu",
    progress: bool = True,
    report: Callable[[str], None] = _log.info,
    **size: Any,
) -> dict[str, Any]:
    """Trains adaptor and sequence encoder on several data sets together, and writes a folder for `train_unisrec`.

    Only the training part of each data set is learned from, so that one of them can be fine-tuned on and measured.
    Early stopping looks at the sequence-item loss of validation events.

    Args:
        datasets: The domains.
        encode: The frozen text encoder.
        output: Folder to write; below ``work`` is what a later run goes on from.
        plan: How long and how fast.
        template: Text over the item's columns, of all data sets.
        encoder: Name and artifact of the encoder, for the record.
        contrast: How sequences are told apart.
        split: ``data`` or ``leave-one-out``.
        validated: Validation events at most.
        device: ``cpu`` or ``cuda``.
        progress: Whether to show bars.
        report: Called with one line of progress at a time.
        **size: Fields of `Size` but `dims` and `items`.

    Returns:
        What ``quality.json`` holds.

    Raises:
        InputError: A data set has no texts or too few events.
    """
    catalogues = [read_catalogue(data, encode, template, split=split, seed=plan.seed) for data in datasets]
    domains = join_domains(catalogues, encode, contrast.word_drop, plan.seed, validated)
    shape = Size(dims=domains.vectors.shape[1], **size)
    torch.manual_seed(plan.seed)
    network = UniSRec(shape).to(device)
    texts = torch.from_numpy(domains.vectors).to(device)
    report(f"{len(datasets)} domains, {domains.items} items, {len(domains.train)} users, {len(domains.ends)} events")

    def validate() -> float:
        losses = []
        for start in range(0, len(domains.targets), contrast.batch):
            part = slice(start, start + contrast.batch)
            ids = padded(domains.histories[part], shape.max_length)
            losses.append(sequence_item_loss(network, texts, ids, domains.targets[part], contrast.temperature).item())
        return float(np.mean(losses))

    data = sha256("".join(fingerprint(catalogue.sequences) for catalogue in catalogues).encode()).hexdigest()
    epochs = fit(
        network,
        lambda seed: contrast_batches(domains, contrast, shape.max_length, seed),
        lambda batch: contrastive_loss(network, texts, *batch, contrast),
        validate,
        plan,
        checkpoint=output / "work" / "pretraining.pt",
        identity=repr((data, dict(encoder), template, asdict(contrast), asdict(shape), validated)),
        progress=progress,
        report=report,
    )
    quality = {
        "system": PRETRAINED,
        "domains": [
            {"name": data.name, "items": len(part.texts)} for data, part in zip(datasets, catalogues, strict=True)
        ],
        "plan": asdict(plan),
        "contrast": asdict(contrast),
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    config = {"system": PRETRAINED, "size": asdict(shape), "encoder": dict(encoder), "template": template, "data": data}
    write_trained(output, config, (), network.state_dict(), quality)
    return quality


def without_words(text: str, share: float, rng: np.random.Generator) -> str:
    """The text without about a share of its words; one stays."""
    words = text.split()
    kept = rng.random(len(words)) >= share
    if not kept.any():
        kept[rng.integers(len(words))] = True
    return " ".join(word for word, stays in zip(words, kept, strict=True) if stays)


def join_domains(
    catalogues: Sequence[Catalogue], encode: Encode, word_drop: float, seed: int, validated: int
) -> Domains:
    """The data sets as one, see `Domains`."""
    rng = np.random.default_rng(seed)
    kept = np.concatenate([catalogue.vectors for catalogue in catalogues])
    dropped = [without_words(text, word_drop, rng) for catalogue in catalogues for text in catalogue.texts]
    vectors = np.concatenate([np.zeros((1, kept.shape[1]), dtype=np.float32), kept, encode(dropped)])
    train: list[np.ndarray] = []
    histories: list[np.ndarray] = []
    targets = []
    first = 0
    for catalogue in catalogues:
        train += [ids + first for ids in catalogue.sequences.train]
        asked = catalogue.sequences.validation
        known = np.flatnonzero(asked.targets)
        histories += [asked.histories[row] + first for row in known]
        targets.append(asked.targets[known] + first)
        first += len(catalogue.texts)
    ends = [(user, end) for user, ids in enumerate(train) for end in range(1, len(ids))]
    goals = np.concatenate(targets)
    order = np.random.default_rng(seed).permutation(len(goals))[:validated]  # domains mixed, as in training
    return Domains(
        vectors=vectors,
        items=len(kept),
        train=train,
        ends=np.array(ends, dtype=np.int64).reshape(-1, 2),
        histories=[histories[row] for row in order],
        targets=goals[order],
    )


def contrast_batches(
    domains: Domains, contrast: Contrast, max_length: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The batches of an epoch: histories, augmented histories, (batch, length) int64 each, and targets, (batch,)."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(domains.ends))[: contrast.rows]
    found = []
    for start in range(0, len(rows), contrast.batch):
        chosen = domains.ends[rows[start : start + contrast.batch]]
        histories = [domains.train[user][max(0, end - max_length) : end] for user, end in chosen]
        targets = np.array([domains.train[user][end] for user, end in chosen], dtype=np.int64)
        changed = [augmented(history, domains.items, contrast.item_drop, rng) for history in histories]
        found.append((padded(histories, max_length), padded(changed, max_length), targets))
    return found


def augmented(history: np.ndarray, items: int, item_drop: float, rng: np.random.Generator) -> np.ndarray:
    """The history without some items, or with texts of which words are left out; each in half of the cases."""
    if rng.random() < 0.5:
        return history + items
    kept = rng.random(len(history)) >= item_drop
    return history[kept] if kept.any() else history


def contrastive_loss(
    network: UniSRec, texts: Tensor, ids: np.ndarray, changed: np.ndarray, targets: np.ndarray, contrast: Contrast
) -> Tensor:
    """Sequence-item loss, and with a small weight sequence-sequence loss (Hou et al. 2022, section 2.3)."""
    users, others = _users(network, texts, ids), _users(network, texts, changed)
    loss = _in_batch(users, _items(network, texts, targets), targets, contrast.temperature)
    return loss + contrast.sequence_weight * _in_batch(users, others, targets, contrast.temperature)


def sequence_item_loss(
    network: UniSRec, texts: Tensor, ids: np.ndarray, targets: np.ndarray, temperature: float
) -> Tensor:
    """Mean cross-entropy of each history's target among the targets of the batch."""
    return _in_batch(_users(network, texts, ids), _items(network, texts, targets), targets, temperature)


def _users(network: UniSRec, texts: Tensor, ids: np.ndarray) -> Tensor:
    known, places = np.unique(ids, return_inverse=True)
    vectors = network.item_vectors(texts[torch.from_numpy(known).to(texts.device)])
    count = torch.from_numpy((ids > 0).sum(1)).to(texts.device)
    return network.user(vectors[torch.from_numpy(places.reshape(ids.shape)).to(texts.device)], count)


def _items(network: UniSRec, texts: Tensor, targets: np.ndarray) -> Tensor:
    return functional.normalize(network.item_vectors(texts[torch.from_numpy(targets).to(texts.device)]), dim=-1)


def _in_batch(left: Tensor, right: Tensor, targets: np.ndarray, temperature: float) -> Tensor:
    """Mean cross-entropy of the diagonal; pairs with the target of another row are no negatives."""
    own = np.arange(len(targets))
    same = (targets[:, None] == targets[None]) & (own[:, None] != own)
    logits = (left @ right.T / temperature).masked_fill(torch.from_numpy(same).to(left.device), float("-inf"))
    return functional.cross_entropy(logits, torch.from_numpy(own).to(left.device))
