"""Interactions, items and users as tables."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmrec_plugin.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

USER = "user_id"
ITEM = "item_id"
RATING = "rating"
TIME = "timestamp"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Who did what.

    Attributes:
        name: Of the data set.
        interactions: One row per event: ``user_id`` and ``item_id`` (str), and, where the data set has them, ``rating``
            (float64) and ``timestamp`` (UTC), and further columns. In order of time, else as they came.
        items: One row per item, ``item_id`` and further columns; texts are str, missing ones None.
        users: One row per user, ``user_id`` and further columns; may have no further columns.

    Raises:
        InputError: A column is missing, a key stands twice in its table, or times are missing, without a zone or out of
            order.
    """

    name: str
    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame

    def __post_init__(self) -> None:
        owner = f"data set {self.name!r}"
        wanted = {"interactions": (USER, ITEM), "items": (ITEM,), "users": (USER,)}
        for table, columns in wanted.items():
            missing = [column for column in columns if column not in getattr(self, table).columns]
            if missing:
                raise InputError(f"{owner}: {table} has no column {missing[0]!r}.")
        for table, key in (("items", ITEM), ("users", USER)):
            keys = getattr(self, table)[key]
            if keys.duplicated().any():
                raise InputError(f"{owner}: {table} has {keys[keys.duplicated()].iloc[0]!r} twice.")
        if self.timed:
            self._check_times(owner)

    def _check_times(self, owner: str) -> None:
        times = self.interactions[TIME]
        if times.dtype.kind != "M" or times.dt.tz is None or times.isna().any():
            raise InputError(f"{owner}: {TIME} must be UTC timestamps without gaps, got {times.dtype}.")
        if not times.is_monotonic_increasing:
            raise InputError(f"{owner}: interactions must be in order of {TIME}; sort them by it.")

    @property
    def timed(self) -> bool:
        """Whether events have times."""
        return TIME in self.interactions.columns

    def item_texts(self, template: str) -> dict[str, str]:
        """Item -> its text by a template over the item's columns, e.g. ``"{title}. {genres}"``; missing is nothing.

        Raises:
            InputError: The template names a column that there is not.
        """
        return _texts(self.items, ITEM, template, f"data set {self.name!r}: items")

    def user_texts(self, template: str) -> dict[str, str]:
        """User -> its text by a template over the user's columns, as `item_texts`."""
        return _texts(self.users, USER, template, f"data set {self.name!r}: users")


def _texts(table: pd.DataFrame, key: str, template: str, owner: str) -> dict[str, str]:
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    unknown = [name for name in names if name not in table.columns]
    if unknown:
        raise InputError(f"{owner} have no column {unknown[0]!r}, only {', '.join(table.columns)}.")
    columns = {name: [_text(value) for value in table[name]] for name in names}
    rows = zip(*columns.values(), strict=True) if columns else [()] * len(table)
    return {
        item: template.format(**dict(zip(columns, row, strict=True))).strip()
        for item, row in zip(table[key], rows, strict=True)
    }


def _text(value: Any) -> str:
    """A cell for people: whole numbers without a point, missing ones as nothing."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
