"""Bound declarations -> Feast views."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

from feast import Entity, FeatureView, Field, FileSource, OnDemandFeatureView, RequestSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.transformation.python_transformation import PythonTransformation
from feast.types import Array, Bool, Bytes, FeastType, Float32, Float64, Int32, Int64, String, from_value_type
from feast.value_type import ValueType
from google.protobuf.json_format import MessageToDict

from llmrec_plugin.binding import Bound, BoundColumn, BoundNetwork, BoundSimilarity, to_values
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.feast.patches import LLMBatchFeatureView
from llmrec_plugin.feast.training import TrainingSource, project_name
from llmrec_plugin.feast.vectors import FEAST_METRICS
from llmrec_plugin.feast.versions import FINGERPRINT_TAG
from llmrec_plugin.pipeline.outputs import ColumnType, columns_of_output
from llmrec_plugin.specs import (
    ColumnFeature,
    GeneratedEmbeddingFeature,
    HistoryEmbeddingFeature,
    NetworkFeature,
    TextFeature,
    TokenFeature,
)
from llmrec_plugin.specs.networks import columns_of_source
from llmrec_plugin.transform import Transform, source

# Name of the view that a batch view reads, by which a push finds the vectors it must compute.
SOURCE_TAG = "llmrec.source"
# Without a ttl Feast's first incremental run reaches back one year only (feature_store.py, 0.67).
FOREVER = timedelta(days=36_500)


class DeclaredTransformation(PythonTransformation):
    """A python transformation whose outputs are declared, so that ``feast apply`` need not run it on a made-up row."""

    outputs: list[Field]

    def infer_features(self, random_input: dict[str, Any], singleton: bool | None = False) -> list[Field]:
        return self.outputs


def on_demand_name(feature: ColumnFeature) -> str:
    """Name of the feature's on-demand view: its own, unless a batch view has that already."""
    return feature.name if feature.entity is None else f"{feature.name}_on_demand"


def batch_view(
    bound: BoundColumn, raw: FeatureView, entity: Entity, root: str, tags: dict[str, str]
) -> LLMBatchFeatureView:
    """The materialized view: reads the newest row of `raw` per entity, stores one value.

    Args:
        bound: The feature and its artifact.
        raw: The view over the text columns.
        entity: Its entity.
        root: Folder of the feature repo, from which relative file paths start.
        tags: Further tags.

    Raises:
        DeclarationError: `raw` reads neither parquet files nor Spark.
    """
    feature = bound.feature
    raw_source = raw.batch_source
    raw_rows = _raw_rows(raw_source)
    if raw_rows is None:
        raise DeclarationError(
            f"Feature {feature.name!r} reads view {raw.name!r}, whose source is a {type(raw_source).__name__}: "
            "expected a FileSource of parquet on this machine or a SparkSource, the sources of batch views so far. "
            "Declare the feature with entity=None for request time only, or leave it out with exclude=."
        )
    key = entity.join_key
    stamps = [raw_source.timestamp_field, raw_source.created_timestamp_column]
    values = to_values(bound)
    transform = Transform(
        "batch", feature.name, json.dumps({"bound": values, "keep": [key, *filter(None, stamps)]}, sort_keys=True)
    )
    training = TrainingSource(
        name=f"{feature.name}_training",
        configuration={
            "bound": values,
            **raw_rows,
            "root": root,
            "project": project_name(Path(root)),
            "keys": [key],
            "timestamp": stamps[0],
            "created": stamps[1],
            "field_mapping": dict(raw_source.field_mapping),
        },
        description=f"Values of every row of {raw.name}, for historical reads.",
    )
    return LLMBatchFeatureView(
        name=feature.name,
        mode="python",
        source=raw,
        sink_source=training,
        entities=[entity],
        ttl=raw.ttl or FOREVER,
        schema=[Field(name=key, dtype=_key_type(raw, entity)), *_output_fields(feature.name, feature, stored=True)],
        online=True,
        offline=False,  # historical reads use the training table, which holds every version of a row
        udf=transform,
        udf_string=source(transform),
        description=feature.description,
        tags=_tags(bound) | {SOURCE_TAG: raw.name} | tags,
    )


def _raw_rows(source: DataSource) -> dict[str, Any] | None:
    """What the training table is computed from, for `TrainingSource`; None if it cannot be."""
    if isinstance(source, FileSource):
        is_local_parquet = isinstance(source.file_format, (ParquetFormat, type(None))) and "://" not in source.path
        return {"uri": source.path} if is_local_parquet else None
    if source.source_type() == DataSourceProto.BATCH_SPARK:  # its class is there only where pyspark is
        options = source.spark_options.to_proto()  # type: ignore[attr-defined]
        return {"spark": MessageToDict(options, preserving_proto_field_name=True)}
    return None


def request_source(bound: BoundColumn, raw: FeatureView | None, stored: Collection[str] = ()) -> RequestSource | None:
    """The feature's columns but the `stored` ones, sent with a request, typed as in `raw` if there is one.

    Feast refuses an empty list in a request; send None, or nothing but blank texts, for an empty history.
    """
    feature = bound.feature
    defaults = {column: types[0] for column, types in column_types(bound).items()}
    types = {field.name: field.dtype for field in raw.features} if raw else {}
    sent = [column for column in feature.columns if column not in stored]
    schema = [Field(name=column, dtype=types.get(column, defaults[column])) for column in sent]
    return RequestSource(name=f"{feature.name}_request", schema=schema) if schema else None


Types: TypeAlias = tuple[FeastType, ...]

_NUMBERS: Types = (Float64, Float32, Int64, Int32)
_STRINGS: Types = (Array(String),)
_TEXT: Types = (String, *_NUMBERS, Bool, *_STRINGS)
_KEY: Types = (String, Int64, Int32)
_VECTOR: Types = (Array(Float32), Array(Float64), Bytes)
_INPUT_TYPES: dict[str, Types] = {
    "id": _KEY,
    "id_sequence": (*_STRINGS, Array(Int64), Array(Int32)),
    "number": _NUMBERS,
    "vector": _VECTOR,
    "vector_sequence": _VECTOR,
    "tokens": _TEXT,
    "image": (Bytes,),
}


def described(types: Types) -> str:
    """The types for messages, e.g. ``String, a number or Array(String)``."""
    names = list(
        dict.fromkeys("a number" if set(_NUMBERS) <= set(types) and kind in _NUMBERS else str(kind) for kind in types)
    )
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def column_types(bound: BoundColumn) -> dict[str, Types]:
    """The types that each column of a feature may have, first the one that it has in a request of its own."""
    if isinstance(bound, BoundNetwork):
        kinds = {item.name: item.kind for item in bound.inputs}
        found: dict[str, Types] = {}
        for name, source in bound.feature.inputs:
            wanted = _types_of(source) if not isinstance(source, str) else {}
            wanted |= dict.fromkeys(columns_of_source(source), _INPUT_TYPES[kinds[name]]) if not wanted else {}
            for column, types in wanted.items():
                found[column] = tuple(kind for kind in found.get(column, types) if kind in types)
        none = next((column for column, types in found.items() if not types), None)
        if none is not None:
            raise DeclarationError(
                f"Feature {bound.feature.name!r} reads column {none!r} for inputs of different kinds, and no type fits "
                "both. Read two columns."
            )
        user = bound.feature.noise.user if bound.feature.noise is not None else None
        return found if user is None or user in found else found | {user: _KEY}
    return _types_of(bound.feature)


def _types_of(feature: TextFeature | TokenFeature) -> dict[str, Types]:
    if not isinstance(feature, TokenFeature) and feature.noise is not None:
        return {feature.noise.user: _KEY} | _types_of(replace(feature, noise=None, status=False))
    if isinstance(feature, GeneratedEmbeddingFeature):
        return _types_of(feature.of)
    if isinstance(feature, HistoryEmbeddingFeature):
        return {feature.events: _STRINGS}
    if not isinstance(feature, TokenFeature) or feature.prompt is None:
        return dict.fromkeys(feature.columns, _TEXT)
    renamed = dict(feature.columns_of)
    types: dict[str, Types] = {"text": _TEXT, "list": _STRINGS, "number": _NUMBERS}
    return {renamed.get(slot.name, slot.name): types[slot.type] for slot in feature.prompt.slots}


def on_demand_view(
    bound: BoundColumn, sources: list[FeatureView | RequestSource], tags: dict[str, str]
) -> OnDemandFeatureView:
    """The view that computes the value of what is sent with the request, and of what is stored."""
    name = on_demand_name(bound.feature)
    return _on_demand(name, bound, sources, _output_fields(name, bound.feature, stored=False), tags)


def similarity_view(
    bound: BoundSimilarity, sources: list[FeatureView | RequestSource], tags: dict[str, str]
) -> OnDemandFeatureView:
    """The view that compares two vectors, each from a batch view or from the request."""
    outputs = [Field(name=bound.feature.name, dtype=Float32)]
    if bound.feature.status:
        outputs.append(Field(name=bound.feature.status_name, dtype=String))
    return _on_demand(bound.feature.name, bound, sources, outputs, tags)


_TYPES: dict[ColumnType, FeastType] = {
    "string": String,
    "strings": Array(String),
    "float": Float32,
    "floats": Array(Float32),
    "ints": Array(Int64),
}


def _output_fields(name: str, feature: ColumnFeature, *, stored: bool) -> list[Field]:
    """The value's fields, with an index where Feast can have one, and the status field if declared.

    Only stored fields are described: of an on-demand view's Feast 0.67 forgets the descriptions, and then refuses to
    serve it in a feature service, which remembers them.
    """
    described: dict[str, Any] = {"description": feature.description} if stored else {}
    if isinstance(feature, TokenFeature):
        fields = [
            Field(name=name + suffix, dtype=_TYPES[kind], **({} if suffix else described))
            for suffix, kind in columns_of_output(feature.output)
        ]
        return [*fields, *([Field(name=f"{name}_status", dtype=String)] if feature.status else [])]
    index: dict[str, Any] = {}
    if isinstance(feature, NetworkFeature) and feature.metric is None:  # a number
        fields = [Field(name=name, dtype=Float32, **described)]
        return [*fields, *([Field(name=f"{name}_status", dtype=String)] if feature.status else [])]
    if stored and feature.storage == "list":
        index = {
            "vector_index": True,
            "vector_length": feature.dims,
            "vector_search_metric": FEAST_METRICS[feature.metric],  # type: ignore[index]
        }
    fields = [Field(name=name, dtype=Array(Float32) if feature.storage == "list" else Bytes, **described, **index)]
    if feature.status:
        fields.append(Field(name=f"{name}_status", dtype=String))
    return fields


def _on_demand(
    name: str, bound: Bound, sources: list[Any], outputs: list[Field], tags: dict[str, str]
) -> OnDemandFeatureView:
    transform = Transform("on_demand", name, json.dumps({"bound": to_values(bound)}, sort_keys=True))
    transformation = DeclaredTransformation(udf=transform, udf_string=source(transform))  # type: ignore[arg-type]
    transformation.outputs = outputs
    return OnDemandFeatureView(
        name=name,
        sources=sources,
        schema=outputs,
        mode="python",
        feature_transformation=transformation,
        description=bound.feature.description,
        tags=_tags(bound) | tags,
    )


def _tags(bound: Bound) -> dict[str, str]:
    tags = {FINGERPRINT_TAG: bound.fingerprint, "llmrec.kind": bound.feature.kind}
    if not isinstance(bound, BoundSimilarity):
        tags |= {"llmrec.model": bound.feature.model, "llmrec.artifact": bound.artifact_id}
    return tags


def _key_type(raw: FeatureView, entity: Entity) -> FeastType:
    for column in raw.entity_columns:
        if column.name == entity.join_key:
            return column.dtype
    return String if entity.value_type == ValueType.UNKNOWN else from_value_type(entity.value_type)
