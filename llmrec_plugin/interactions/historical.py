"""Interactions from a Feast historical read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmrec_plugin.errors import InputError, MissingColumnError
from llmrec_plugin.interactions.dataset import ITEM, RATING, TIME, USER, Dataset

if TYPE_CHECKING:
    import pandas as pd


def from_historical(
    frame: pd.DataFrame,
    *,
    user: str,
    item: str,
    time: str = "event_timestamp",
    label: str | None = None,
    item_columns: Sequence[str] = (),
    user_columns: Sequence[str] = (),
    name: str = "historical",
) -> Dataset:
    """The interactions in what ``get_historical_features(...).to_df()`` gives.

    Feast returns rows in any order; they are put in order of time, user and item. Columns that are named nowhere stay
    with the interactions: they are values as of each row's moment.

    Args:
        frame: One row per event.
        user: Column with the user's key; keys become str.
        item: Column with the item's key.
        time: Column with the event's moment; naive times are UTC.
        label: Column with a number, which becomes ``rating``; None if every row is an interaction.
        item_columns: Columns that describe the item. The value as of the item's first row is taken, so that no event
            meets a text that is younger than itself.
        user_columns: Columns that describe the user, likewise.
        name: Of the data set.

    Raises:
        MissingColumnError: A column is not there.
        InputError: A row has no user, item or time, or a label is no number.
    """
    import pandas as pd

    named = [user, item, time, *([label] if label else []), *item_columns, *user_columns]
    missing = [column for column in named if column not in frame.columns]
    if missing:
        raise MissingColumnError("from_historical", missing, frame.columns)
    for column in (user, item, time):
        if frame[column].isna().any():
            raise InputError(f"from_historical: {int(frame[column].isna().sum())} rows have no {column!r}; drop them.")
    rows = frame.rename(columns={user: USER, item: ITEM, time: TIME, **({label: RATING} if label else {})})
    twice = rows.columns[rows.columns.duplicated()]
    if len(twice):
        raise InputError(f"from_historical: the frame has another column named {twice[0]!r}; drop or rename it.")
    times = pd.to_datetime(rows[TIME], utc=True).astype("datetime64[us, UTC]")
    rows = rows.assign(**{USER: _keys(rows[USER]), ITEM: _keys(rows[ITEM]), TIME: times})
    if label:
        numbers = pd.to_numeric(rows[RATING], errors="coerce")
        if numbers.isna().any():
            raise InputError(f"from_historical: {int(numbers.isna().sum())} rows have no number in {label!r}.")
        rows = rows.assign(**{RATING: numbers.astype("float64")})
    rows = rows.sort_values([TIME, USER, ITEM], kind="stable", ignore_index=True)
    first = [USER, ITEM, *([RATING] if label else []), TIME]
    described = {*item_columns, *user_columns}
    return Dataset(
        name=name,
        interactions=rows[[*first, *(column for column in rows.columns if column not in {*first, *described})]],
        items=rows.drop_duplicates(ITEM, ignore_index=True)[[ITEM, *item_columns]],
        users=rows.drop_duplicates(USER, ignore_index=True)[[USER, *user_columns]],
    )


def _keys(values: pd.Series) -> pd.Series:
    return values.map(str).astype(object)
