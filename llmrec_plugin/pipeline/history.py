"""An event log -> the rows that a `HistoryEmbeddingFeature` reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrec_plugin.errors import InputError, MissingColumnError

if TYPE_CHECKING:
    import pandas as pd


def history_frame(
    events: pd.DataFrame,
    *,
    entity: str,
    text: str,
    timestamp: str,
    last_n: int,
    column: str = "history_texts",
    delay: timedelta = timedelta(microseconds=1),
) -> pd.DataFrame:
    """One row per user and moment of an event: the texts of the user's last events, newest first.

    Written to parquet, it is the source of a feature view with an ``Array(String)`` column. A row is dated
    `delay` after its event, so that a label of the very event finds the history before it and not itself.

    Args:
        events: One row per event, in any order.
        entity: Column with the user's key.
        text: Column with the event's text; events without text count as no event.
        timestamp: Column with the event's time; naive times are UTC. Of events at one time, the later row is the newer.
        last_n: How many texts a row holds at most; at least what the feature reads.
        column: Name of the list column.
        delay: How long after an event it is known.

    Returns:
        Columns `entity`, `column` (lists of str) and `timestamp` (UTC, microseconds), by user and time.

    Raises:
        MissingColumnError: A column is not there.
        InputError: `last_n` is not positive, `delay` is negative, or an event has no time.
    """
    import pandas as pd  # only whoever prepares sources needs it

    missing = [name for name in (entity, text, timestamp) if name not in events.columns]
    if missing:
        raise MissingColumnError("history_frame", missing, events.columns)
    if last_n < 1 or delay < timedelta(0):
        raise InputError(f"history_frame: expected last_n >= 1 and delay >= 0, got {last_n} and {delay}.")
    times = pd.to_datetime(events[timestamp], utc=True)
    if times.isna().any():
        raise InputError(f"history_frame: {int(times.isna().sum())} events have no {timestamp!r}; leave them out.")
    log = events[[entity, text]].assign(**{timestamp: times.astype("datetime64[us, UTC]")})
    log = log[log[text].notna() & (log[text].astype(str).str.strip() != "")]

    rows: dict[tuple[Hashable, pd.Timestamp], list[str]] = {}
    for user, group in log.sort_values(timestamp, kind="stable").groupby(entity, sort=True):
        newest: deque[str] = deque(maxlen=last_n)
        for event, at in zip(group[text], group[timestamp], strict=True):
            newest.appendleft(str(event))
            rows[user, at] = list(newest)  # the last of one moment holds them all
    return pd.DataFrame(
        {
            entity: pd.Series([user for user, _ in rows], dtype=log[entity].dtype),
            column: pd.Series(list(rows.values()), dtype=object),
            timestamp: pd.Series([at + delay for _, at in rows], dtype="datetime64[us, UTC]"),
        }
    )
