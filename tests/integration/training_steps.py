"""What `test_training_tables.py` asks of a process that has Feast."""

from __future__ import annotations

from typing import Any
from unittest import mock

import dask.tokenize
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from dask.tokenize import tokenize
from steps import open_store, plain

from llmrec_plugin.feast.joining import join_outputs
from llmrec_plugin.feast.tokens import cheap_tokens


def count_pickled(rows: int) -> dict[str, Any]:
    """How many columns dask pickles to name a frame with vectors, as it is and with our way; and the names."""
    vectors = list(np.random.default_rng(0).random((rows, 4), dtype=np.float32))
    frame = pd.DataFrame({"key": [f"i{n}" for n in range(rows)], "vector": [*vectors[:-1], None], "n": range(rows)})
    # As after a join, the strings and the vectors lie in one block.
    frame = frame[["vector", "key", "n"]].copy()
    variants = {"same": frame.copy(deep=True)}
    for name, row, value in (("value", 0, vectors[0] + 1), ("null", 1, None), ("length", 2, vectors[2][:3])):
        variants[name] = frame.copy(deep=True)
        variants[name].at[row, "vector"] = value
    counts = {}
    for way in ("dask's", "ours"):
        with mock.patch.object(dask.tokenize, "_normalize_pickle", wraps=dask.tokenize._normalize_pickle) as pickled:
            tokenize(frame)
            counts[way] = pickled.call_count
        cheap_tokens()
    return {
        "pickled": counts,
        "differs": {name: tokenize(changed) != tokenize(frame) for name, changed in variants.items()},
        "other": tokenize(pd.DataFrame({"mixed": [{"a": 1}, "b", None, (1, 2)]})),
    }


def compare_join(view: str, raw: str, seed: int, labels: int) -> list[list[Any]]:
    """For random labels: the joined vector, and the position of the raw row that a plain loop finds."""
    stored = open_store(None).get_feature_view(view)
    rows = pq.read_table(raw).to_pandas()
    rng = np.random.default_rng(seed)
    keys = [*rows["item"].unique().tolist(), "unknown", None]
    times = [*rows["event_timestamp"], rows["event_timestamp"].min() - pd.Timedelta("1s")]
    stamps = [times[rng.integers(len(times))] + pd.Timedelta(int(rng.integers(-1, 2)), "us") for _ in range(labels)]
    frame = pd.DataFrame({"item": rng.choice(np.array(keys, dtype=object), labels), "at": stamps})
    joined = join_outputs(frame, "at", stored, stored.batch_source.refresh())[view].to_pylist()
    found = []
    for key, at in zip(frame["item"], frame["at"], strict=True):
        valid = rows[
            (rows["item"] == key) & (rows["event_timestamp"] <= at) & (rows["event_timestamp"] >= at - stored.ttl)
        ]
        valid = valid.sort_values(["event_timestamp", "created"], kind="stable")
        found.append(None if valid.empty else int(valid.index[-1]))
    return [[plain(vector), position] for vector, position in zip(joined, found, strict=True)]
