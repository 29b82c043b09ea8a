"""BERT4Rec's models and features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec_plugin import NetworkFeature, NetworkModel, SimilarityFeature

_EXPORT = "llmrec_plugin.systems.bert4rec.export"


def models(source: Path | str, *, name: str = "bert4rec") -> tuple[NetworkModel, NetworkModel, NetworkModel]:
    """The three networks of a folder that ``llmrec train bert4rec`` wrote: ``<name>-user``, ``-item``, ``-score``.

    Args:
        source: The folder, or a source such as ``package:my_plugin/bert4rec``.
        name: Beginning of the names.
    """
    place = source if isinstance(source, str) and source.startswith(("package:", "path:")) else f"path:{source}"
    user, item, score = (
        NetworkModel(name=f"{name}-{part}", source=place, network=f"{_EXPORT}:{part}_network")
        for part in ("user", "item", "score")
    )
    return user, item, score


def sequence_embedding(
    *,
    dims: int,
    model: str = "bert4rec-user",
    entity: str | None = None,
    history: str = "recent_items",
    name: str | None = None,
    **options: Any,
) -> NetworkFeature:
    """The user's vector: what the network expects next, from the keys of the last events.

    Args:
        dims: Of the vectors: ``hidden`` + 1, as `llmrec train bert4rec` prints it.
        model: Name of the user network.
        entity: None computes it from the request; a Feast entity stores it, from a batch source, as a fallback for
            requests without a history.
        history: Column with the keys, a list, newest first.
        name: Of the feature; default ``session_items_embedding`` or ``<entity>_items_embedding``.
        **options: Further fields of `NetworkFeature`, e.g. ``status`` or ``on_empty``.
    """
    return NetworkFeature(
        name=name or f"{entity or 'session'}_items_embedding",
        entity=entity,
        model=model,
        inputs={"history": history},
        dims=dims,
        metric="dot",
        **{"description": "What comes next, from the ids of the last items (BERT4Rec).", **options},
    )


def item_embedding(
    *,
    dims: int,
    model: str = "bert4rec-item",
    entity: str = "item",
    item: str = "item_key",
    name: str | None = None,
    **options: Any,
) -> NetworkFeature:
    """The item's vector, stored; its dot product with a user's vector is the network's logit, bias included.

    Args:
        dims: As for `sequence_embedding`.
        model: Name of the item network.
        entity: Feast entity of the items.
        item: Column with the key. Feast keeps a join key out of a view's columns, so it must be a column of its own.
        name: Of the feature; default ``<entity>_id_embedding``.
        **options: Further fields of `NetworkFeature`.
    """
    return NetworkFeature(
        name=name or f"{entity}_id_embedding",
        entity=entity,
        model=model,
        inputs={"item": item},
        dims=dims,
        metric="dot",
        **{"description": "The item among those that follow one another (BERT4Rec).", **options},
    )


def candidate_score(
    *,
    model: str = "bert4rec-score",
    history: str = "recent_items",
    candidate: str = "candidate_id",
    name: str = "candidate_sequence_score",
    entity: str | None = None,
    **options: Any,
) -> NetworkFeature:
    """The logit of one candidate after a history, ``Float32``; both come with the request.

    A list of candidates is cheaper by `similarity`: the user's vector is then computed once.

    Args:
        model: Name of the score network.
        history: Column with the keys, a list, newest first.
        candidate: Column with the candidate's key.
        name: Of the feature.
        entity: None, or an entity whose rows are pairs.
        **options: Further fields of `NetworkFeature`.
    """
    return NetworkFeature(
        name=name,
        entity=entity,
        model=model,
        inputs={"history": history, "candidate": candidate},
        dims=None,
        metric=None,
        **{"description": "How likely the candidate comes next (BERT4Rec's logit).", **options},
    )


def similarity(
    user: NetworkFeature, item: NetworkFeature, *, name: str = "sequence_item_score", **options: Any
) -> SimilarityFeature:
    """The logit of an item with a stored vector: the dot product of both vectors.

    Args:
        user: From `sequence_embedding`, of request time or stored.
        item: From `item_embedding`.
        name: Of the feature.
        **options: Further fields of `SimilarityFeature`.
    """
    return SimilarityFeature(
        name=name,
        left=user.name,
        right=item.name,
        metric="dot",
        **{"description": "How likely the item comes next (BERT4Rec's logit).", **options},
    )
