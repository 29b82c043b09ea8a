"""What the child processes of the push tests do. Arguments and answers are JSON."""

from __future__ import annotations

import asyncio
from typing import Any

import pandas as pd
from feast import FeatureStore
from feast.data_source import PushMode

SOURCE = "item_push"


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Pushed rows, dictionaries with "at" as in `Repo.write_items`, as a producer sends them."""
    table = pd.DataFrame([{"note": None, "created": row["at"], **row} for row in rows])
    for name in ("at", "created"):
        table[name] = pd.to_datetime(table[name], utc=True, format="ISO8601")
    return table.rename(columns={"at": "event_timestamp"})


def push(rows: list[dict[str, Any]], to: str = "ONLINE", repeat: int = 1) -> None:
    """``store.push``, `repeat` times."""
    store = FeatureStore(repo_path=".")
    for _ in range(repeat):
        store.push(SOURCE, frame(rows), to=PushMode[to])


def push_async(rows: list[dict[str, Any]], to: str = "ONLINE") -> None:
    asyncio.run(FeatureStore(repo_path=".").push_async(SOURCE, frame(rows), to=PushMode[to]))


def write(rows: list[dict[str, Any]], view: str = "item_text") -> None:
    """``store.write_to_online_store``."""
    FeatureStore(repo_path=".").write_to_online_store(view, frame(rows))
