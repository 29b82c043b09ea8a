"""What `llmrec export` reads of the folder that training wrote. Needs PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.networks import Network, Tokens, Vector
from llmrec_plugin.systems.text_rating.training import ENCODER, load_text_rating

_USERS = (
    "nothing yet",
    "liked The Paper Lantern; Harbour Lights. disliked Night Train.",
    "liked a web server; a fast parser; a small shell.",
    "disliked Alpha.",
    "liked " + "; ".join(f"Episode {number}" for number in range(40)) + ".",
    "liked Q & A; 12 Hours; Über Alles?",
    "liked The Paper Lantern.",
    "disliked " + "a very long title of a film that nobody saw; " * 12,
)
_ITEMS = (
    "The Paper Lantern",
    "x",
    "A library for parsing of configuration files, with bindings for other languages",
    "Night Train (1999). Crime|Drama",
    "Harbour Lights",
    "a " * 100,
    "Episode 41",
    "12 Hours. Documentary",
)


def two_texts(folder: Path) -> Network:
    """The user's and the item's text -> rating."""
    network, config = load_text_rating(folder)
    length = config["settings"]["max_tokens"]
    return Network(
        module=network,
        inputs=tuple(Tokens(name=name, max_tokens=length) for name in ("user", "item")),
        dims=None,
        examples=[{"user": user, "item": item} for user, item in zip(_USERS, _ITEMS, strict=True)],
        tokenizer=folder / ENCODER / "tokenizer.json",
        source=_source(config),
        quality=_quality(folder),
    )


def two_vectors(folder: Path) -> Network:
    """The user's and the item's vector, from the encoder -> rating."""
    network, config = load_text_rating(folder)
    dims = config["bert"]["hidden_size"]
    vectors = np.random.default_rng(0).standard_normal((2, 12, dims))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[1, 0] = vectors[0, 0]  # one pair of equal texts
    return Network(
        module=network.head,
        inputs=tuple(Vector(name=name, dims=dims) for name in ("user", "item")),
        dims=None,
        examples=[
            {"user": user.tolist(), "item": item.tolist()}
            for user, item in vectors.astype(np.float32).transpose(1, 0, 2)
        ],
        source=_source(config),
        quality=_quality(folder),
    )


def _source(config: dict[str, Any]) -> dict[str, str]:
    encoder, head = config["weights"]
    return {"encoder": encoder, "head": head}


def _quality(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "quality.json").read_text(encoding="utf-8")))
