"""From interactions to the rows of `pointwise_score`: what a person liked and disliked before, and the candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llmrec_plugin.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_READ = 10
"""For one item of a list this many of the last events are looked through."""


def scoring_rows(
    events: pd.DataFrame, texts: Mapping[str, str], *, liked_from: float | None = None, most: int = 10
) -> pd.DataFrame:
    """One row per event: the person's lists as they were before it, the event's item, and whether it was liked.

    Events of one moment do not see each other, and no event sees itself.

    Args:
        events: Interactions in order of time, as `llmrec_plugin.interactions.Dataset` has them.
        texts: Item -> what the prompt shows of it. Items without text are left out of the lists, and their events have
            no row.
        liked_from: The least rating of what is liked. None: every event is liked, as where there are no ratings.
        most: Items of each list at most, the newest ones.

    Returns:
        Columns ``user_id``, ``item_id``, ``timestamp`` if there are times, ``liked`` and ``disliked`` (lists of str,
        the newest first), ``candidate`` (str), ``label`` (1 or 0), with the index of `events`.

    Raises:
        InputError: There are no ratings to compare with `liked_from`, or `most` is not positive.
    """
    import pandas as pd  # not needed to declare features

    from llmrec_plugin.interactions import ITEM, RATING, TIME, USER, histories  # numpy

    if most < 1 or (liked_from is not None and RATING not in events.columns):
        raise InputError(
            f"scoring_rows: expected most of 1 or more and, with liked_from, a column {RATING!r}; got most={most} and "
            f"columns {', '.join(map(str, events.columns))}."
        )
    is_liked: list[bool] = [True] * len(events) if liked_from is None else (events[RATING] >= liked_from).tolist()
    items = events[ITEM].tolist()
    past = histories(events.assign(**{ITEM: range(len(events))}), _READ * most)  # positions of earlier events

    def shown(side: bool) -> pd.Series:
        lists = [
            [texts[items[row]] for row in map(int, rows) if is_liked[row] is side and texts.get(items[row])][:most]
            for rows in past
        ]
        return pd.Series(lists, index=events.index, dtype=object)

    times = {TIME: events[TIME]} if TIME in events.columns else {}
    table = pd.DataFrame(
        {
            USER: events[USER],
            ITEM: events[ITEM],
            **times,
            "liked": shown(True),
            "disliked": shown(False),
            "candidate": [texts.get(item) or None for item in items],
            "label": [int(liked) for liked in is_liked],
        },
        index=events.index,
    )
    return table[table["candidate"].notna()]
