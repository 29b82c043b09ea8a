"""Review matrices as rows of a feature table: the newest reviews of a user or an item at each moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrec_plugin.errors import InputError, MissingColumnError
from llmrec_plugin.systems.past import newest_before

if TYPE_CHECKING:
    import pandas as pd

_STEP = np.timedelta64(1, "us")


def review_matrices(
    reviews: pd.DataFrame,
    *,
    key: str,
    vector: str = "review_vec",
    last_n: int = 10,
    timestamp: str = "event_timestamp",
    name: str = "reviews",
) -> pd.DataFrame:
    """One row for each user (or item) and moment of a review: the newest reviews up to then, the newest first.

    A row is dated one microsecond after its newest review, so a point-in-time join gives a label only reviews that are
    strictly earlier, and never the label's own.

    Args:
        reviews: One row per review, in any order: `key`, `vector` (dims numbers) and `timestamp` (naive times are UTC).
        key: Column of the user or the item.
        vector: Column of the review vectors, from the review encoder.
        last_n: Reviews of a row at most; as many as the network reads.
        timestamp: Column of the moment at which review and rating were known.
        name: Column of the matrices in the result.

    Returns:
        `key`, `timestamp` (UTC) and `name`: n * dims numbers in one list, for `VectorSequence` inputs.

    Raises:
        MissingColumnError: A column is not there.
        InputError: A review has no time, or vectors differ in length.
    """
    import pandas as pd  # only whoever prepares sources needs it

    missing = [column for column in (key, vector, timestamp) if column not in reviews.columns]
    if missing:
        raise MissingColumnError("review_matrices", missing, reviews.columns)
    times = pd.to_datetime(reviews[timestamp], utc=True).astype("datetime64[us, UTC]")
    if times.isna().any():
        raise InputError(f"review_matrices: {int(times.isna().sum())} reviews have no {timestamp!r}; leave them out.")
    lengths = sorted({len(values) for values in reviews[vector]})
    if len(lengths) > 1:
        raise InputError(f"review_matrices: vectors must have one length, got {lengths}.")
    rows = pd.DataFrame({key: reviews[key], timestamp: times + _STEP}).drop_duplicates(ignore_index=True)
    found = newest_before(
        rows[key].to_numpy(),
        rows[timestamp].astype("int64").to_numpy(),
        reviews[key].to_numpy(),
        times.astype("int64").to_numpy(),
        last_n,
    )
    vectors = np.array(reviews[vector].tolist(), dtype=np.float32).reshape(len(reviews), -1)
    return rows.assign(**{name: [vectors[row[row >= 0]].ravel().tolist() for row in found]})
