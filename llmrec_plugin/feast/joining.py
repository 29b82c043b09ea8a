"""Point-in-time joins with a training table: first the numbers of the rows, then their vectors.

Keys and timestamps of a table are a few bytes per row, so they are searched in memory wherever the vectors
lie, and only the vectors that a label asks for are read.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
from feast import FeatureView

from llmrec_plugin.feast.training import TrainingSource
from llmrec_plugin.pipeline.columns import output_fields


def join_outputs(labels: pd.DataFrame, stamp: str, view: FeatureView, table: Path) -> pa.Table:
    """The vectors (and statuses, if declared) that were valid at each label, in the labels' order.

    Args:
        labels: n rows with the view's join keys (as its projection names them) and a timestamp.
        stamp: Name of the labels' timestamp column; without a zone it is UTC.
        view: A view whose source is a `TrainingSource`.
        table: The folder of its table.

    Returns:
        n rows, a column per output; null where no row of the entity is at or before the label and within the view's
        ttl, or where that row's value is null.
    """
    source = view.batch_source
    assert isinstance(source, TrainingSource)
    dataset = pads.dataset(sorted(map(str, table.glob("*.parquet"))), format="parquet")
    times = [source.raw_name(name) for name in (source.timestamp_field, source.created_timestamp_column) if name]
    keys = {  # the labels' name of a key -> the table's
        view.projection.join_key_map.get(column.name, column.name): source.raw_name(column.name)
        for column in view.entity_columns
    }
    rows = dataset.to_table(columns=[*keys.values(), *times]).to_pandas()
    found = _newest_rows(labels, stamp, rows, keys, times, view.ttl)

    known = found[found >= 0]
    wanted, place = np.unique(known, return_inverse=True)
    places = np.full(len(labels), -1)
    places[found >= 0] = place
    outputs = [field.name for field in output_fields(source.bound.feature)]
    return dataset.take(wanted, columns=outputs).take(pa.array(places, mask=places < 0))


def _newest_rows(
    labels: pd.DataFrame,
    stamp: str,
    rows: pd.DataFrame,
    keys: dict[str, str],
    times: list[str],
    ttl: timedelta | None,
) -> np.ndarray:
    """(n,) numbers of the rows valid at each label, -1 where there is none."""
    rows = rows.assign(_row=np.arange(len(rows)))
    for time in times:
        rows[time] = _utc(rows[time])
    for name, key in keys.items():
        rows[key] = rows[key].astype(labels[name].dtype)
    # The last of equal times wins, so the row that was created last.
    rows = rows.dropna(subset=[*keys.values(), times[0]]).sort_values(times, kind="stable", na_position="first")
    left = labels[list(keys)].assign(_time=_utc(labels[stamp]), _label=np.arange(len(labels)))
    left = left.dropna(subset=[*keys, "_time"]).sort_values("_time", kind="stable")
    right = rows.rename(columns={times[0]: "_row_time"})[[*keys.values(), "_row_time", "_row"]]
    joined = pd.merge_asof(
        left,
        right,
        left_on="_time",
        right_on="_row_time",
        left_by=list(keys),
        right_by=list(keys.values()),
    )
    valid = joined["_row"].notna()
    if ttl:
        valid &= joined["_time"] - joined["_row_time"] <= ttl
    found = np.full(len(labels), -1)
    found[joined.loc[valid, "_label"]] = joined.loc[valid, "_row"]
    return found


def _utc(times: pd.Series) -> pd.Series:
    return pd.to_datetime(times, utc=True).astype("datetime64[ns, UTC]")
