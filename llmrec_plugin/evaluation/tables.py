"""Feature sets from a parquet file: values with the moment from which they were known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.evaluation.features import Columns, Cost
from llmrec_plugin.evaluation.windows import NEVER, Catalogue, Rows, Window
from llmrec_plugin.interactions.dataset import ITEM, USER

if TYPE_CHECKING:
    import pandas as pd


@dataclass(kw_only=True)
class TableSet:
    """Columns of a table by item, by user, or by both, as of each list's moment.

    As in Feast, a row is known from its timestamp on, and of several the newest counts. A table without a time column
    holds what is made from no event, such as texts; values made from events need their time.

    Attributes:
        name: Prefix of the columns.
        path: A parquet file with ``item_id``, ``user_id`` or both, numeric columns, and, if values change, `time`.
        time: Column of the moment from which a row is known; naive times are UTC.
        only: The columns that are taken; all numeric ones if empty.
        static: Says of a table without times that its values come from no event; needed where the data has times.
    """

    name: str
    path: Path
    time: str = "event_timestamp"
    only: tuple[str, ...] = ()
    static: bool = False
    _ready: Any = field(default=None, repr=False)

    def columns(self, window: Window, rows: Rows) -> Columns:
        if self._ready is None:
            self._ready = self._read(window.catalogue)
        keys, times, names, values, per_user, per_item = self._ready
        query = rows.query
        wanted = np.zeros(len(rows), dtype=np.int64)
        if per_user:
            wanted = window.user[query]
        if per_item:
            wanted = wanted * len(window.catalogue.items) + rows.item
        moments = window.moment[query]
        ranks = np.unique(times)
        # Key and time as one sorted integer: the newest row of a key that is not later is the one before the place.
        known = keys * (len(ranks) + 1) + np.searchsorted(ranks, times)
        place = np.searchsorted(known, wanted * (len(ranks) + 1) + np.searchsorted(ranks, moments, "right"), "left") - 1
        found = (place >= 0) & (keys[np.maximum(place, 0)] == wanted) if len(keys) else np.zeros(len(rows), dtype=bool)
        result = np.full((len(rows), len(names)), np.nan, dtype=np.float32)
        result[found] = values[place[found]]
        latest = np.full(len(rows), NEVER)
        latest[found] = times[place[found]]
        return Columns(names=tuple(f"{self.name}_{name}" for name in names), values=result, latest=latest)

    def cost(self) -> Cost:
        """The bytes of a row as float32; what computed it is not known here."""
        width = 0 if self._ready is None else len(self._ready[2])
        return Cost(seconds=0.0, item_bytes=4.0 * width)

    def _read(self, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray, bool, bool]:
        import pandas as pd

        if not self.path.is_file():
            raise InputError(f"feature set {self.name!r}: {self.path} is not there; expected a parquet file.")
        table = pd.read_parquet(self.path)
        per_user, per_item = USER in table.columns, ITEM in table.columns
        names = list(self.only) or [
            name for name in table.columns if name not in (USER, ITEM, self.time) and table[name].dtype.kind in "fiub"
        ]
        missing = [name for name in names if name not in table.columns]
        if not (per_user or per_item) or not names or missing:
            raise InputError(
                f"feature set {self.name!r}: {self.path} needs {ITEM} or {USER} and numeric columns"
                f"{f', and {missing[0]!r} is not there' if missing else ''}; it has {', '.join(table.columns)}."
            )
        timed = self.time in table.columns
        if catalogue.timed and not timed and not self.static:
            raise InputError(
                f"feature set {self.name!r}: {self.path} has no column {self.time!r}, and the data has times. Add the "
                "moment from which each row was known, or say static: true if the values come from no event."
            )
        keys = np.zeros(len(table), dtype=np.int64)
        known = np.ones(len(table), dtype=bool)
        for column, wanted, size in ((USER, per_user, 1), (ITEM, per_item, len(catalogue.items))):
            if wanted:
                place = _places(table[column], catalogue.users if column == USER else catalogue.items)
                known &= place >= 0
                keys = keys * size + place
        times = _times(table[self.time]) if timed and catalogue.timed else np.full(len(table), NEVER)
        order = np.lexsort((times, keys))
        order = order[known[order]]
        values = table[names].to_numpy(dtype=np.float32)[order]
        return keys[order], times[order], names, values, per_user, per_item


def _places(values: pd.Series, keys: np.ndarray) -> np.ndarray:
    """Index of each value among keys, -1 for others."""
    places = {key: place for place, key in enumerate(keys)}
    return np.array([places.get(str(value), -1) for value in values], dtype=np.int64)


def _times(values: pd.Series) -> np.ndarray:
    import pandas as pd

    return pd.to_datetime(values, utc=True).astype("datetime64[us, UTC]").astype("int64").to_numpy()
