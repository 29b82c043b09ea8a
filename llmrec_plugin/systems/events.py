"""An event log, checked and in order, for the plugins that make prompts of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from llmrec_plugin.errors import InputError, MissingColumnError

if TYPE_CHECKING:
    import pandas as pd


def event_log(events: pd.DataFrame, columns: Sequence[str], timestamp: str, *, owner: str) -> pd.DataFrame:
    """The columns and the timestamp of `events`, oldest first; events at one time stay in the order of the rows.

    Args:
        events: One row per event, in any order.
        columns: Columns that are needed beside the timestamp.
        timestamp: Column with the event's time; naive times are UTC.
        owner: Who asks, for messages.

    Returns:
        A copy; times are UTC in microseconds.

    Raises:
        MissingColumnError: A column is not there.
        InputError: An event has no time.
    """
    import pandas as pd  # only whoever prepares sources needs it

    needed = list(dict.fromkeys([*columns, timestamp]))
    missing = [name for name in needed if name not in events.columns]
    if missing:
        raise MissingColumnError(owner, missing, events.columns)
    times = pd.to_datetime(events[timestamp], utc=True)
    if times.isna().any():
        raise InputError(f"{owner}: {int(times.isna().sum())} events have no {timestamp!r}; leave them out.")
    log = events[needed].assign(**{timestamp: times.astype("datetime64[us, UTC]")})
    return log.sort_values(timestamp, kind="stable", ignore_index=True)


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a cell holds text; missing values, blanks and other types do not."""
    return isinstance(value, str) and bool(value.strip())
