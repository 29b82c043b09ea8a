"""A Feast project for tests: published by one process, read by another that never saw the repo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmrec_plugin.specs import Feature, SimilarityFeature, to_spec
from llmrec_plugin.testing.child import call_fresh


@dataclass(frozen=True)
class FeastRepo:
    """Features over rows, whose number is their key.

    Attributes:
        folder: Where the project is made, for each reading anew.
        features: The features; sides of similarities among them.
        rows: Rows of all columns of the features.
    """

    folder: Path
    features: Sequence[Feature]
    rows: Sequence[Mapping[str, Any]]

    def read(self) -> dict[str, dict[str, list[Any]]]:
        """Applies, materializes and reads the features, in processes of their own.

        Returns:
            ``online`` (stored and on demand) and ``historical`` -> ``view:column`` -> a value per row: a list of
            numbers or strings, bytes, a string, a number or None.

        Raises:
            CheckFailed: Feast refused something; the message has what it printed.
        """
        plan = plan_of(self.features, self.rows)
        number = len(list(self.folder.parent.glob(f"{self.folder.name}*")))
        folder = self.folder.with_name(f"{self.folder.name}{number}")
        folder.mkdir(parents=True)
        answer: dict[str, dict[str, list[Any]]] = call_fresh(
            "llmrec_plugin.testing.feast_steps:publish_and_read",
            environ={"LLMREC_CACHE": str(folder / "cache")},
            folder=str(folder),
            plan=plan,
        )
        return answer


def plan_of(features: Sequence[Feature], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What to publish and to read; see `llmrec_plugin.testing.feast_steps.publish_and_read`."""
    columns: list[Any] = [item for item in features if not isinstance(item, SimilarityFeature)]
    stored = [item for item in columns if item.entity is not None]
    historical = [f"{item.name}:{item.name}" for item in stored]
    on_demand = {f"{item.name}:{item.name}": () for item in features if isinstance(item, SimilarityFeature)}
    compared = bool(on_demand)
    for item in columns:
        view = item.name if item.entity is None else f"{item.name}_on_demand"
        on_demand[f"{view}:{view}"] = item.columns
    sent = [name for item in columns if item.entity is None for name in item.columns] if compared else []
    return {
        "features": [to_spec(item) for item in features],
        "rows": [dict(row) for row in rows],
        "entities": sorted({item.entity for item in stored}),
        "request": {name: list(dict.fromkeys(names or sent)) for name, names in on_demand.items()},
        "online": [*historical, *on_demand],
        "historical": historical,
    }
