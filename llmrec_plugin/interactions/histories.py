"""What a user had done before a moment."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from llmrec_plugin.interactions.dataset import ITEM, TIME, USER

if TYPE_CHECKING:
    import pandas as pd


def histories(events: pd.DataFrame, last_n: int) -> list[list[str]]:
    """For each event, the items of the user's last events before it, newest first.

    Of events at one time, none is in the history of another: what happens in the same moment is not known yet. Without
    times, the order of the rows is the order of events.

    Args:
        events: Interactions in order of time, see `Dataset`.
        last_n: How many items a history has at most.

    Returns:
        A list of item keys for each row, in order.
    """
    past: dict[str, deque[str]] = {}
    now: dict[str, list[str]] = {}  # of the moment that is being read
    moments: dict[str, object] = {}
    found: list[list[str]] = []
    times = events[TIME].astype("int64").tolist() if TIME in events.columns else range(len(events))
    for user, item, moment in zip(events[USER], events[ITEM], times, strict=True):
        log = past.setdefault(user, deque(maxlen=last_n))
        if moments.get(user) != moment:
            log.extendleft(now.get(user, ()))
            now[user], moments[user] = [], moment
        found.append(list(log))
        now[user].append(item)
    return found
