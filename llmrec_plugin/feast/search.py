"""Candidate retrieval: the rows whose stored vectors are nearest to a query.

Feast's `retrieve_online_documents_v2` gives the features of one row to the key of another (0.67,
feature_store.py:4714-4739) and cannot compute the query's vector. `search` asks the online store itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from feast import FeatureStore, FeatureView, Field
from feast.errors import FeastObjectNotFoundException
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.type_map import feast_value_type_to_python_type

from llmrec_plugin.binding import BoundFeature, BoundNetwork, BoundVector
from llmrec_plugin.errors import DeclarationError, InputError, OnlineStoreError, UnknownNameError, quoted
from llmrec_plugin.feast.vectors import VectorSearch, by_entity_key, metric_of, query_vector, vector_column
from llmrec_plugin.feast.views import on_demand_name
from llmrec_plugin.transform import Transform

Query: TypeAlias = str | Mapping[str, Any] | Sequence[float] | np.ndarray


def search(
    store: FeatureStore,
    feature: str,
    query: Query,
    top_k: int,
    *,
    query_feature: str | None = None,
    features: Sequence[str] = (),
) -> pd.DataFrame:
    """The `top_k` rows whose stored vectors are nearest to `query`, nearest first.

    Args:
        store: The feature store; its online store must be able to search.
        feature: Name of an embedding feature with an entity.
        query: A text, the columns of `query_feature` (``{"title": "red", "note": None}``), or a vector of
            (dims,) floats.
        top_k: At most so many rows; fewer if fewer have a vector.
        query_feature: The feature that encodes the query, or that made the vector. Not needed for a text or
            columns that exactly one feature without an entity reads, in the vector space of `feature`.
        features: References such as ``"item_text:title"`` of stored features to be read for the rows found.

    Returns:
        One row per hit: the entity's join keys, `features`, and ``distance``: 1 - cosine, minus the dot
        product, or the euclidean distance, as `feature` declares. Of equal distances the order is that of
        the keys.

    Raises:
        UnknownNameError: No embedding feature of that name is applied.
        DeclarationError: `query_feature` gives vectors of another space, or several features could encode the query.
        InputError: The query has no vector, or one of another length.
        OnlineStoreError: The online store cannot search vectors.
    """
    view = _view(store, feature)
    bound = _bound(view)
    if bound is None or not bound.stored:
        raise DeclarationError(f"Feature {feature!r} stores no vectors: search an embedding feature with an entity.")
    if query_feature is not None:
        encoder = _bound(_view(store, query_feature))
        _check_space(bound, encoder, query_feature)
    if isinstance(query, str | Mapping):
        query = _encode(store, encoder if query_feature else _only_encoder(store, bound, query), query)
    hits = _nearest(store, view, query, top_k)
    keys = pd.DataFrame([key for key, _ in hits], columns=view.join_keys)
    if not features or not hits:
        names = [reference.rpartition(":")[2] for reference in features]
        read = keys.reindex(columns=[*view.join_keys, *names])
    else:
        read = store.get_online_features(list(features), keys.to_dict("records")).to_df()
    read["distance"] = np.array([distance for _, distance in hits], dtype=np.float64)
    return read


def _view(store: FeatureStore, name: str) -> Any:
    try:
        return store.registry.get_any_feature_view(name, store.project, allow_cache=True)
    except FeastObjectNotFoundException:
        views = store.registry.list_all_feature_views(store.project, allow_cache=True)
        raise UnknownNameError("applied feature", name, [view.name for view in views if _bound(view)]) from None


def _bound(view: Any) -> BoundVector | None:
    """The feature that gives the vectors of a view; None for any other view."""
    udf = getattr(getattr(view, "feature_transformation", None), "udf", None)
    bound = udf.bound if isinstance(udf, Transform) else None
    if isinstance(bound, BoundNetwork):
        return bound if bound.feature.dims is not None else None
    return bound if isinstance(bound, BoundFeature) else None


def _check_space(bound: BoundVector, other: BoundVector | None, name: str) -> None:
    if other is None:
        raise DeclarationError(f"{name!r} is no embedding feature, so it cannot give a query's vector.")
    if other.vector_space != bound.vector_space:
        raise DeclarationError(
            f"Queries of feature {other} are not comparable with the vectors of {bound}: they lie in "
            "different spaces. Declare both with the same model, dims, normalize and reduction; of networks, export "
            "both from one training."
        )


def _only_encoder(store: FeatureStore, bound: BoundVector, query: str | Mapping[str, Any]) -> BoundVector:
    """The one feature without an entity that can read the query and gives vectors of the same space."""
    fitting = {}
    for view in store.registry.list_on_demand_feature_views(store.project, allow_cache=True):
        found = _bound(view)
        if found is None or found.stored or found.vector_space != bound.vector_space:
            continue
        if len(found.feature.columns) == 1 if isinstance(query, str) else set(found.feature.columns) == set(query):
            fitting[found.feature.name] = found
    if len(fitting) != 1:
        raise DeclarationError(
            f"Expected one feature without an entity that reads {'a text' if isinstance(query, str) else list(query)} "
            f"into the vector space of {bound.feature.name!r}, found {', '.join(map(repr, fitting)) or 'none'}. "
            f"Name the one to use with query_feature=; query_feature={bound.feature.name!r} encodes a query like a row."
        )
    return fitting.popitem()[1]


def _encode(store: FeatureStore, encoder: BoundVector | None, query: str | Mapping[str, Any]) -> list[float]:
    assert encoder is not None
    feature = encoder.feature
    if isinstance(query, str):
        if len(feature.columns) != 1:
            raise InputError(
                f"Feature {feature.name!r} reads the columns {', '.join(feature.columns)}: expected a query with these "
                f"as keys, got a text."
            )
        query = {feature.columns[0]: query}
    name = on_demand_name(feature)
    [vector] = store.get_online_features([f"{name}:{name}"], [dict(query)]).to_dict()[name]
    if vector is None:
        raise InputError(f"The query has no vector: feature {feature.name!r} found nothing to read in {quoted(query)}.")
    return vector


def _nearest(store: FeatureStore, view: FeatureView, query: Any, top_k: int) -> list[tuple[list[Any], float]]:
    """Values of the join keys, and distance, of the nearest rows, nearest first."""
    if top_k < 1:
        raise InputError(f"top_k must be at least 1, got {top_k}.")
    column = vector_column(view)
    vector = query_vector(query, column)
    online_store = store._get_provider().online_store
    hits: list[tuple[EntityKey, float]]
    if isinstance(online_store, VectorSearch):
        rows = online_store.nearest_rows(store.config, view, column, vector, metric_of(column), top_k)
        version = store.config.entity_key_serialization_version
        hits = [(deserialize_entity_key(key, version), distance) for key, distance in rows]
    else:
        hits = _nearest_by_feast(store, online_store, view, column, vector, top_k)
    join_keys = view.join_keys
    found = []
    for key, distance in hits:
        values = dict(zip(key.join_keys, key.entity_values, strict=True))
        found.append(([feast_value_type_to_python_type(values[name]) for name in join_keys], distance))
    return found


def _nearest_by_feast(
    store: FeatureStore, online_store: Any, view: FeatureView, column: Field, vector: np.ndarray, top_k: int
) -> list[tuple[EntityKey, float]]:
    """Keys and distances from a store of Feast's own that can search, such as PostgreSQL's."""
    if type(online_store).retrieve_online_documents_v2 is OnlineStore.retrieve_online_documents_v2:
        raise OnlineStoreError(f"{type(online_store).__name__} cannot search vectors. {_STORES}")
    if type(online_store) is SqliteOnlineStore:
        raise OnlineStoreError(f"Feast's own SQLite store searches vectors on Python 3.10 alone. {_STORES}")
    rows = online_store.retrieve_online_documents_v2(
        store.config, view, [column.name], vector.tolist(), top_k, distance_metric=column.vector_search_metric
    )
    found = [(key, feast_value_type_to_python_type(values["distance"])) for _, key, values in by_entity_key(rows)]
    # pgvector's cosine distance of a vector without direction is NaN.
    return sorted((hit for hit in found if not math.isnan(hit[1])), key=lambda hit: hit[1])


_STORES = (
    "Set online_store.type in feature_store.yaml to llmrec_plugin.feast.sqlite.LLMRecSqliteOnlineStore, "
    "llmrec_plugin.feast.redis.LLMRecRedisOnlineStore, llmrec_plugin.feast.postgres.LLMRecPostgreSQLOnlineStore or "
    "postgres with vector_enabled: true."
)
