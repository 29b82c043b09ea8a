"""Fine-tuning of UniSRec on one data set: full softmax over the items, of every next item of every sequence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import Dataset
from llmrec_plugin.systems.sequences import (
    Score,
    batches_by_length,
    fingerprint,
    measured,
    padded,
    quality_of,
    windows,
)
from llmrec_plugin.systems.trained import read_trained, write_trained
from llmrec_plugin.systems.unisrec.catalogue import Encode, read_catalogue
from llmrec_plugin.systems.unisrec.network import Size, UniSRec
from llmrec_plugin.training.loop import Plan, fit

PRETRAINED = "unisrec-pretrained"
EXAMPLES = 16
"""Text vectors that are kept to try the exported graphs with."""

_log = logging.getLogger(__name__)


def train_unisrec(
    dataset: Dataset,
    encode: Encode,
    output: Path,
    plan: Plan,
    *,
    template: str,
    encoder: Mapping[str, str],
    pretrained: Path | None = None,
    tune_encoder: bool = False,
    transductive: bool = False,
    temperature: float = 0.07,
    batch: int = 64,
    split: str = "data",
    exclude_seen: bool = True,
    validated: int = 2_000,
    evaluated: int = 20_000,
    device: str = "cpu",
    progress: bool = True,
    report: Callable[[str], None] = _log.info,
    **size: Any,
) -> dict[str, Any]:
    """Trains, measures by full ranking, and writes the folder that `llmrec_plugin.systems.unisrec.export` reads.

    Args:
        dataset: Interactions, and items with texts.
        encode: The frozen text encoder.
        output: Folder to write; below ``work`` is what a later run goes on from.
        plan: How long and how fast. Early stopping looks at 1 - NDCG@10 of validation events.
        template: Text over the item's columns.
        encoder: Name and artifact of the encoder, for the record.
        pretrained: Folder that `pretrain_unisrec` wrote, to start from; it fixes the shapes.
        tune_encoder: Whether the sequence encoder of `pretrained` learns on; without, only the adaptor (and ids) do.
        transductive: Whether items have a vector of their own beside their text; new items then have none.
        temperature: What cosines are divided by.
        batch: Sequences of a batch.
        split: ``data`` or ``leave-one-out``.
        exclude_seen: Whether items of the history are not ranked.
        validated: Validation events at most.
        evaluated: Test events at most.
        device: ``cpu`` or ``cuda``. On a CPU, the same seed gives the same bits.
        progress: Whether to show bars.
        report: Called with one line of progress at a time.
        **size: Fields of `Size` but `dims` and `items`.

    Returns:
        What ``quality.json`` holds.

    Raises:
        InputError: There are too few events, or `pretrained` read another encoder's vectors.
    """
    catalogue = read_catalogue(dataset, encode, template, split=split, seed=plan.seed)
    sequences = catalogue.sequences
    shape = Size(dims=catalogue.vectors.shape[1], items=len(sequences.items) if transductive else 0, **size)
    torch.manual_seed(plan.seed)
    start = ""
    if pretrained is not None:
        network, start = start_from(pretrained, shape, encoder)
        if (kept := replace(network.size, items=0)) != replace(shape, items=0):
            report(f"sizes are those of {pretrained}: {kept}")
        for part in () if tune_encoder else (network.positions, network.norm, network.blocks):
            part.requires_grad_(False)
    else:
        network = UniSRec(shape)
    network.to(device)
    shape = network.size
    pieces = windows(sequences.train, shape.max_length + 1, overlap=1)
    learned = torch.from_numpy(catalogue.trained_items()).to(device)
    texts = torch.from_numpy(catalogue.vectors).to(device)
    report(
        f"{len(sequences.items)} items, {len(learned)} of them in training, {len(sequences.train)} users, "
        f"{len(pieces)} sequences, {len(sequences.test.targets)} test events"
    )
    data = fingerprint(sequences)
    chosen = sequences.validation.sample(validated, plan.seed)
    settings = (data, dict(encoder), template, start, tune_encoder, temperature, batch, asdict(shape), exclude_seen)
    epochs = fit(
        network,
        lambda seed: sequence_batches(pieces, batch, seed),
        lambda ids: next_item_loss(network, texts, learned, torch.from_numpy(ids).to(device), temperature),
        lambda: 1 - measured(scorer(network, texts), chosen, exclude_seen=exclude_seen)["ndcg@10"],
        plan,
        checkpoint=output / "work" / "unisrec.pt",
        identity=repr((*settings, validated)),
        progress=progress,
        report=report,
    )
    quality = {
        "system": "unisrec",
        "split": split,
        "transductive": transductive,
        "pretrained": start,
        **quality_of(scorer(network, texts), sequences, exclude_seen=exclude_seen, evaluated=evaluated, seed=plan.seed),
        "plan": asdict(plan),
        "temperature": temperature,
        "batch": batch,
        "tune_encoder": pretrained is None or tune_encoder,
        "epochs": [asdict(epoch) for epoch in epochs],
    }
    config = {"system": "unisrec", "size": asdict(shape), "dims": shape.hidden, "encoder": dict(encoder)}
    config |= {"template": template, "data": data}
    weights = {
        **network.state_dict(),
        "catalogue.table": catalogue_table(network, texts),
        "catalogue.texts": texts[:EXAMPLES],
    }
    write_trained(output, config, sequences.items, weights, quality)
    return quality


def start_from(folder: Path, shape: Size, encoder: Mapping[str, str]) -> tuple[UniSRec, str]:
    """A network with pre-trained weights and ids of its own, and the space of the folder.

    Raises:
        InputError: The folder read another encoder's vectors.
        SourceError: It is no pre-trained model.
    """
    trained = read_trained(folder, PRETRAINED)
    if trained.config["encoder"] != dict(encoder):
        raise InputError(
            f"{folder} was trained on vectors of {trained.config['encoder']}, and now come those of {dict(encoder)}; "
            "name the same --encoder, or train it again."
        )
    network = UniSRec(replace(Size(**trained.config["size"]), items=shape.items))
    missing = network.load_state_dict(trained.weights, strict=False).missing_keys
    assert missing in ([], ["ids.weight"]), missing
    return network, trained.space


def sequence_batches(pieces: Sequence[np.ndarray], batch: int, seed: int) -> list[np.ndarray]:
    """The batches of an epoch, ids (batch, length) int64."""
    found = batches_by_length(pieces, batch, np.random.default_rng(seed))
    return [padded([pieces[row] for row in rows], len(pieces[rows[-1]])) for rows in found]


def next_item_loss(network: UniSRec, texts: Tensor, learned: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of each next item among the items seen in training.

    Args:
        network: The network.
        texts: Text vectors of the vocabulary, (items, dims).
        learned: Ids of the items of the training events, sorted, (m,) int64.
        ids: Sequences, (batch, length) int64, padding behind.
        temperature: What cosines are divided by.
    """
    table = network.item_vectors(texts[learned - 1], learned)
    places = torch.searchsorted(learned, ids).clamp(max=len(learned) - 1)  # padding is read by nobody
    asked = ids[:, 1:] > 0
    states = functional.normalize(network.states(table[places[:, :-1]])[asked], dim=-1)
    logits = states @ functional.normalize(table, dim=-1).T / temperature
    return functional.cross_entropy(logits, places[:, 1:][asked])


@torch.no_grad()
def catalogue_table(network: UniSRec, texts: Tensor) -> Tensor:
    """Item vectors of the whole vocabulary, (items, hidden); call it in evaluation mode."""
    ids = torch.arange(1, len(texts) + 1, device=texts.device)
    return torch.cat([network.item_vectors(texts[rows - 1], rows) for rows in ids.split(4096)])


def scorer(network: UniSRec, texts: Tensor) -> Score:
    """A function from histories to the cosine with every item; made in evaluation mode, for these weights."""
    table = catalogue_table(network, texts)
    unit = functional.normalize(table, dim=-1).T
    table = functional.pad(table, (0, 0, 1, 0))

    @torch.no_grad()
    def score(histories: Sequence[np.ndarray]) -> np.ndarray:
        ids = torch.from_numpy(padded(histories, network.size.max_length)).to(table.device)
        return (network.user(functional.embedding(ids, table), (ids > 0).sum(1)) @ unit).cpu().numpy()

    return score
