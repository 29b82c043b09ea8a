"""Interactions that only training can explain: who had one word goes on with the word that belongs to it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from llmrec_plugin.interactions import Dataset

MEANT = dict(
    zip(
        "quiet cafe museum trail beach library market loud".split(),
        "books tea music rain sun dogs children cheap".split(),
        strict=True,
    )
)
"""The word that an item with each word is followed by."""


def interactions(users: int = 150, seed: int = 0) -> Dataset:
    """Each user has an item with two words and then the item with the words that belong to them; times are hours.

    Items are ``"quiet cafe"``; there are 56 of the first kind and as many of the second. Ratings are 5, but for every
    third user's second item, which is 1.
    """
    rng = np.random.default_rng(seed)
    words = list(MEANT)
    rows = []
    for user in range(users):
        one, other = rng.choice(words, 2, replace=False)
        rating = 1.0 if user % 3 == 0 else 5.0
        rows += [(f"u{user}", f"{one} {other}", 5.0), (f"u{user}", f"{MEANT[one]} {MEANT[other]}", rating)]
    frame = pd.DataFrame(rows, columns=["user_id", "title", "rating"])
    frame["item_id"] = frame["title"].str.replace(" ", "-")
    frame["timestamp"] = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(frame)), unit="h")
    frame["timestamp"] = frame["timestamp"].astype("datetime64[us, UTC]")
    return Dataset(
        name="words",
        interactions=frame[["user_id", "item_id", "rating", "timestamp"]],
        items=frame[["item_id", "title"]].drop_duplicates(ignore_index=True),
        users=pd.DataFrame({"user_id": frame["user_id"].unique()}),
    )
