"""The text rating in the evaluation: stored vectors of both texts, and the trained head.

    text of each list's user -> encoder -> vector \\
                                                   head -> one column
    text of each item        -> encoder -> vector /

What a user's text is, is a matter of the data set: `movielens.py`, `debian.py`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.evaluation.systems import TEXT_RATING, DataSet, trained
from llmrec_plugin import EmbeddingFeature, EncoderModel
from llmrec_plugin.evaluation.declared import Computer, item_columns
from llmrec_plugin.evaluation.features import Columns
from llmrec_plugin.evaluation.windows import Rows, Window
from llmrec_plugin.settings import load_settings
from llmrec_plugin.systems.text_rating import features
from llmrec_plugin.systems.text_rating.training import load_text_rating

USER_TEXT = "user_text"
_PAIRS = 8_192  # of the head at a time


def text_encoder(name: str) -> EncoderModel:
    """The encoder that was trained with the text rating of a data set."""
    folder = trained(name) / TEXT_RATING
    config = json.loads((folder / "config.json").read_text())
    return features.text_encoder(
        folder,
        dims=config["bert"]["hidden_size"],
        max_tokens=config["settings"]["max_tokens"],
        name=f"{name}-text-rating-encoder",
    )


def column(data: DataSet, texts: Sequence[str], window: Window, rows: Rows, latest: np.ndarray) -> Columns:
    """The expected rating of each row.

    Args:
        data: The data set.
        texts: Of the user of each list.
        window: The lists.
        rows: Items of each list.
        latest: (Q,) int64 moment of the newest event in each text.
    """
    computer, head, user, item = _loaded(data.name, data.item_text)
    users = torch.from_numpy(computer.vectors(user, {USER_TEXT: texts}))
    items = torch.from_numpy(computer.vectors(item, item_columns(item, window.catalogue)))
    found = np.empty(len(rows), dtype=np.float32)
    with torch.inference_mode():
        for first in range(0, len(rows), _PAIRS):
            part = slice(first, first + _PAIRS)
            found[part] = head(users[rows.query[part]], items[rows.item[part]]).numpy()
    return Columns(names=("text_rating",), values=found[:, None], latest=latest[rows.query])


@functools.cache
def _loaded(name: str, item_text: str) -> tuple[Computer, Any, EmbeddingFeature, EmbeddingFeature]:
    """What computes vectors of texts, the head, and the features of both sides."""
    network, _ = load_text_rating(trained(name) / TEXT_RATING)
    encoder = text_encoder(name)
    user, item = (
        features.text_vector(encoder, name=f"{side}_text_vec", entity=side, text=text)
        for side, text in (("user", f"{{{USER_TEXT}}}"), ("item", item_text))
    )
    return Computer(load_settings()), network.head, user, item
