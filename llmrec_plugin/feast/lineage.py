"""Where the values of each of our views come from, and who reads them; as the registry knows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from feast import FeatureStore, FeatureView
from feast.data_source import DataSource

from llmrec_plugin.binding import Bound, BoundNetwork, BoundSimilarity
from llmrec_plugin.errors import FingerprintMismatchError
from llmrec_plugin.feast.versions import FINGERPRINT_TAG
from llmrec_plugin.transform import Transform


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """One of our views.

    Attributes:
        view: Its name.
        kind: Kind of the feature: ``embedding``, ``tokens``, ``network``, ...
        when: ``batch`` for a view that is materialized, ``on_demand`` for one computed at request time.
        entity: Join key of its rows; empty at request time.
        fingerprint: Of the served version, 64 hex digits.
        description: For people.
        source: Files, tables and requests whose columns are read, by name.
        reads: Views that hold the columns that are read; for a similarity, the views of its sides.
        columns: The columns.
        models: Name and artifact id of each model that computes it.
        parameters: What else its values depend on, and is short: dims, metric, storage.
        read_by: On-demand views that read it.
        served_by: Feature services that name it.
        services: Feature services that read it, directly or through on-demand views.
        materialized_to: End of the newest materialized interval; None if there is none.
        problem: Why the declaration cannot be read by this version; empty if it can.
    """

    view: str
    kind: str
    when: Literal["batch", "on_demand"]
    entity: str
    fingerprint: str
    description: str
    source: tuple[str, ...]
    reads: tuple[str, ...]
    columns: tuple[str, ...]
    models: tuple[tuple[str, str], ...]
    parameters: dict[str, Any]
    read_by: tuple[str, ...]
    served_by: tuple[str, ...]
    services: tuple[str, ...]
    materialized_to: datetime | None
    problem: str = ""


def lineage(store: FeatureStore) -> list[Lineage]:
    """Every one of our views by name, those that are materialized first."""
    on_demand = store.list_on_demand_feature_views()
    readers = {view.name: _views_read(view) for view in on_demand}
    services = {
        service.name: {projection.name for projection in service.feature_view_projections}
        for service in store.list_feature_services()
    }
    return [
        _lineage(view, transform, readers, services)
        for views in (store.list_batch_feature_views(), on_demand)
        for view in sorted(views, key=lambda view: view.name)
        if (transform := transform_of(view)) is not None
    ]


def transform_of(view: object) -> Transform | None:
    """Our transformation in a view; None in one of somebody else's."""
    transform = getattr(getattr(view, "feature_transformation", None), "udf", None)
    return transform if isinstance(transform, Transform) else None


def _lineage(
    view: Any, transform: Transform, readers: Mapping[str, set[str]], services: Mapping[str, set[str]]
) -> Lineage:
    bound, problem = _bound(transform)
    is_batch = isinstance(view, FeatureView)
    sources = _sources_of_batch(view) if is_batch else _sources_of_request(view)
    used = {view.name, *_closure(view.name, readers)}
    return Lineage(
        view=view.name,
        kind=view.tags.get("llmrec.kind", ""),
        when="batch" if is_batch else "on_demand",
        entity=view.entity_columns[0].name if is_batch and view.entity_columns else "",
        fingerprint=view.tags.get(FINGERPRINT_TAG, ""),
        description=view.description,
        source=tuple(sources),
        reads=tuple(raw.name for raw in view.source_views) if is_batch else tuple(sorted(_views_read(view))),
        columns=() if bound is None else _columns(bound),
        models=() if bound is None or isinstance(bound, BoundSimilarity) else bound.artifacts,
        parameters={} if bound is None else _parameters(bound),
        read_by=tuple(sorted(reader for reader, views in readers.items() if view.name in views)),
        served_by=tuple(sorted(name for name, read in services.items() if view.name in read)),
        services=tuple(sorted(name for name, read in services.items() if read & used)),
        materialized_to=view.most_recent_end_time if is_batch else None,
        problem=problem,
    )


def _bound(transform: Transform) -> tuple[Bound | None, str]:
    try:
        return transform.bound, ""
    except FingerprintMismatchError as exc:
        return None, str(exc)


def _columns(bound: Bound) -> tuple[str, ...]:
    if isinstance(bound, BoundSimilarity):
        return (bound.left.feature.name, bound.right.feature.name)
    return tuple(bound.feature.columns)


def _parameters(bound: Bound) -> dict[str, Any]:
    names = ("dims", "metric", "storage")
    found = {name: getattr(bound.feature, name, None) for name in names}
    if isinstance(bound, BoundNetwork) and bound.feature.dims is None:
        found = {}
    output = getattr(bound.feature, "output", None)
    return {name: value for name, value in found.items() if value is not None} | (
        {"output": output.kind} if output is not None else {}
    )


def _sources_of_batch(view: FeatureView) -> list[str]:
    return [_described(raw.batch_source) for raw in view.source_views or [] if raw.batch_source is not None]


def _sources_of_request(view: Any) -> list[str]:
    return ["request"] if view.source_request_sources else []


def _described(source: DataSource) -> str:
    """A file's path as it was declared, a table's name, or the name of the source."""
    return getattr(source, "path", "") or getattr(source, "table", "") or source.name


def _views_read(view: Any) -> set[str]:
    return {projection.name for projection in view.source_feature_view_projections.values()}


def _closure(name: str, readers: Mapping[str, Iterable[str]]) -> set[str]:
    """The on-demand views that read a view, directly or through others."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        read = waiting.pop()
        fresh = {reader for reader, views in readers.items() if read in views} - found
        found |= fresh
        waiting += fresh
    return found
