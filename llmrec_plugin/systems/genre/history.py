"""The columns around GENRE's features: which users are cold, what a chained generator reads, what a history gains."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llmrec_plugin.errors import InputError
from llmrec_plugin.systems.events import event_log

if TYPE_CHECKING:
    import pandas as pd

MAX_COLD_HISTORY = 5


def cold_history(history: Any, *, at_most: int = MAX_COLD_HISTORY) -> list[str] | None:
    """The history of a cold user; None for a user with a longer one or with none.

    A required slot that reads None leaves the row without a value, so only cold users cost anything::

        rows["cold_history"] = rows["history"].map(cold_history)

    Args:
        history: A list, tuple or array of strings; anything else (None, NaN) is no history.
        at_most: Items that a cold user has at most.
    """
    items = [] if history is None or isinstance(history, (str, float)) else list(history)
    return items if 0 < len(items) <= at_most else None


def with_synthetic_items(history: Any, synthetic: Iterable[str | None]) -> list[str]:
    """The titles of a history and, after them, those of the items that were made up for it.

    After the real ones, which in a list with the newest first means older than all: a made-up item never displaces an
    event, whatever number of items a feature reads.

    Args:
        history: A list, tuple or array of titles, or None.
        synthetic: Values of the features of `synthetic_items` for the same user; null ones are left out.
    """
    titles = [] if history is None or isinstance(history, (str, float)) else list(history)
    made_up = [json.loads(value)["title"] for value in synthetic if isinstance(value, str)]
    return titles + made_up


def chain_rows(
    rows: pd.DataFrame,
    profiles: pd.DataFrame,
    *,
    entity: str,
    timestamp: str,
    columns: Sequence[str] = ("topics",),
) -> pd.DataFrame:
    """The rows that a chained feature reads: `rows` with the newest profile that existed at each row's time.

    Feast's ``get_historical_features(rows, [...])`` makes the same join from the stored profile feature; this is it
    for frames. A profile later than a row is never read, so a value made from the result depends on nothing after it.

    Args:
        rows: Users' histories: `entity`, `timestamp`, and more.
        profiles: Values of a profile feature: `entity`, `timestamp`, which is that of the history it was made from,
            and `columns`.
        entity: Column with the user's key.
        timestamp: Column with the time; naive times are UTC.
        columns: Columns of `profiles` to take.

    Returns:
        `rows` in their order and with their index, and `columns`; null where no profile existed yet.

    Raises:
        MissingColumnError: A column is not there.
        InputError: A row or a profile has no time, or `rows` has one of `columns` already.
    """
    import pandas as pd  # only whoever prepares sources needs it

    taken = [name for name in columns if name in rows.columns]
    if taken:
        raise InputError(f"chain_rows: the rows have column(s) {', '.join(taken)} already; rename or drop them.")
    left = event_log(rows.assign(_row=range(len(rows))), [entity, "_row"], timestamp, owner="chain_rows")
    right = event_log(profiles, [entity, *columns], timestamp, owner="chain_rows")
    joined = pd.merge_asof(left, right, on=timestamp, by=entity).sort_values("_row")
    return rows.assign(**{name: joined[name].to_numpy(dtype=object) for name in columns})
