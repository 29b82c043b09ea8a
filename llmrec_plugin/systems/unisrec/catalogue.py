"""The items of a data set with their text vectors, and its events as sequences of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec_plugin.interactions import Dataset
from llmrec_plugin.systems.sequences import Sequences, catalogue_texts, split_by, to_sequences

Encode = Callable[[Sequence[str]], np.ndarray]
"""From n texts to their vectors, (n, dims) float32."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Items that have a text.

    Attributes:
        sequences: Their events; the vocabulary is all of them, seen in training or not.
        texts: Of each item, in the order of the vocabulary.
        vectors: Of the texts, (items, dims) float32.
    """

    sequences: Sequences
    texts: tuple[str, ...]
    vectors: np.ndarray

    def trained_items(self) -> np.ndarray:
        """Ids of the items with a training event, sorted, int64."""
        return np.flatnonzero(self.sequences.counts()) + 1


def read_catalogue(dataset: Dataset, encode: Encode, template: str, *, split: str, seed: int) -> Catalogue:
    """Items with a text, their vectors, and the events of a split.

    Args:
        dataset: Interactions and items.
        encode: The frozen text encoder.
        template: Text over the item's columns, e.g. ``"{title}. {genres}"``.
        split: ``data`` or ``leave-one-out``.
        seed: Of a split that is drawn.

    Raises:
        InputError: No item has a text, or there are too few events.
    """
    found = catalogue_texts(dataset, template)
    sequences = to_sequences(split_by(dataset, split, seed), list(found))
    texts = tuple(found.values())
    return Catalogue(sequences=sequences, texts=texts, vectors=encode(texts))
