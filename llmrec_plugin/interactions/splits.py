"""Parts of the interactions: to learn from, to choose with, to measure on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions.atomic import PART, PARTS
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
        InputError: None came, or a row belongs to no part.
    """
    if PART not in dataset.interactions.columns:
        raise InputError(
            f"data set {dataset.name!r} has no given split: expected files .train.inter, .valid.inter, ..."
        )
    rows = dataset.interactions
    part = rows[PART].map({name: number for number, name in enumerate(PARTS)})
    if part.isna().any():
        wrong = rows[PART][part.isna()].iloc[0]
        raise InputError(f"data set {dataset.name!r}: {PART} must be one of {', '.join(PARTS)}, got {wrong!r}.")
    return _parts(rows.drop(columns=PART), part.to_numpy())


def temporal_split(dataset: Dataset, *, validation: float = 0.1, test: float = 0.1) -> Split:
    """Two moments for all users: what happened before the first, between them, and from the second on.

    Every row of a part is later than every row of the parts before it, so nothing learned from `train` lies in the
    future of a row of the others.

    Args:
        dataset: With times.
        validation: Share of the interactions, about; events of one moment stay together.
        test: Share of the interactions, about.

    Raises:
        InputError: There are no times, or the shares leave a part empty.
    """
    if not dataset.timed:
        raise InputError(f"data set {dataset.name!r} has no times; use leave_out_split.")
    _check_shares(validation, test)
    rows = dataset.interactions
    times = rows[TIME].astype("int64").to_numpy()
    if not len(times):
        return _parts(rows, np.zeros(0, dtype=int))
    cuts = [round(len(times) * share) for share in (1 - validation - test, 1 - test)]
    first, second = (times[min(cut, len(times) - 1)] for cut in cuts)
    return _parts(rows, (times >= first).astype(int) + (times >= second))


def leave_out_split(dataset: Dataset, *, seed: int = 0, validation: float = 0.1, test: float = 0.1) -> Split:
    """Of each user's interactions, shares drawn at random are left out.

    At least one is left out for each of validation and test, and at least one stays in train; a user with one or two
    interactions keeps them all there.

    Raises:
        InputError: The shares leave a part empty.
    """
    _check_shares(validation, test)
    rng = np.random.default_rng(seed)
    part = np.zeros(len(dataset.interactions), dtype=int)
    for rows in dataset.interactions.groupby(USER, sort=True).indices.values():
        if len(rows) < 3:
            continue
        order = rng.permutation(rows)
        tested = min(max(round(test * len(rows)), 1), len(rows) - 2)
        validated = min(max(round(validation * len(rows)), 1), len(rows) - 1 - tested)
        part[order[:tested]], part[order[tested : tested + validated]] = 2, 1
    return _parts(dataset.interactions, part)


def _check_shares(validation: float, test: float) -> None:
    if not (0 < validation < 1 and 0 < test < 1 and validation + test < 1):
        raise InputError(f"A split needs shares between 0 and 1 that leave rows to train on, got {validation}, {test}.")


def _parts(rows: pd.DataFrame, part: np.ndarray) -> Split:
    train, validation, test = (rows[part == number].reset_index(drop=True) for number in range(3))
    if not len(train) or not len(validation) or not len(test):
        raise InputError(
            f"A split needs rows in each part, got {len(train)}, {len(validation)} and {len(test)} of {len(rows)}. "
            "Take other shares, or more data."
        )
    return Split(train=train, validation=validation, test=test)
