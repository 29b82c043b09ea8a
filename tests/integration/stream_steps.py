"""What the child processes of the push tests do. Arguments and answers are JSON."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pandas as pd
from feast import FeatureStore
from feast.data_source import PushMode
from steps import open_store

SOURCE = "item_push"


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Pushed rows, with "at" for the event timestamp, as a producer sends them."""
    table = pd.DataFrame(rows)
    for name in ("at", "created"):
        table[name] = pd.to_datetime(table[name], utc=True, format="ISO8601")
    return table.rename(columns={"at": "event_timestamp"})


def push(rows: list[dict[str, Any]], to: str = "ONLINE") -> None:
    """``store.push``."""
    FeatureStore(repo_path=".").push(SOURCE, frame(rows), to=PushMode[to])


def push_async(rows: list[dict[str, Any]]) -> list[bool]:
    """``store.push_async``; per view whether its vectors were computed in the event loop's thread."""
    from llmrec_plugin.transform import Transform

    in_loop: list[bool] = []
    original = Transform.transform_frame

    def recording(self: Transform, *args: Any, **kwargs: Any) -> Any:
        in_loop.append(threading.current_thread() is threading.main_thread())
        return original(self, *args, **kwargs)

    Transform.transform_frame = recording  # type: ignore[method-assign]
    store = FeatureStore(repo_path=".")
    assert store._get_provider().async_supported.online.write  # else Feast's server would push in a thread itself
    asyncio.run(store.push_async(SOURCE, frame(rows)))
    return in_loop


def write(rows: list[dict[str, Any]], configuration: dict[str, Any] | None = None) -> None:
    """``store.write_to_online_store`` of the raw view."""
    open_store(configuration).write_to_online_store("item_text", frame(rows))


def push_while_the_registry_is_written(rows: list[dict[str, Any]]) -> None:
    """Pushes; when the provider first looks at the registry, it finds the file empty."""
    store = FeatureStore(repo_path=".")
    registry, path = store._get_provider()._registry, Path("data/registry.db")
    content, refresh = path.read_bytes(), registry.refresh

    def refresh_at_a_bad_time(project: str) -> None:
        path.write_bytes(b"")
        refresh(project)
        path.write_bytes(content)
        registry.refresh = refresh

    registry.refresh = refresh_at_a_bad_time
    store.push(SOURCE, frame(rows))


def read_packed(features: list[str], items: list[str]) -> dict[str, list[Any]]:
    """A packed vector, as hex digits, and its status, by item."""
    answer = FeatureStore(repo_path=".").get_online_features(features, [{"item": item} for item in items]).to_dict()
    packed, status = (answer[feature.partition(":")[2]] for feature in features)
    return {"packed": [value and value.hex() for value in packed], "status": status}
