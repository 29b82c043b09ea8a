"""Interactions of users with items, and their texts: what systems are trained on and measured with.

    atomic files (`.inter`, `.item`, `.user`) or a Feast historical read -> `Dataset` -> `Split` -> training, evaluation

Keys are strings. Importing this package loads neither torch nor feast.
"""

from __future__ import annotations

from llmrec_plugin.interactions.atomic import read_atomic, write_atomic
from llmrec_plugin.interactions.dataset import ITEM, RATING, TIME, USER, Dataset
from llmrec_plugin.interactions.dividing import divide
from llmrec_plugin.interactions.historical import from_historical
from llmrec_plugin.interactions.histories import histories
from llmrec_plugin.interactions.splits import Split, given_split, leave_out_split, split_dataset, temporal_split

__all__ = [
    "ITEM",
    "RATING",
    "TIME",
    "USER",
    "Dataset",
    "Split",
    "divide",
    "from_historical",
    "given_split",
    "histories",
    "leave_out_split",
    "read_atomic",
    "split_dataset",
    "temporal_split",
    "write_atomic",
]
