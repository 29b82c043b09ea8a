"""What `llmrec export` reads of the folders that training wrote. Needs PyTorch.

Each function is the ``network`` of a `NetworkModel`. Those that end in ``_anonymous`` read no ids and so serve users
and items that training did not know; where a network reads ids, a row with an unknown one is empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from llmrec_plugin.networks import Id, Network, Tokens, VectorSequence
from llmrec_plugin.systems.ubert.finetuning import load_pair_network
from llmrec_plugin.systems.ubert.network import PairNetwork, ReviewEncoder
from llmrec_plugin.systems.ubert.pretraining import load_encoder

UNKNOWN = "(unknown)"
_TEXTS = (
    "good",
    "A slow start, but the last hour is wonderful.",
    "bad, dull and far too long",
    "I did not like it.",
    "Great cast! Great music! I would see it again at once.",
    "It is what it is: neither good nor bad, and gone from memory the next day.",
    "good " * 120,
    "The plot makes no sense, the jokes are old, and still the children loved every minute of it. " * 12,
)


def review_encoder(folder: Path) -> Network:
    """Review and author -> review vector (dims)."""
    return _review_encoder(folder, with_id=True)


def review_encoder_anonymous(folder: Path) -> Network:
    """Review -> review vector (dims), as of an unknown author."""
    return _review_encoder(folder, with_id=False)


def user_vector(folder: Path) -> Network:
    """The user's review vectors and id -> user vector (dims): U."""
    return _side(folder, "user", with_id=True)


def user_vector_anonymous(folder: Path) -> Network:
    """The user's review vectors -> user vector (dims)."""
    return _side(folder, "user", with_id=False)


def item_vector(folder: Path) -> Network:
    """The item's review vectors and id -> item vector (dims)."""
    return _side(folder, "item", with_id=True)


def item_vector_anonymous(folder: Path) -> Network:
    """The item's review vectors -> item vector (dims)."""
    return _side(folder, "item", with_id=False)


def pair_rating(folder: Path) -> Network:
    """Review vectors and ids of both -> rating."""
    return _pair(folder, rating=True, with_id=True)


def pair_rating_anonymous(folder: Path) -> Network:
    """Review vectors of both -> rating."""
    return _pair(folder, rating=True, with_id=False)


def pair_vector(folder: Path) -> Network:
    """Review vectors and ids of both -> vector before the rating (hidden)."""
    return _pair(folder, rating=False, with_id=True)


def pair_vector_anonymous(folder: Path) -> Network:
    """Review vectors of both -> vector before the rating (hidden)."""
    return _pair(folder, rating=False, with_id=False)


class _Review(nn.Module):
    def __init__(self, encoder: ReviewEncoder, with_id: bool) -> None:
        super().__init__()
        self.encoder, self.with_id = encoder, with_id

    def forward(self, ids: Tensor, mask: Tensor, *user: Tensor) -> Tensor:
        return self.encoder(ids, mask, user[0] if self.with_id else _nobody(ids))


class _Side(nn.Module):
    def __init__(self, network: PairNetwork, side: str, with_id: bool) -> None:
        super().__init__()
        self.with_id = with_id
        self.embedding = network.users if side == "user" else network.items
        self.encoder = network.user_encoder if side == "user" else network.item_encoder

    def forward(self, reviews: Tensor, mask: Tensor, *key: Tensor) -> Tensor:
        return self.encoder(self.embedding(key[0] if self.with_id else _nobody(mask)), reviews, mask)


class _Pair(nn.Module):
    def __init__(self, network: PairNetwork, rating: bool, with_id: bool) -> None:
        super().__init__()
        self.network, self.rating, self.with_id = network, rating, with_id

    def forward(self, a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor, *keys: Tensor) -> Tensor:
        user, item = keys if self.with_id else (_nobody(a_mask), _nobody(b_mask))
        compute = self.network if self.rating else self.network.vector
        return compute(a, a_mask, b, b_mask, user, item)


def _nobody(like: Tensor) -> Tensor:
    """Id 0 for each row, (batch,) int64."""
    return like.new_zeros(like.shape[0])


def _review_encoder(folder: Path, *, with_id: bool) -> Network:
    encoder, config, users = load_encoder(folder)
    keys = _keys(users)
    examples: list[Mapping[str, Any]] = [{"review": text} for text in _TEXTS]
    if with_id:
        examples = [{**row, "user": keys[index % len(keys)]} for index, row in enumerate(examples)]
    text = Tokens(name="review", max_tokens=config["max_tokens"])
    return Network(
        module=_Review(encoder, with_id).eval(),
        inputs=(text, Id(name="user", vocabulary="users")) if with_id else (text,),
        dims=encoder.users.embedding_dim,
        examples=examples,
        space=config["weights"],
        vocabularies={"users": users} if with_id else {},
        tokenizer=folder / "tokenizer.json",
        source={"weights": config["weights"]},
        quality=_quality(folder),
    )


def _side(folder: Path, side: str, *, with_id: bool) -> Network:
    network, config = load_pair_network(folder)
    last_n = config["settings"][f"{side}_reviews"]
    keys = _read(folder, f"{side}s")
    examples: list[dict[str, Any]] = [{"reviews": vectors} for vectors in _matrices(config, last_n, seed=0)]
    if with_id:
        examples = [{**row, side: key} for row, key in zip(examples, _cycled(keys, len(examples)), strict=True)]
    reviews = VectorSequence(name="reviews", dims=config["dims"], max_length=last_n)
    return Network(
        module=_Side(network, side, with_id).eval(),
        inputs=(reviews, Id(name=side, vocabulary=f"{side}s")) if with_id else (reviews,),
        dims=config["dims"],
        examples=examples,
        space=f"{config['weights']}-{side}",
        vocabularies={f"{side}s": keys} if with_id else {},
        source={"weights": config["weights"], "review_encoder": config["review_encoder"]},
        quality=_quality(folder),
    )


def _pair(folder: Path, *, rating: bool, with_id: bool) -> Network:
    network, config = load_pair_network(folder)
    sizes = config["settings"]
    vocabularies = {"users": _read(folder, "users"), "items": _read(folder, "items")} if with_id else {}
    inputs: list[Any] = [
        VectorSequence(name=f"{side}_reviews", dims=config["dims"], max_length=sizes[f"{side}_reviews"])
        for side in ("user", "item")
    ]
    matrices = [_matrices(config, sizes[f"{side}_reviews"], seed=seed) for seed, side in enumerate(("user", "item"))]
    examples: list[dict[str, Any]] = [
        {"user_reviews": of_user, "item_reviews": of_item}
        for of_user, of_item in zip(matrices[0], reversed(matrices[1]), strict=True)
    ]
    if with_id:
        inputs += [Id(name="user", vocabulary="users"), Id(name="item", vocabulary="items")]
        for side in ("user", "item"):
            for row, key in zip(examples, _cycled(vocabularies[f"{side}s"], len(examples)), strict=True):
                row[side] = key
    return Network(
        module=_Pair(network, rating, with_id).eval(),
        inputs=tuple(inputs),
        dims=None if rating else sizes["hidden"],
        examples=examples,
        vocabularies=vocabularies,
        source={"weights": config["weights"], "review_encoder": config["review_encoder"]},
        quality=_quality(folder),
    )


def _matrices(config: Mapping[str, Any], last_n: int, *, seed: int) -> list[list[float]]:
    """Review matrices as flat lists, of 1 to more than `last_n` reviews, of the size of real ones."""
    rng = np.random.default_rng(seed)
    lengths = [1, 1, 2, max(1, last_n // 2), max(1, last_n - 1), last_n, last_n, last_n + 2]
    return [rng.normal(0, config["scale"], length * config["dims"]).astype(np.float32).tolist() for length in lengths]


def _keys(keys: list[str]) -> list[str]:
    return [*keys[:5], keys[-1], UNKNOWN]


def _cycled(keys: list[str], count: int) -> list[str]:
    chosen = _keys(keys)
    return [chosen[index % len(chosen)] for index in range(count)]


def _read(folder: Path, name: str) -> list[str]:
    return list(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def _quality(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "quality.json").read_text(encoding="utf-8")))
