"""Parts of the interactions: to learn from, to choose with, to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions.atomic import PART
from llmrec_plugin.interactions.dataset import TIME, USER, Dataset

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Split:
    """Interactions of each part, with the columns and the order of the data set's.

    Attributes:
        train: To learn from.
        validation: For early stopping and hyper-parameters.
        test: To measure once.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame


def split_dataset(dataset: Dataset, *, seed: int = 0, validation: float = 0.1, test: float = 0.1) -> Split:
    """The split that is given with the data, else by time where there are times, else by leaving out."""
    if PART in dataset.interactions.columns:
        return given_split(dataset)
    if dataset.timed:
        return temporal_split(dataset, validation=validation, test=test)
    return leave_out_split(dataset, seed=seed, validation=validation, test=test)


def given_split(dataset: Dataset) -> Split:
    """The split that came with the data.

    Raises:
        InputError: None came.
    """
    if PART not in dataset.interactions.columns:
        raise InputError(
            f"data set {dataset.name!r} has no given split: expected files .train.inter, .valid.inter, ..."
        )
    rows = dataset.interactions
    return _parts(rows.drop(columns=PART), rows[PART].map({"train": 0, "valid": 1, "test": 2}).to_numpy())


def temporal_split(dataset: Dataset, *, validation: float = 0.1, test: float = 0.1) -> Split:
    """Two moments for all users: what happened before the first, between them, and from the second on.

    No part holds anything that is earlier than what an earlier part ends with, so nothing learned from `train` lies in
    the future of a row of the others.

    Args:
        dataset: With times.
        validation: Share of the interactions, about; events of one moment stay together.
        test: Share of the interactions, about.

    Raises:
        InputError: There are no times, or the shares leave a part empty.
    """
    if not dataset.timed:
        raise InputError(f"data set {dataset.name!r} has no times; use leave_out_split.")
    times = dataset.interactions[TIME].to_numpy()
    first, second = (times[min(int(len(times) * share), len(times) - 1)] for share in (1 - validation - test, 1 - test))
    return _parts(dataset.interactions, (times >= first).astype(int) + (times >= second))


def leave_out_split(dataset: Dataset, *, seed: int = 0, validation: float = 0.1, test: float = 0.1) -> Split:
    """Of each user's interactions, shares drawn at random are left out; a user with one or two keeps them all in train.

    Raises:
        InputError: The shares leave a part empty.
    """
    rng = np.random.default_rng(seed)
    part = np.zeros(len(dataset.interactions), dtype=int)
    for rows in dataset.interactions.groupby(USER, sort=True).indices.values():
        if len(rows) < 3:
            continue
        order = rng.permutation(rows)
        tested, validated = max(round(test * len(rows)), 1), max(round(validation * len(rows)), 1)
        part[order[:tested]], part[order[tested : tested + validated]] = 2, 1
    return _parts(dataset.interactions, part)


def _parts(rows: pd.DataFrame, part: np.ndarray) -> Split:
    train, validation, test = (rows[part == number].reset_index(drop=True) for number in range(3))
    if not len(train) or not len(validation) or not len(test):
        raise InputError(
            f"A split needs rows in each part, got {len(train)}, {len(validation)} and {len(test)} of {len(rows)}."
        )
    return Split(train=train, validation=validation, test=test)
