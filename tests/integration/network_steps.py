"""What the child processes of the tests of networks do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd


def export_networks(where: str, artifacts: str, kinds: list[str], seed: int = 0) -> dict[str, str]:
    """Puts networks with random weights into an artifact folder; returns their ids."""
    from tiny_networks import declare_network  # torch, which nothing else here needs

    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.export import export_network

    store = ArtifactStore([Path(artifacts)])
    models = [declare_network(Path(where, kind), kind, seed=seed) for kind in kinds]
    return {model.name: export_network(model, store).id for model in models}


def write_users(rows: list[dict[str, Any]]) -> None:
    """Writes rows of users to the online store, with what is computed of them."""
    from steps import open_store

    frame = pd.DataFrame(rows)
    frame["event_timestamp"] = pd.to_datetime(frame["event_timestamp"], utc=True)
    open_store(None).write_to_online_store("user_rows", frame)
