"""What the checks and fixtures do with Feast, in processes of their own; importing it imports Feast.

One process publishes: it has a repo. Another, which begins in an empty folder with nothing but the configuration of
registry and stores, reads. Both are forked from one that has only imported Feast.
"""

from __future__ import annotations

import json
import os
import pickle
import traceback
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import String, from_feast_to_pyarrow_type

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import bind
from llmrec_plugin.feast import publish
from llmrec_plugin.feast.views import column_types
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import SimilarityFeature, from_spec

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
PLAN, REPO = "plan.pickle", "repo"
_FEATURES = """
from llmrec_plugin.testing.feast_steps import declare

declare(globals())
"""


def publish_and_read(folder: str, plan: dict[str, Any]) -> dict[str, Any]:
    """What one process publishes and materializes, as another reads it.

    Args:
        folder: An empty folder.
        plan: ``features``: declarations as `to_spec` writes them; ``rows``: rows of all their columns; ``online`` and
            ``historical``: references ``view:column``; ``entities``: names of the entities; ``request``: the columns
            that a request for a reference carries.

    Returns:
        ``online`` and ``historical``: the columns read, by name; values are lists, bytes, strings, numbers or None.
    """
    root = Path(folder)
    (root / REPO / "data").mkdir(parents=True)
    (root / "elsewhere").mkdir()
    (root / REPO / PLAN).write_bytes(pickle.dumps(plan))
    _apart(root, lambda: _publish(root / REPO, plan))
    answer: dict[str, Any] = _apart(root, lambda: _read(root, plan))
    return answer


def configuration(root: Path) -> dict[str, Any]:
    """A local Feast project below `root`."""
    return {
        "project": "conformance",
        "provider": "local",
        "registry": {"path": str(root / "registry.db"), "serve_features_while_materializing": True},
        "online_store": {"type": "sqlite", "path": str(root / "online.db")},
        "materialization": {"pull_latest_features": True},
        "entity_key_serialization_version": 3,
    }


def declare(namespace: MutableMapping[str, Any]) -> None:
    """What the repo's file declares: entities, raw views, features; and publishes."""
    folder = Path(namespace["__file__"]).parent
    plan = pickle.loads((folder / PLAN).read_bytes())  # noqa: S301 - the check wrote it
    settings = load_settings()
    installed = load_catalogue(settings.disabled_plugins).features
    features = [from_spec(spec) for spec in plan["features"]]
    namespace.update({item.name: item for item in features if item.name not in installed})
    columns = _columns(features, ArtifactStore(settings.artifact_folders))
    for entity_name, types in columns.items():
        if entity_name:
            entity = Entity(name=entity_name, join_keys=[key_of(entity_name)])
            namespace[f"entity_{entity_name}"] = entity
            namespace[f"raw_{entity_name}"] = _raw_view(entity, types, plan["rows"], folder)
    publish(namespace, include=[item.name for item in features])


def key_of(entity: str) -> str:
    """The join key of an entity of a conformance repo."""
    return f"{entity}_conformance_key"


def _columns(features: list[Any], store: ArtifactStore) -> dict[str, dict[str, Any]]:
    """Entity, or "", -> column -> its Feast type."""
    found: dict[str, dict[str, Any]] = {}
    for feature in features:
        if not isinstance(feature, SimilarityFeature):
            types = {name: kinds[0] for name, kinds in column_types(bind(feature, store)).items()}
            found.setdefault(feature.entity or "", {}).update(types)
    return found


def _raw_view(entity: Entity, types: dict[str, Any], rows: list[dict[str, Any]], folder: Path) -> FeatureView:
    key = entity.join_key
    columns = {key: pa.array([f"k{number}" for number in range(len(rows))], pa.string())}
    for name, kind in types.items():
        columns[name] = pa.array([row[name] for row in rows], from_feast_to_pyarrow_type(kind))
    columns["event_timestamp"] = pa.array([MOMENT] * len(rows), pa.timestamp("us", "UTC"))
    path = folder / "data" / f"{entity.name}.parquet"
    pq.write_table(pa.table(columns), path)
    return FeatureView(
        name=f"raw_{entity.name}",
        entities=[entity],
        ttl=timedelta(days=36_500),
        schema=[Field(name=key, dtype=String), *(Field(name=name, dtype=kind) for name, kind in types.items())],
        source=FileSource(name=f"source_{entity.name}", path=str(path), timestamp_field="event_timestamp"),
    )


def _publish(repo: Path, plan: dict[str, Any]) -> None:
    from feast.cli.cli import cli

    os.chdir(repo)
    (repo / "feature_store.yaml").write_text(json.dumps(configuration(repo.parent)))  # JSON is YAML
    (repo / "features.py").write_text(_FEATURES)
    cli.main(["apply"], standalone_mode=False)
    stored = [spec["name"] for spec in plan["features"] if spec.get("entity")]
    if stored:
        FeatureStore(repo_path=".").materialize(MOMENT - timedelta(days=1), MOMENT + timedelta(days=1), stored)


def _read(root: Path, plan: dict[str, Any]) -> dict[str, Any]:
    os.chdir(root / "elsewhere")
    store = FeatureStore(config=RepoConfig(**configuration(root)))
    keys = [{key_of(name): f"k{number}" for name in plan["entities"]} for number in range(len(plan["rows"]))]
    answer: dict[str, Any] = {"online": {}, "historical": {}}
    for reference in plan["online"]:
        sent = plan["request"].get(reference, ())
        pairs = zip(keys, plan["rows"], strict=True)
        entity_rows = [{**key, **{name: row[name] for name in sent}} for key, row in pairs]
        answer["online"][reference] = _column(
            store.get_online_features(features=[reference], entity_rows=entity_rows).to_dict(), reference
        )
    for reference in plan["historical"]:
        frame = pd.DataFrame(keys).assign(event_timestamp=MOMENT + timedelta(hours=1), row=range(len(keys)))
        read = store.get_historical_features(entity_df=frame, features=[reference]).to_df().sort_values("row")
        answer["historical"][reference] = _column(read.to_dict("list"), reference)
    return answer


def _column(columns: dict[str, list[Any]], reference: str) -> list[Any]:
    return [value.tolist() if hasattr(value, "tolist") else value for value in columns[reference.partition(":")[2]]]


def _apart(root: Path, function: Callable[[], Any]) -> Any:
    """What a function returns in a fork of this process, where there are forks."""
    if not hasattr(os, "fork"):
        return function()
    path = root / "answer.pickle"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            path.write_bytes(pickle.dumps(function()))
            status = 0
        except BaseException:  # the parent tells it
            traceback.print_exc()
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("A step with Feast failed; its traceback is above.")
    return pickle.loads(path.read_bytes())  # noqa: S301 - our own child wrote it
