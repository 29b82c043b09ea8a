"""The networks that ``llmrec export`` makes of a trained folder; `NetworkModel.network` names these functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmrec_plugin.networks import Id, IdSequence, Network
from llmrec_plugin.systems.sequences import example_histories
from llmrec_plugin.systems.trained import Trained, read_trained

SYSTEM = "bert4rec"
VOCABULARY = "items"


def user_network(folder: Path) -> Network:
    """Input ``history``; the user's vector, whose dot product with an item's vector is the item's logit."""
    from llmrec_plugin.systems.bert4rec.network import UserVector  # loads torch

    trained, network = _load(folder)
    history = _history(trained)
    examples = [{"history": keys} for keys in example_histories(trained.items, history.max_length)]
    return _network(trained, UserVector(network), (history,), examples, table=_table(network))


def item_network(folder: Path) -> Network:
    """Input ``item``; the item's vector with its bias as last component."""
    from llmrec_plugin.systems.bert4rec.network import ItemVector

    trained, network = _load(folder)
    examples = [{"item": key} for key in _some(trained.items)]
    inputs = (Id(name="item", vocabulary=VOCABULARY),)
    return _network(trained, ItemVector(network), inputs, examples, table=_table(network))


def score_network(folder: Path) -> Network:
    """Inputs ``history`` and ``candidate``; the candidate's logit, a number."""
    from llmrec_plugin.systems.bert4rec.network import CandidateScore

    trained, network = _load(folder)
    history = _history(trained)
    histories = example_histories(trained.items, history.max_length)
    examples = [{"history": keys, "candidate": key} for keys, key in zip(histories, _some(trained.items), strict=True)]
    inputs = (history, Id(name="candidate", vocabulary=VOCABULARY))
    return _network(trained, CandidateScore(network), inputs, examples)


def _load(folder: Path) -> tuple[Trained, Any]:
    from llmrec_plugin.systems.bert4rec.network import Bert4Rec, Size

    trained = read_trained(folder, SYSTEM)
    network = Bert4Rec(Size(**trained.config["size"]))
    network.load_state_dict(trained.weights)
    return trained, network.eval()


def _history(trained: Trained) -> IdSequence:
    return IdSequence(name="history", vocabulary=VOCABULARY, max_length=trained.config["size"]["max_length"])


def _table(network: Any) -> Any:
    return network.table().detach().numpy()


def _some(items: Sequence[str]) -> list[str]:
    """Twelve keys from all over the vocabulary."""
    return [items[position * (len(items) - 1) // 11] for position in range(12)]


def _network(
    trained: Trained, module: Any, inputs: tuple[Any, ...], examples: Sequence[Mapping[str, Any]], table: Any = None
) -> Network:
    return Network(
        module=module.eval(),
        inputs=inputs,
        dims=None if table is None else table.shape[1],
        examples=examples,
        metric="dot",
        space="" if table is None else trained.space,
        vocabularies={VOCABULARY: trained.items},
        candidates=table,
        source={"system": SYSTEM, "space": trained.space, "data": trained.config["data"]},
        quality=trained.quality,
    )
