"""The networks that ``llmrec export`` makes of a trained folder; `NetworkModel.network` names these functions.

They read what ``llmrec train unisrec`` or ``llmrec train whitening`` wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.networks import Id, IdSequence, Network, Vector, VectorSequence
from llmrec_plugin.systems.sequences import example_histories
from llmrec_plugin.systems.trained import Trained, read_trained

UNISREC, WHITENING = "unisrec", "whitening"
VOCABULARY = "items"
TABLE, TEXTS = "catalogue.table", "catalogue.texts"


def item_network(folder: Path) -> Network:
    """Input ``text``, the text's vector, and of a transductive model ``item``; the item's vector."""
    from llmrec_plugin.systems.unisrec.network import ItemVector, ItemVectorWithId  # loads torch

    trained, network = _load(folder)
    texts = trained.weights[TEXTS].numpy()
    examples: list[dict[str, Any]] = [{"text": texts[row % len(texts)].tolist()} for row in range(12)]
    inputs: tuple[Any, ...] = (Vector(name="text", dims=texts.shape[1]),)
    if trained.config["system"] == WHITENING:
        module = network
    elif network.ids is None:
        module = ItemVector(network)
    else:
        module = ItemVectorWithId(network)
        inputs = (*inputs, Id(name="item", vocabulary=VOCABULARY))
        examples = [
            {**row, "item": trained.items[place * (len(trained.items) - 1) // 11]} for place, row in enumerate(examples)
        ]
    return _network(trained, module, inputs, examples, normalized=trained.config["system"] == WHITENING)


def user_network(folder: Path) -> Network:
    """Input ``history``, keys of items that were there when the network was trained; the user's vector."""
    from llmrec_plugin.systems.unisrec.network import UserOfIds

    trained, network = _load(folder)
    history = IdSequence(name="history", vocabulary=VOCABULARY, max_length=_max_length(trained))
    examples = [{"history": keys} for keys in example_histories(trained.items, history.max_length)]
    return _network(trained, UserOfIds(_users(network), trained.weights[TABLE]), (history,), examples, normalized=True)


def user_of_vectors_network(folder: Path) -> Network:
    """Input ``vectors``, stored item vectors, newest first; the user's vector, as by `user_network`."""
    from llmrec_plugin.systems.unisrec.network import UserOfVectors

    trained, network = _load(folder)
    table = trained.weights[TABLE].numpy()
    history = VectorSequence(name="vectors", dims=table.shape[1], max_length=_max_length(trained))
    rng = np.random.default_rng(0)
    lengths = [len(keys) for keys in example_histories(trained.items, history.max_length)]
    examples = [{"vectors": table[rng.integers(0, len(table), length)].tolist()} for length in lengths]
    return _network(trained, UserOfVectors(_users(network)), (history,), examples, normalized=True)


def _load(folder: Path) -> tuple[Trained, Any]:
    from llmrec_plugin.systems.unisrec.network import Size, UniSRec, Whitening

    trained = read_trained(folder, UNISREC, WHITENING)
    if trained.config["system"] == WHITENING:
        return trained, Whitening(trained.weights["mean"], trained.weights["matrix"]).eval()
    network = UniSRec(Size(**trained.config["size"]))
    network.load_state_dict({name: value for name, value in trained.weights.items() if name not in (TABLE, TEXTS)})
    return trained, network.eval()


def _users(network: Any) -> Any:
    from llmrec_plugin.systems.unisrec.network import Mean, Whitening

    return Mean() if isinstance(network, Whitening) else network


def _max_length(trained: Trained) -> int:
    return int(trained.config.get("size", trained.config)["max_length"])


def _network(
    trained: Trained, module: Any, inputs: tuple[Any, ...], examples: Sequence[Mapping[str, Any]], *, normalized: bool
) -> Network:
    named = any(isinstance(part, (Id, IdSequence)) for part in inputs)
    encoder = trained.config["encoder"]
    return Network(
        module=module.eval(),
        inputs=inputs,
        dims=trained.config["dims"],
        examples=examples,
        metric="cosine",
        normalized=normalized,
        space=trained.space,
        vocabularies={VOCABULARY: trained.items} if named else {},
        candidates=trained.weights[TABLE].numpy(),
        source={
            "system": trained.config["system"],
            "space": trained.space,
            "data": trained.config["data"],
            "encoder": encoder["name"],
            "encoder_artifact": encoder["artifact"],
            "text": trained.config["template"],
        },
        quality=trained.quality,
    )
