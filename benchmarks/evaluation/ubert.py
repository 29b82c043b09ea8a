"""U-BERT in the evaluation: what comes before its training, and the rating that it gives a list's items.

    reviews -> review encoder, each distinct one once -> vectors               \\
                                                                                pair network -> one column
    newest reviews of each list's user, newest reviews of each item: positions /

Which reviews are known for a list is a matter of the data set: `movielens.py`, `debian.py`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.evaluation.systems import PRETRAINED, REVIEWS
from llmrec_plugin.evaluation.features import Columns
from llmrec_plugin.evaluation.windows import NEVER, Rows, Window
from llmrec_plugin.systems.bert import tokenize
from llmrec_plugin.systems.ubert.finetuning import Pairs, load_pair_network, predict
from llmrec_plugin.systems.ubert.pretraining import encode_reviews, load_encoder

SMALL = ("--dims", "32", "--layers", "1", "--learning-rate", "1e-3")
"""The small size of docs/systems/ubert.md."""


def preparation(kind: str, known: Path, work: Path, *, words: bool = False) -> list[list[str]]:
    """Arguments of ``llmrec train`` for the reviews that ratings are learned from and for the review encoder.

    Args:
        kind: Of the reviews, see ``llmrec train ubert-reviews``.
        known: The part of the source that systems learn from.
        work: Folder of the trained systems.
        words: Whether the opinion words are those that are written beside the reviews.
    """
    reviews = work / REVIEWS
    opinions = ["--opinions", str(reviews / "opinions.txt")] if words else []
    return [
        ["ubert-reviews", kind, str(known), "--output", str(reviews)],
        ["ubert-pretrain", *SMALL, *opinions, "--data", str(reviews), "--output", str(work / PRETRAINED)],
    ]


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """Reviews, in any order.

    Attributes:
        text: (n,) of str.
        author: (n,) keys of users.
        moment: (n,) int64 microseconds since 1970, when each was written; `NEVER` without times.
    """

    text: Sequence[str]
    author: Sequence[str]
    moment: np.ndarray


class Network:
    """The networks that ``llmrec train ubert-pretrain`` and ``llmrec train ubert`` wrote.

    Args:
        work: Folder of the trained systems.

    Attributes:
        user_reviews: Reviews of a user that it reads at most.
        item_reviews: Reviews of an item that it reads at most.
    """

    def __init__(self, work: Path) -> None:
        reviewing, rating = work / PRETRAINED, work / "ubert"
        self._encoder, encoding, _ = load_encoder(reviewing)
        self._network, paired = load_pair_network(rating)
        self._tokenizer, self._max_tokens = reviewing / "tokenizer.json", encoding["max_tokens"]
        self._authors = _ids(reviewing / "users.json")
        self._users, self._items = _ids(rating / "users.json"), _ids(rating / "items.json")
        self._vectors: dict[tuple[int, str], np.ndarray] = {}
        self.user_reviews: int = paired["settings"]["user_reviews"]
        self.item_reviews: int = paired["settings"]["item_reviews"]

    def column(self, window: Window, rows: Rows, reviews: Reviews, of_user: np.ndarray, of_item: np.ndarray) -> Columns:
        """The expected rating of each row, NaN where list or item has no review.

        Users and items that training did not know are read as somebody unknown.

        Args:
            window: Q lists.
            rows: Items of each list.
            reviews: Those that may be read.
            of_user: Positions in `reviews` of what each list's user wrote before it, the newest first,
                (Q, user_reviews) int64; -1 is none.
            of_item: Positions of the reviews of each item of the catalogue, (M, item_reviews) int64.
        """
        catalogue = window.catalogue
        users = np.array([self._users.get(catalogue.users[user], 0) for user in window.user], dtype=np.int64)
        items = np.array([self._items.get(item, 0) for item in catalogue.items], dtype=np.int64)
        query, item = rows.query, rows.item
        moments = np.append(reviews.moment, NEVER)
        latest = np.maximum(moments[of_user[query, 0]], moments[of_item[item, 0]])
        values = np.full((len(rows), 1), np.nan, dtype=np.float32)
        both = np.flatnonzero((of_user[query, 0] >= 0) & (of_item[item, 0] >= 0))
        query, item = query[both], item[both]
        pairs = Pairs(users[query], items[item], of_user[query], of_item[item], np.zeros(len(both), dtype=np.float32))
        values[both, 0] = predict(self._network, pairs, self._encoded(reviews))
        return Columns(names=("ubert_rating",), values=values, latest=latest)

    def _encoded(self, reviews: Reviews) -> torch.Tensor:
        """(n + 1, dims) float32; the last row stands for no review."""
        keys = [(self._authors.get(who, 0), text) for who, text in zip(reviews.author, reviews.text, strict=True)]
        new = [key for key in dict.fromkeys(keys) if key not in self._vectors]
        if new:
            tokens = tokenize(self._tokenizer, [text for _, text in new], self._max_tokens)
            writers = np.array([writer for writer, _ in new], dtype=np.int64)
            self._vectors.update(zip(new, encode_reviews(self._encoder, tokens, writers), strict=True))
        none = np.zeros(self._encoder.users.embedding_dim, dtype=np.float32)
        return torch.from_numpy(np.stack([*(self._vectors[key] for key in keys), none]))


@functools.cache
def network(work: Path) -> Network:
    """The networks in a folder, loaded once."""
    return Network(work)


def _ids(path: Path) -> dict[str, int]:
    """Key -> id, as training numbers the keys of a file; 0 is unknown."""
    return {key: place + 1 for place, key in enumerate(json.loads(path.read_text(encoding="utf-8")))}
