"""What was known before a moment, for systems that are trained on interactions.

A label's inputs are made of strictly earlier events. What happens in the label's own moment, the label's own event
included, is not known yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrec_plugin.interactions import TIME, Split

if TYPE_CHECKING:
    import pandas as pd

PART, MOMENT = "part", "moment"
TRAIN, VALIDATION, TEST = range(3)


def timeline(split: Split, *, seed: int = 0) -> pd.DataFrame:
    """The rows of all parts, one after the other, with a column for the part and one for the moment.

    Without times, rows of training get a random order, one moment each; validation is one moment after them and test
    the one after that. So no label is made with its own event there either, and whether it has been left out cannot be
    told from how many events remain.

    Args:
        split: Parts of the interactions.
        seed: Of the order of rows without times.

    Returns:
        The columns of the interactions and ``part`` (0 training, 1 validation, 2 test) and ``moment`` (int64:
        microseconds since 1970, or a position).
    """
    import pandas as pd

    parts = (split.train, split.validation, split.test)
    rows = pd.concat(parts, ignore_index=True)
    part = np.repeat(np.arange(3), [len(rows) for rows in parts])
    if TIME in rows.columns:
        moment = rows[TIME].astype("datetime64[us, UTC]").astype("int64").to_numpy()
    else:
        learned = len(split.train)
        order = np.random.default_rng(seed).permutation(learned)
        moment = np.concatenate([order, learned - 1 + part[learned:]]).astype(np.int64)
    return rows.assign(**{PART: part, MOMENT: moment})


def newest_before(
    keys: np.ndarray, moments: np.ndarray, event_keys: np.ndarray, event_moments: np.ndarray, last_n: int
) -> np.ndarray:
    """The events of a key that are strictly earlier than a moment, the newest first.

    Args:
        keys: Whose events, one for each row, (n,) of str.
        moments: Before when, (n,) int64.
        event_keys: Whose each event is, (m,) of str, in any order.
        event_moments: When, (m,) int64; of events of one moment, those that come later in the order are newer.
        last_n: How many events a row has at most.

    Returns:
        Positions of events, (n, last_n) int64, -1 where a row has no more.
    """
    found = np.full((len(keys), last_n), -1, dtype=np.int64)
    if not len(keys) or not len(event_keys):
        return found
    codes = {key: code for code, key in enumerate(dict.fromkeys(event_keys))}
    event_codes = np.array([codes[key] for key in event_keys], dtype=np.int64)
    row_codes = np.array([codes.get(key, -1) for key in keys], dtype=np.int64)
    known = np.unique(event_moments)  # moments by rank, so that key and moment fit into one number
    event_places = event_codes * (len(known) + 1) + np.searchsorted(known, event_moments)
    order = np.argsort(event_places, kind="stable")
    places = event_places[order]
    ends = np.searchsorted(places, row_codes * (len(known) + 1) + np.searchsorted(known, moments))
    starts = np.searchsorted(places, row_codes * (len(known) + 1))
    positions = ends[:, None] - 1 - np.arange(last_n)
    valid = (positions >= starts[:, None]) & (row_codes >= 0)[:, None]
    found[valid] = order[positions[valid]]
    return found
