"""Feast's Ray engine and Ray offline store, corrected for the batch views of LLM features.

In ``feature_store.yaml``::

    batch_engine: {type: llmrec_plugin.feast.ray.LLMRayComputeEngine}
    offline_store: {type: llmrec_plugin.feast.ray.LLMRayOfflineStore, storage_path: data/ray}

All other views run on Feast's own code, and every option of ``ray.engine`` and ``ray`` means the same.
What Feast 0.67 does for a batch view with a transformation, and why these exist:

* errors of online writes are logged and the run succeeds (compute_engines/ray/utils.py:83);
* an indexed vector is refused in the same place, so nothing is written (the column arrives as a tensor);
* the raw view is written online on the way, and the newest row is only found within a block;
* historical reads run the transformation over the whole source, every time (ray_offline_store/ray.py:2444),
  round times to the second, ignore the ttl, and find nothing older than an hour in a table larger than
  ``broadcast_join_threshold_mb``.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import FeatureView
from feast.infra.common.materialization_job import MaterializationJob, MaterializationJobStatus, MaterializationTask
from feast.infra.common.serde import SerializedArtifacts
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.utils import _convert_arrow_to_proto
from pydantic import StrictStr

from llmrec_plugin.errors import EngineError, MissingExtraError
from llmrec_plugin.feast.joining import join_outputs
from llmrec_plugin.feast.training import TrainingSource, is_stored
from llmrec_plugin.transform import Transform

try:
    import ray
    from feast.infra.compute_engines.ray.compute import RayComputeEngine
    from feast.infra.compute_engines.ray.config import RayComputeEngineConfig
    from feast.infra.compute_engines.ray.job import RayMaterializationJob
    from feast.infra.offline_stores.contrib.ray_offline_store.ray import (
        RayOfflineStore,
        RayOfflineStoreConfig,
        RayRetrievalJob,
    )
except ModuleNotFoundError as exc:
    raise MissingExtraError("ray", "engines", "Ray") from exc

logger = logging.getLogger(__name__)

ROWS_PER_TASK = 256
ROWS_PER_WRITE = 1000
_LABEL = "__llmrec_label"


class LLMRayComputeEngineConfig(RayComputeEngineConfig):
    """The options of ``ray.engine``."""

    type: StrictStr = "llmrec_plugin.feast.ray.LLMRayComputeEngine"


class LLMRayComputeEngine(RayComputeEngine):
    """Feast's Ray engine; batch views of LLM features are computed and written by the cluster's workers.

    The newest row of each entity in the window is encoded; a worker process loads a model once and takes as
    many threads as its task has CPUs. An error in any task fails the run, and the watermark stays.
    """

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, from_offline_store: bool = False, **kwargs: Any
    ) -> MaterializationJob:
        transform = getattr(getattr(task.feature_view, "feature_transformation", None), "udf", None)
        if not isinstance(transform, Transform):
            return super()._materialize_one(registry, task, from_offline_store, **kwargs)
        job = functools.partial(RayMaterializationJob, f"{task.feature_view.name}-{task.start_time}-{task.end_time}")
        try:
            rows = self._write(self._encode(self._newest_rows(registry, task, transform), transform), task)
        except Exception as exc:  # Feast raises the error of a job
            return job(MaterializationJobStatus.ERROR, error=exc)
        logger.info("%s: %d rows were written.", task.feature_view.name, rows)
        return job(MaterializationJobStatus.SUCCEEDED)

    def _newest_rows(self, registry: BaseRegistry, task: MaterializationTask, transform: Transform) -> ray.data.Dataset:
        """The newest raw row of each entity in the task's window, with the columns that are needed."""
        view = task.feature_view
        source = view.source_views[0].batch_source
        raw_name = {renamed: name for name, renamed in source.field_mapping.items()}
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        keys = [raw_name.get(entity.join_key, entity.join_key) for entity in entities]
        columns = [raw_name.get(name, name) for name in transform.columns]
        job = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=keys,
            feature_name_columns=[name for name in columns if name not in keys],
            timestamp_field=source.timestamp_field,
            created_timestamp_column=source.created_timestamp_column or None,
            start_date=task.start_time,
            end_date=task.end_time,
        )
        rows = job.to_ray_dataset() if isinstance(job, RayRetrievalJob) else ray.data.from_arrow(job.to_arrow())
        rename = functools.partial(_rename, dict(source.field_mapping))
        return rows.map_batches(rename, batch_format="pyarrow") if source.field_mapping else rows

    def _encode(self, rows: ray.data.Dataset, transform: Transform) -> ray.data.Dataset:
        options = self.config.worker_task_options or {}
        resources = {name: options[name] for name in ("num_cpus", "num_gpus", "resources") if name in options}
        if self.config.num_gpus:
            resources["num_gpus"] = self.config.num_gpus
        return rows.repartition(target_num_rows_per_block=ROWS_PER_TASK).map_batches(
            transform.transform_table,  # its module does not import feast, which takes a worker seconds
            batch_format="pyarrow",
            batch_size=None,
            concurrency=self.config.max_workers,
            **resources,
        )

    def _write(self, vectors: ray.data.Dataset, task: MaterializationTask) -> int:
        """Writes to the online store; returns the number of rows."""
        artifacts = SerializedArtifacts.serialize(feature_view=task.feature_view, repo_config=self.repo_config)
        counts = vectors.map_batches(
            functools.partial(_write_online, artifacts.feature_view_proto, artifacts.repo_config_byte),
            batch_format="pyarrow",
            batch_size=self.repo_config.materialization_config.online_write_batch_size or ROWS_PER_WRITE,
            # As in Feast: one writer unless told otherwise, since the store may be a single file.
            concurrency=self.config.write_concurrency or self.config.max_workers or 1,
        )
        return counts.sum("rows") or 0


class LLMRayOfflineStoreConfig(RayOfflineStoreConfig):
    """The options of the offline store ``ray``."""

    type: StrictStr = "llmrec_plugin.feast.ray.LLMRayOfflineStore"


class LLMRayOfflineStore(RayOfflineStore):
    """Feast's Ray offline store; vectors are joined from their training tables."""

    @staticmethod
    def get_historical_features(
        config: Any,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """See Feast.

        Raises:
            EngineError: Vectors are asked for without a DataFrame of labels.
        """
        stored = [view for view in feature_views if is_stored(view)]
        others = [view for view in feature_views if not is_stored(view)]
        options: dict[str, Any] = {"full_feature_names": full_feature_names, **kwargs}
        if not stored:
            return RayOfflineStore.get_historical_features(
                config, others, feature_refs, entity_df, registry, project, **options
            )
        if not isinstance(entity_df, pd.DataFrame):
            raise EngineError(
                f"Vectors of {', '.join(view.name for view in stored)} are joined to a pandas DataFrame of labels, got "
                f"{type(entity_df).__name__}. Pass entity_df as a DataFrame."
            )
        stamp = infer_event_timestamp_from_entity_df(dict(entity_df.dtypes))
        columns = {}
        for view in stored:
            source = view.batch_source
            assert isinstance(source, TrainingSource)
            outputs = join_outputs(entity_df, stamp, view, source.refresh())
            owner = view.projection.name_to_use()
            asked = [ref.partition(":")[2] for ref in feature_refs if ref.startswith(f"{owner}:")]
            for name in asked or outputs.column_names:  # not asked for: an on-demand view reads it
                columns[f"{owner}__{name}" if full_feature_names else name] = outputs[name]
        numbered = entity_df.assign(**{_LABEL: np.arange(len(entity_df))})
        job = RayOfflineStore.get_historical_features(
            config, others, feature_refs, numbered, registry, project, **options
        )
        vectors = ray.put(pa.table(columns))
        job._dataset_or_callable = job.to_ray_dataset().map_batches(
            functools.partial(_attach, [vectors]), batch_format="pandas"
        )
        job._cached_dataset = None
        job._entity_df = entity_df
        job._metadata = job._create_metadata()
        return job


def _rename(mapping: dict[str, str], batch: pa.Table) -> pa.Table:
    return batch.rename_columns([mapping.get(name, name) for name in batch.column_names])


def _write_online(view_proto: Any, repo_config: Any, batch: pa.Table) -> dict[str, np.ndarray]:
    if batch.num_rows:
        view, online_store, _, config = _unserialize(view_proto, repo_config)
        types = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        rows = _convert_arrow_to_proto(batch.combine_chunks(), view, types)
        online_store.online_write_batch(config, view, rows, None)
    return {"rows": np.array([batch.num_rows])}


@functools.lru_cache(maxsize=8)
def _unserialize(view_proto: Any, repo_config: Any) -> tuple[Any, ...]:
    """View, online store, offline store and configuration; made once per worker."""
    return SerializedArtifacts(view_proto, repo_config).unserialize()


def _attach(vectors: list[Any], batch: pd.DataFrame) -> pd.DataFrame:
    """Replaces the numbers of labels by their vectors; `vectors` wraps the reference, or Ray would resolve it."""
    table = ray.get(vectors[0])
    labels = pa.array(batch[_LABEL])
    columns = {name: table.column(name).take(labels).to_pandas().to_numpy() for name in table.column_names}
    return batch.drop(columns=_LABEL).assign(**columns)
