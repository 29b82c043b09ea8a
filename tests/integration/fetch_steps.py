"""What `test_fetch.py` asks of a process that has Feast. Answers are JSON."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
from feast import FeatureStore, FeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from steps import plain

from llmrec_plugin.errors import LLMRecError
from llmrec_plugin.feast import fetch, layout_of
from llmrec_plugin.serving import Fetched, Layout


def read(
    features: str | list[str],
    entities: dict[str, list[Any]],
    full_feature_names: bool = False,
    layout: str | None = None,
    as_arrays: bool = False,
) -> dict[str, Any]:
    """What `fetch` gives, or its error, with the layout used: the one given, or one made here."""
    store = FeatureStore(repo_path=".")
    try:
        used = Layout.from_json(layout) if layout else layout_of(store, features, full_feature_names=full_feature_names)
        columns = {name: np.array(values) for name, values in entities.items()} if as_arrays else entities
        return {"layout": used.to_json(), **as_json(fetch(store, used, columns))}
    except LLMRecError as exc:
        return {"error": type(exc).__name__, "message": str(exc)}


def read_by_to_dict(features: str, entities: dict[str, list[Any]], full_feature_names: bool = False) -> dict[str, Any]:
    """Feast's own answer for a service."""
    store = FeatureStore(repo_path=".")
    answer = store.get_online_features(store.get_feature_service(features), entities, full_feature_names)
    return {name: [plain(value) for value in values] for name, values in answer.to_dict().items()}


def layouts(features: list[str | list[str]]) -> list[str]:
    """Layouts as JSON."""
    store = FeatureStore(repo_path=".")
    return [layout_of(store, item).to_json() for item in features]


def overwrite(view: str, key: str, feature: str, hexadecimal: str | None, floats: list[float] | None = None) -> None:
    """Puts other bytes, or another list, where an item's vector is."""
    store = FeatureStore(repo_path=".")
    found: FeatureView = store.get_feature_view(view)
    value = Value() if hexadecimal is None else Value(bytes_val=bytes.fromhex(hexadecimal))
    if floats is not None:
        value.float_list_val.val.extend(floats)
    entity = EntityKey(join_keys=["item"], entity_values=[Value(string_val=key)])
    at = datetime.datetime(2026, 2, 1, tzinfo=datetime.UTC)
    store._get_provider().online_write_batch(store.config, found, [(entity, {feature: value}, at, at)], None)


def as_json(fetched: Fetched) -> dict[str, Any]:
    assert fetched.matrix.dtype == np.float32
    assert fetched.matrix.flags.c_contiguous
    assert fetched.present.dtype == bool
    return {
        "matrix": [[plain(value) for value in row] for row in fetched.matrix],
        "present": fetched.present.tolist(),
        "status": fetched.status.tolist(),
        "others": fetched.others,
    }
