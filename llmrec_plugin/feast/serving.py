"""What a ranker reads, from a ``FeatureStore``; over HTTP the same is `llmrec_plugin.serving.fetch_http`.

Feast's own ``to_dict`` makes a Python float of every component; here a vector goes from Feast's message to the
matrix in two copies. On-demand features, versions and aliases are read as Feast reads them, for it does the reading.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, utils
from feast.feature_view_projection import FeatureViewProjection
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.type_map import feast_value_type_to_python_type
from feast.types import Array, Bool, Float32, Float64, Int32, Int64

from llmrec_plugin.binding import BoundFeature, BoundNetwork
from llmrec_plugin.errors import UnknownNameError
from llmrec_plugin.feast.versions import FINGERPRINT_TAG
from llmrec_plugin.serving import (
    Column,
    Fetched,
    Layout,
    assemble,
    changed_columns,
    refuse_other_fingerprints,
    request_columns,
    type_error,
)
from llmrec_plugin.transform import Transform

_NUMBERS = (Float32, Float64, Int32, Int64, Bool)


def layout_of(
    store: FeatureStore, features: str | FeatureService | Sequence[str], *, full_feature_names: bool = False
) -> Layout:
    """The layout of a feature service, or of listed features, in their order.

    Vectors of this package and numbers go into the matrix, and so do other ``Array(Float32)`` whose field states a
    ``vector_length``. What else there is stays beside it.

    Args:
        store: The store whose registry describes them.
        features: A feature service or its name, or references as ``"view:feature"``.
        full_feature_names: Put the view's name before the feature's, for features of equal names.

    Raises:
        FingerprintMismatchError: A feature was published by a version that computes other numbers.
        UnknownNameError: A view has no such feature.
    """
    if isinstance(features, FeatureService):
        features = features.name
    asked = store.get_feature_service(features) if isinstance(features, str) else list(features)
    return _layout_of(store, asked, full_feature_names, allow_cache=False)


def fetch(store: FeatureStore, layout: Layout, entities: Mapping[str, Sequence[Any]]) -> Fetched:
    """The features of n entities.

    Args:
        store: The store to read.
        layout: What to read.
        entities: Join keys and request data by name, n values each.

    Raises:
        FetchError: The store's features are not those of the layout.
        FingerprintMismatchError: A stored vector has another fingerprint than in the layout, or another length.
        InputError: No entities are named, or their lengths differ.
    """
    columns, rows = request_columns(entities)
    if rows == 0:  # Feast fails on it
        return assemble(layout, rows, {})
    asked = _asked(store, layout)
    response = store.get_online_features(
        features=asked,
        entity_rows=columns,
        full_feature_names=layout.full_feature_names,
        include_feature_view_version_metadata=True,
    ).proto
    versions = {view.name: view.version for view in response.metadata.feature_view_metadata}
    if changed_columns(layout, versions):  # rare, and no harm if it was but a description
        now = _layout_of(store, asked, layout.full_feature_names, allow_cache=True)
        refuse_other_fingerprints(layout, now)
    names = response.metadata.feature_names.val
    found = {name: _ProtoColumn(name, result) for name, result in zip(names, response.results, strict=True)}
    return assemble(layout, rows, found)


def _asked(store: FeatureStore, layout: Layout) -> FeatureService | list[str]:
    return store.get_feature_service(layout.service, allow_cache=True) if layout.service else list(layout.features)


def _layout_of(
    store: FeatureStore, asked: FeatureService | list[str], full_feature_names: bool, *, allow_cache: bool
) -> Layout:
    registry, project = store.registry, store.project
    references = utils._get_features(registry, project, asked, allow_cache)
    utils._validate_feature_refs(references, full_feature_names)
    if isinstance(asked, FeatureService) and not any(map(_renames, asked.feature_view_projections)):
        asked = references  # of a service's views Feast 0.67 tells no version
    stored, on_demand = utils._get_feature_views_to_use(registry, project, asked, allow_cache, hide_dummy_entity=False)
    views = {view.projection.name_to_use(): view for view in (*stored, *on_demand)}

    columns: list[Column] = []
    others: list[str] = []
    for reference in references:
        view_name, _, feature = reference.rpartition(":")
        name = f"{view_name}__{feature}" if full_feature_names else feature
        column = _column(views[view_name], feature, name)
        if column is None:
            others.append(name)
        else:
            columns.append(column)
    statuses = {column.status for column in columns} & set(others)
    return Layout(
        columns=tuple(
            column if column.status in statuses else dataclasses.replace(column, status=None) for column in columns
        ),
        others=tuple(name for name in others if name not in statuses),
        service=asked.name if isinstance(asked, FeatureService) else None,
        features=() if isinstance(asked, FeatureService) else tuple(references),
        full_feature_names=full_feature_names,
    )


def _renames(projection: FeatureViewProjection) -> bool:
    """Whether a service reads a view as no list of references can: under another name, or by another key."""
    return bool(projection.name_alias or projection.join_key_map)


def _column(view: FeatureView | OnDemandFeatureView, feature: str, name: str) -> Column | None:
    """The column of a vector or a number, with the name its status would have; None for anything else."""
    fields = {field.name: field for field in view.features}
    if feature not in fields:
        raise UnknownNameError(f"feature of view {view.name!r}", feature, fields)
    field = fields[feature]
    own = Column(name=name, fingerprint=view.tags.get(FINGERPRINT_TAG))
    is_pinned = view.projection.version_tag is not None  # then it is always the same
    if own.fingerprint is not None and not is_pinned and not isinstance(view, OnDemandFeatureView):
        own = dataclasses.replace(
            own, view=view.projection.name_alias or view.name, version=view.current_version_number or 0
        )
    if field.dtype in _NUMBERS:
        return own
    transform = getattr(getattr(view, "feature_transformation", None), "udf", None)
    bound = transform.bound if isinstance(transform, Transform) else None
    if isinstance(bound, BoundFeature | BoundNetwork) and feature == view.name and (dims := bound.feature.dims):
        return dataclasses.replace(own, dims=dims, storage=bound.feature.storage, status=f"{name}_status")
    if field.dtype == Array(Float32) and field.vector_length:
        return dataclasses.replace(own, dims=field.vector_length, storage="list")
    return None


class _ProtoColumn:
    """One feature of Feast's response."""

    def __init__(self, name: str, vector: GetOnlineFeaturesResponse.FeatureVector) -> None:
        self._name, self._vector = name, vector

    @property
    def found(self) -> list[bool]:
        return [status != FieldStatus.NOT_FOUND for status in self._vector.statuses]

    def packed(self) -> list[bytes | None]:
        return [value.bytes_val or None for value in self._of_type("bytes_val")]

    def components(self) -> list[bytes | None]:
        # The components are the last thing in a list's message, as little-endian float32.
        values = [
            (value.SerializeToString(), len(value.float_list_val.val)) for value in self._of_type("float_list_val")
        ]
        return [message[-4 * length :] if length else None for message, length in values]

    def values(self) -> list[Any]:
        return [feast_value_type_to_python_type(value) for value in self._vector.values]

    def _of_type(self, expected: str) -> Sequence[Any]:
        values = self._vector.values
        for kind in {value.WhichOneof("val") for value in values}:
            if kind not in (expected, "null_val", None):
                raise type_error(self._name, expected, kind)
        return values
