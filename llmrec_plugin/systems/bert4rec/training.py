"""Cloze training: some items of a sequence are masked, and the network guesses them from both sides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from llmrec_plugin.interactions import Dataset
from llmrec_plugin.systems.bert4rec.network import Bert4Rec, Size
from llmrec_plugin.systems.sequences import (
    batches_by_length,
    fingerprint,
    measured,
    padded,
    quality_of,
    split_by,
    to_sequences,
    windows,
)
from llmrec_plugin.systems.trained import write_trained
from llmrec_plugin.training.loop import Plan, fit

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cloze:
    """How sequences become questions.

    Attributes:
        mask_share: Probability that an item is masked (the paper's rho).
        last_share: Share of sequences of which only the last item is masked, as it is when the model is used.
        batch: Sequences of a batch.
    """

    mask_share: float = 0.2
    last_share: float = 0.2
    batch: int = 64


def train_bert4rec(
    dataset: Dataset,
    output: Path,
    plan: Plan,
    *,
    cloze: Cloze = Cloze(),
    split: str = "data",
    exclude_seen: bool = True,
    validated: int = 2_000,
    evaluated: int = 20_000,
    device: str = "cpu",
    progress: bool = True,
    report: Callable[[str], None] = _log.info,
    **size: Any,
) -> dict[str, Any]:
    """Trains, measures by full ranking, and writes the folder that `llmrec_plugin.systems.bert4rec.export` reads.

    Args:
        dataset: Interactions.
        output: Folder to write; below ``work`` is what a later run goes on from.
        plan: How long and how fast. Early stopping looks at 1 - NDCG@10 of validation events.
        cloze: How sequences become questions.
        split: ``data`` or ``leave-one-out``.
        exclude_seen: Whether items of the history are not ranked.
        validated: Validation events at most.
        evaluated: Test events at most.
        device: ``cpu`` or ``cuda``. On a CPU, the same seed gives the same bits.
        progress: Whether to show bars.
        report: Called with one line of progress at a time.
        **size: Fields of `Size` but `items`.

    Returns:
        What ``quality.json`` holds.

    Raises:
        InputError: There are too few events.
    """
    sequences = to_sequences(split_by(dataset, split, plan.seed))
    shape = Size(items=len(sequences.items), **size)
    pieces = windows(sequences.train, shape.max_length + 1)
    data = fingerprint(sequences)
    report(
        f"{len(sequences.items)} items, {len(sequences.train)} users, {len(pieces)} sequences, "
        f"{len(sequences.test.targets)} test events"
    )
    torch.manual_seed(plan.seed)
    network = Bert4Rec(shape).to(device)
    score = scorer(network, device)
    chosen = sequences.validation.sample(validated, plan.seed)
    epochs = fit(
        network,
        lambda seed: cloze_batches(pieces, shape.items + 1, cloze, seed),
        lambda batch: cloze_loss(network, *batch, device),
        lambda: 1 - measured(score, chosen, exclude_seen=exclude_seen)["ndcg@10"],
        plan,
        checkpoint=output / "work" / "bert4rec.pt",
        identity=repr((data, asdict(cloze), asdict(shape), validated, exclude_seen)),
        progress=progress,
        report=report,
    )
    quality = {
        "system": "bert4rec",
        "split": split,
        **quality_of(score, sequences, exclude_seen=exclude_seen, evaluated=evaluated, seed=plan.seed),
        "plan": asdict(plan),
        "cloze": asdict(cloze),
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    config = {"system": "bert4rec", "size": asdict(shape), "dims": shape.hidden + 1, "data": data}
    write_trained(output, config, sequences.items, network.state_dict(), quality)
    return quality


def cloze_batches(
    pieces: Sequence[np.ndarray], mask_id: int, cloze: Cloze, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches of an epoch: ids with masks, and what was masked (elsewhere 0), (batch, length) int64 each."""
    rng = np.random.default_rng(seed)
    found = []
    for rows in batches_by_length(pieces, cloze.batch, rng):
        ids = padded([pieces[row] for row in rows], len(pieces[rows[-1]]))
        length = (ids > 0).sum(1, keepdims=True)
        last = np.arange(ids.shape[1]) == length - 1
        drawn = (rng.random(ids.shape) < cloze.mask_share) & (ids > 0)
        only_last = (rng.random((len(ids), 1)) < cloze.last_share) | ~drawn.any(1, keepdims=True)
        masked = np.where(only_last, last, drawn)
        found.append((np.where(masked, mask_id, ids), np.where(masked, ids, 0)))
    return found


def cloze_loss(network: Bert4Rec, ids: np.ndarray, masked: np.ndarray, device: str) -> Any:
    """Mean cross-entropy of the masked items among all items."""
    where = torch.from_numpy(masked > 0).to(device)
    states = network.states(torch.from_numpy(ids).to(device))[where]
    targets = torch.from_numpy(masked).to(device)[where]
    return functional.cross_entropy(network.logits(network.head(states)), targets - 1)


def scorer(network: Bert4Rec, device: str) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """A function from histories to a logit of every item; call it in evaluation mode."""

    @torch.no_grad()
    def score(histories: Sequence[np.ndarray]) -> np.ndarray:
        ids = torch.from_numpy(padded(histories, network.size.max_length)).to(device)
        return network.logits(network.user(ids)).cpu().numpy()

    return score
