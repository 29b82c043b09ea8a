"""Feast's Spark offline store, corrected for the batch views of LLM features.

In ``feature_store.yaml``::

    offline_store: {type: llmrec_plugin.feast.spark.LLMSparkOfflineStore}

Feast 0.67 runs a batch view's transformation over the whole raw source at every historical read
(spark_offline_store/spark.py:1523); this store reads the training table instead, which Spark writes when the
raw rows changed. Everything else is Feast's, and ``batch_engine: {type: spark.engine}`` needs no correction.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from feast import FeatureView
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from google.protobuf.json_format import ParseDict
from pydantic import StrictStr

from llmrec_plugin.errors import MissingColumnError, MissingExtraError
from llmrec_plugin.feast.training import TrainingSource, is_stored
from llmrec_plugin.specs import digest
from llmrec_plugin.transform import Transform

try:
    from feast.infra.offline_stores.contrib.spark_offline_store.spark import (
        SparkOfflineStore,
        SparkOfflineStoreConfig,
        get_spark_session_or_start_new_with_repoconfig,
    )
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkOptions, SparkSource
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql import functions as F  # noqa: N812 - Spark's own abbreviation

    from llmrec_plugin.spark import transform_spark
except ModuleNotFoundError as exc:
    raise MissingExtraError("pyspark", "engines", "Spark") from exc


class LLMSparkOfflineStoreConfig(SparkOfflineStoreConfig):
    """The options of the offline store ``spark``."""

    type: StrictStr = "llmrec_plugin.feast.spark.LLMSparkOfflineStore"


class LLMSparkOfflineStore(SparkOfflineStore):
    """Feast's Spark offline store; vectors are joined from their training tables."""

    @staticmethod
    def get_historical_features(
        config: Any, feature_views: list[FeatureView], *args: Any, **kwargs: Any
    ) -> RetrievalJob:
        """See Feast."""
        session = get_spark_session_or_start_new_with_repoconfig(config.offline_store)
        views = [_stored_view(view, session) if is_stored(view) else view for view in feature_views]
        return SparkOfflineStore.get_historical_features(config, views, *args, **kwargs)


def _stored_view(view: FeatureView, session: SparkSession) -> FeatureView:
    """`view` without its transformation, over its training table."""
    source = view.batch_source
    assert isinstance(source, TrainingSource)
    table = source.refresh() if "uri" in source.configuration else refresh_with_spark(source, session)
    stored = FeatureView.__copy__(view)  # a plain view: Feast would run the transformation of a batch view
    stored.source_views = []
    stored.batch_source = SparkSource(
        name=source.name,
        path=f"{table.as_uri()}/*.parquet",
        file_format="parquet",
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column,
        field_mapping=source.field_mapping,
    )
    return stored


def refresh_with_spark(source: TrainingSource, session: SparkSession) -> Path:
    """The folder of the training table, written anew by Spark's workers if the raw rows changed.

    A change is found by a checksum over the columns that are read: one pass over them, and no inference.

    Raises:
        MissingColumnError: The raw rows lack a column.
    """
    rows = _raw_rows(source, session)
    name = source.bound.feature.name
    payload = json.dumps({"bound": source.configuration["bound"], "keep": source.kept}, sort_keys=True)
    transform = Transform("batch", name, payload)
    checksum = F.sum(F.xxhash64(*rows.columns).cast("decimal(38,0)"))
    state = digest([str(value) for value in rows.agg(F.count("*"), checksum).collect()[0]])[:16]

    def write(_: str, part: Path) -> None:
        transform_spark(transform, rows, "historical").write.parquet(part.as_uri())

    return source.table("").up_to_date(state, lambda: {"rows": state}, write)


def _raw_rows(source: TrainingSource, session: SparkSession) -> DataFrame:
    """Key and timestamp columns under the raw names, and the columns that the feature reads under its own."""
    options = SparkOptions.from_proto(ParseDict(source.configuration["spark"], DataSourceProto.SparkOptions()))
    raw = SparkSource(
        name=source.name,
        table=options.table,
        query=options.query,
        path=options.path,
        file_format=options.file_format,
        table_format=options.table_format,
        timestamp_field=source.timestamp_field,
    )
    rows = session.sql(f"SELECT * FROM {raw.get_table_query_string()}")  # noqa: S608 - the user's own source
    feature = source.bound.feature
    wanted = {name: name for name in source.kept} | {name: source.raw_name(name) for name in feature.columns}
    missing = [name for name in wanted.values() if name not in rows.columns]
    if missing:
        raise MissingColumnError(feature.name, missing, rows.columns)
    return rows.select(*(F.col(f"`{raw_name}`").alias(name) for name, raw_name in wanted.items()))
