"""Interactions, items and users as tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrec_plugin.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

USER, ITEM, RATING, TIME = "user_id", "item_id", "rating", "timestamp"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Who did what.

    Attributes:
        name: Of the data set.
        interactions: One row per event: ``user_id`` and ``item_id`` (str), and, where the data set has them, ``rating``
            (float64) and ``timestamp`` (UTC), and further columns. In order of time, else as they came.
        items: One row per item, ``item_id`` and further columns; texts are str, missing ones None.
        users: One row per user, ``user_id`` and further columns; may have no further columns.
    """

    name: str
    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame

    def __post_init__(self) -> None:
        wanted = {"interactions": (USER, ITEM), "items": (ITEM,), "users": (USER,)}
        for table, columns in wanted.items():
            missing = [column for column in columns if column not in getattr(self, table).columns]
            if missing:
                raise InputError(f"data set {self.name!r}: {table} has no column {missing[0]!r}.")
        for table, key in (("items", ITEM), ("users", USER)):
            keys = getattr(self, table)[key]
            if keys.duplicated().any():
                raise InputError(f"data set {self.name!r}: {table} has {keys[keys.duplicated()].iloc[0]!r} twice.")

    @property
    def timed(self) -> bool:
        """Whether events have times."""
        return TIME in self.interactions.columns

    def item_texts(self, template: str) -> dict[str, str]:
        """Item -> its text by a template over the item's columns, e.g. ``"{title}. {genres}"``; missing is nothing."""
        rows = self.items.fillna("").to_dict("records")
        return {row[ITEM]: template.format(**row).strip() for row in rows}
