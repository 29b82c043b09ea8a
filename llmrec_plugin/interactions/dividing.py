"""Interactions for systems to learn from, and interactions for a ranker that reads what they learned.

A system that was trained on the events that a ranker then learns from knows their outcome: in training its values look
better than they are later, and the ranker trusts them too much.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions.atomic import PART
from llmrec_plugin.interactions.dataset import TIME, USER, Dataset
from llmrec_plugin.interactions.splits import split_dataset

RANKER_SHARE = 0.3
"""Share of train that ``llmrec evaluate`` teaches its ranker with: with times, the last events."""


def divide(dataset: Dataset, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """What systems learn from, and what ``llmrec evaluate`` then trains and tests its ranker on.

    With times the first has the events before the first one that the ranker learns from, and the second is the whole
    data set, whose earlier events are histories. Without, each has half of the users. Both have all items.

    Args:
        dataset: Interactions and texts.
        seed: Of the choice of users, a hash of the user and the seed; without meaning where there are times.

    Raises:
        InputError: One of the two would have no interactions.
    """
    events = dataset.interactions
    if dataset.timed:
        train = split_dataset(dataset).train
        start = train[TIME].iloc[min(round(len(train) * (1 - RANKER_SHARE)), len(train) - 1)]
        before = events[events[TIME] < start].drop(columns=PART, errors="ignore").reset_index(drop=True)
        systems, ranker = replace(dataset, interactions=before), dataset
    else:
        users = sorted(dataset.users[USER], key=lambda user: hashlib.sha256(f"{seed}\0{user}".encode()).digest())
        systems, ranker = (
            _of_users(dataset, set(half)) for half in (users[: len(users) // 2], users[len(users) // 2 :])
        )
    for part, name in ((systems, "systems"), (ranker, "the ranker")):
        if not len(part.interactions):
            raise InputError(f"data set {dataset.name!r}: no interactions for {name} among its {len(events)}.")
    return systems, ranker


def _of_users(dataset: Dataset, users: set[str]) -> Dataset:
    events, table = dataset.interactions, dataset.users
    return replace(
        dataset,
        interactions=events[events[USER].isin(users)].reset_index(drop=True),
        users=table[table[USER].isin(users)].reset_index(drop=True),
    )
