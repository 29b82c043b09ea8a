"""Interactions that follow a rule: each item of a ring is followed by the next one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from llmrec_plugin.interactions import Dataset


def ring(*, items: int = 30, users: int = 120, seed: int = 0, name: str = "ring", timed: bool = True) -> Dataset:
    """Users who start anywhere and go on, 4 to 12 steps, an hour apart; item texts name place and the next place."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        start, length = int(rng.integers(items)), int(rng.integers(4, 13))
        rows += [(f"u{user:03d}", f"{name}{(start + step) % items:02d}", user * 100 + step) for step in range(length)]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "hour"])
    hours = pd.to_timedelta(events.pop("hour"), unit="h")
    if timed:
        events["timestamp"] = (pd.Timestamp("2026-01-01", tz="UTC") + hours).astype("datetime64[us, UTC]")
    keys = [f"{name}{item:02d}" for item in range(items)]
    texts = [f"{name} place {item}" for item in range(items)]
    return Dataset(
        name=name,
        interactions=events,
        items=pd.DataFrame({"item_id": keys, "title": texts}),
        users=pd.DataFrame({"user_id": sorted(set(events["user_id"]))}),
    )
