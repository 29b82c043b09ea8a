"""Which interactions feed a user's knowledge, and which are left to learn from.

    interactions of a user, by time      0 1 2 ... b-1 | b ... n-1         b = begin index = min((n + 1) // 2, 30)
                                         prompt          labels

No knowledge ever reads an interaction that is later than, or is, the label beside it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from llmrec_plugin.errors import InputError
from llmrec_plugin.systems.events import event_log, is_text

if TYPE_CHECKING:
    import pandas as pd

MAX_KNOWLEDGE_HISTORY = 30
_MOMENT = timedelta(microseconds=1)


def begin_index(count: int, most: int = MAX_KNOWLEDGE_HISTORY) -> int:
    """How many of a user's `count` interactions feed the knowledge: the first half, at most `most`."""
    return min((count + 1) // 2, most)


def knowledge_rows(
    events: pd.DataFrame,
    *,
    entity: str,
    text: str,
    timestamp: str,
    most: int = MAX_KNOWLEDGE_HISTORY,
    column: str = "knowledge_history",
    delay: timedelta = _MOMENT,
) -> pd.DataFrame:
    """One row per user: the texts of the interactions that feed the user's knowledge, the oldest first.

    Written to parquet, it is the source of `user_preferences`. A row is dated `delay` after the last of its
    interactions, so Feast's point-in-time join gives the knowledge to later labels only.

    Args:
        events: One row per interaction, in any order.
        entity: Column with the user's key; interactions without one are left out.
        text: Column with the interaction's text, e.g. a title with its rating. One without text is counted, not shown.
        timestamp: Column with the interaction's time; naive times are UTC. Of interactions at one time, the later row
            is the newer.
        most: Interactions that feed the knowledge at most.
        column: Name of the list column.
        delay: How long after an interaction it is known.

    Returns:
        Columns `entity`, `column` (lists of str) and `timestamp` (UTC, microseconds), by user. Users without any text
        have no row.

    Raises:
        MissingColumnError: A column is not there.
        InputError: `most` is not positive, `delay` is negative, or an interaction has no time.
    """
    import pandas as pd  # only whoever prepares sources needs it

    log = _indexed(events, [entity, text], entity, timestamp, most, delay, owner="knowledge_rows")
    read = log[log["_index"] < log["_begin"]]
    rows = [
        (user, [str(value) for value in group[text] if is_text(value)], group[timestamp].iloc[-1] + delay)
        for user, group in read.groupby(entity, sort=True)
    ]
    rows = [row for row in rows if row[1]]
    return pd.DataFrame(
        {
            entity: pd.Series([user for user, _, _ in rows], dtype=log[entity].dtype),
            column: pd.Series([texts for _, texts, _ in rows], dtype=object),
            timestamp: pd.Series([at for _, _, at in rows], dtype="datetime64[us, UTC]"),
        }
    )


def training_rows(
    events: pd.DataFrame,
    *,
    entity: str,
    timestamp: str,
    most: int = MAX_KNOWLEDGE_HISTORY,
    delay: timedelta = _MOMENT,
) -> pd.DataFrame:
    """The interactions that a ranker may learn from and be tested on: those after the ones that feed the knowledge.

    An interaction at the very time of the last that feeds the knowledge is left out, too: its order is not known.

    Args:
        events: The frame that `knowledge_rows` read; the other arguments are as there.
        entity: Column with the user's key.
        timestamp: Column with the interaction's time.
        most: Interactions that feed the knowledge at most.
        delay: How long after an interaction it is known.

    Returns:
        Rows of `events`, with their index, order and columns.

    Raises:
        MissingColumnError: A column is not there.
        InputError: As for `knowledge_rows`.
    """
    numbered = events.assign(_row=range(len(events)))
    log = _indexed(numbered, [entity, "_row"], entity, timestamp, most, delay, owner="training_rows")
    last = log[timestamp].where(log["_index"] == log["_begin"] - 1).groupby(log[entity]).transform("max")
    kept = log.loc[
        (log["_index"] >= log["_begin"]) & (log[timestamp] > last) & (log[timestamp] >= last + delay), "_row"
    ]
    return events.iloc[sorted(kept)]


def _indexed(
    events: pd.DataFrame,
    columns: list[str],
    entity: str,
    timestamp: str,
    most: int,
    delay: timedelta,
    *,
    owner: str,
) -> pd.DataFrame:
    """The log with each interaction's position among those of its user, and its user's begin index."""
    if most < 1 or delay < timedelta(0):
        raise InputError(f"{owner}: expected most >= 1 and delay >= 0, got {most} and {delay}.")
    log = event_log(events, columns, timestamp, owner=owner)
    log = log[log[entity].notna()]
    users = log.groupby(entity)[entity]
    return log.assign(_index=users.cumcount(), _begin=((users.transform("size") + 1) // 2).clip(upper=most))
