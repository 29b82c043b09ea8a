"""What is read of a user: the titles of the last items, liked and not, before a moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from llmrec_plugin.interactions import ITEM, RATING, TIME, USER
from llmrec_plugin.systems.past import newest_before

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "nothing yet"
"""The text of a user without a history."""

_STEP = np.timedelta64(1, "us")


def history_texts(
    keys: np.ndarray,
    moments: np.ndarray,
    events: pd.DataFrame,
    titles: Mapping[str, str],
    *,
    last_n: int,
    liked: float,
    moment: str,
) -> list[str]:
    """What users did strictly before a moment, as ``liked A; B. disliked C``, the newest first.

    Args:
        keys: Users, one for each text, (n,).
        moments: Before when, (n,) int64.
        events: Interactions: user, item, `moment` (int64) and, if there are any, ratings.
        titles: Item -> what is written of it.
        last_n: Items of a text at most.
        liked: Ratings from here on count as liked; so does an event without a rating.
        moment: Column of the moments in `events`.

    Returns:
        n texts; `NOTHING` for a user without earlier events.
    """
    found = newest_before(keys, moments, events[USER].to_numpy(), events[moment].to_numpy(), last_n)
    named = [titles.get(item) or "" for item in events[ITEM]]
    good = ~(events[RATING] < liked).to_numpy() if RATING in events.columns else np.ones(len(events), dtype=bool)
    return [_told([named[event] for event in row if event >= 0], good[row[row >= 0]]) for row in found]


def user_texts(events: pd.DataFrame, titles: Mapping[str, str], *, last_n: int = 8, liked: float = 4.0) -> pd.DataFrame:
    """The text of each user after each moment, as rows of a feature table.

    A row is dated one microsecond after the events that it is made of, so a point-in-time join gives a label only what
    is strictly earlier.

    Args:
        events: Interactions with times, see `llmrec_plugin.interactions.Dataset`.
        titles: Item -> what is written of it, see ``Dataset.item_texts``.
        last_n: Items of a text at most, as in training.
        liked: As in training.

    Returns:
        ``user_id``, ``event_timestamp`` (UTC) and ``user_text``.
    """
    import pandas as pd  # only whoever prepares sources needs it

    times = pd.to_datetime(events[TIME], utc=True).astype("datetime64[us, UTC]")
    rows = pd.DataFrame({USER: events[USER], "event_timestamp": times + _STEP}).drop_duplicates(ignore_index=True)
    texts = history_texts(
        rows[USER].to_numpy(),
        rows["event_timestamp"].astype("int64").to_numpy(),
        events.assign(moment=times.astype("int64")),
        titles,
        last_n=last_n,
        liked=liked,
        moment="moment",
    )
    return rows.assign(user_text=texts)


def _told(titles: list[str], good: np.ndarray) -> str:
    parts = [
        f"{word} {'; '.join(chosen)}."
        for word, kind in (("liked", True), ("disliked", False))
        if (chosen := [title for title, is_good in zip(titles, good, strict=True) if is_good == kind and title])
    ]
    return " ".join(parts) or NOTHING
