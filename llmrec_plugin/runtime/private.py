"""Rows of features with noise: whose they are, and their values as the noise leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from llmrec_plugin.binding import BoundFeature, BoundNetwork
from llmrec_plugin.errors import InputError, MissingColumnError
from llmrec_plugin.keys import load_noise_key
from llmrec_plugin.pipeline.columns import Status, Value
from llmrec_plugin.pipeline.noise import privatize, user_of
from llmrec_plugin.specs import GaussianNoise


def without_user(bound: BoundFeature | BoundNetwork, columns: Mapping[str, Sequence[Any]]) -> dict[int, str]:
    """The rows that the noise of a feature cannot be drawn for, and why."""
    noise = bound.feature.noise
    if noise is None:
        return {}
    if noise.user not in columns:
        raise MissingColumnError(bound.feature.name, [noise.user], columns)
    invalid = {}
    for row, cell in enumerate(columns[noise.user]):
        try:
            user_of(cell)
        except InputError as exc:
            invalid[row] = str(exc)
    return invalid


def privatized(
    bound: BoundFeature | BoundNetwork,
    noise: GaussianNoise,
    values: list[Value],
    statuses: list[Status],
    inputs: Sequence[Sequence[str]],
    columns: Mapping[str, Sequence[Any]],
) -> tuple[list[Value], list[Status]]:
    """Values with noise, and their statuses. The cache holds vectors without it."""
    key = load_noise_key(noise.key_id)
    rows = [row for row, status in enumerate(statuses) if status in ("ok", "empty")]
    if not rows:
        return values, statuses
    noisy = privatize(
        noise,
        key,
        bound.fingerprint,
        np.stack([cast(np.ndarray, values[row]) for row in rows]),
        [user_of(columns[noise.user][row]) for row in rows],
        [inputs[row] for row in rows],
    )
    private = dict(zip(rows, noisy, strict=True))
    return (
        [private.get(row, value) for row, value in enumerate(values)],
        ["ok" if status == "empty" else status for status in statuses],  # who has no data is not told
    )
