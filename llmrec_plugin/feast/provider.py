"""Feast's provider with embeddings on write: text that is pushed has its vector when the push returns.

In ``feature_store.yaml``::

    provider: llmrec_plugin.feast.provider.LLMRecProvider

Feast hands every pushed row to the provider, together with the view it was pushed to, and runs no
transformation on it. This provider writes the row as Feast does, then finds our views over that view in
the registry, computes their vectors from the same row and writes them under the row's own timestamps.
Processes that push need the registry, the exported model and this package, not the feature repo.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pandas as pd
from feast import FeatureStore, FeatureView
from feast.infra.passthrough_provider import PassthroughProvider
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.protos.feast.core.Registry_pb2 import Registry as RegistryProto
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.utils import make_tzaware
from google.protobuf.message import DecodeError

from llmrec_plugin.errors import InputError
from llmrec_plugin.feast.jobs import open_target
from llmrec_plugin.feast.views import SOURCE_TAG
from llmrec_plugin.feast.writing import writing
from llmrec_plugin.pipeline.columns import output_fields
from llmrec_plugin.runtime.ledger import Entry
from llmrec_plugin.runtime.rawrows import digests, to_microseconds

logger = logging.getLogger(__name__)

Row: TypeAlias = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
"""What an online store writes: entity key, values by feature, event timestamp, created timestamp."""

ROWS_PER_READ = 1_000
_POLL_SECONDS = 0.002
_REGISTRY_SECONDS = 5.0


class LLMRecProvider(PassthroughProvider):
    """Writes the vectors of pushed rows beside the rows."""

    def ingest_df(self, feature_view: Any, df: pd.DataFrame, field_mapping: dict[str, str] | None = None) -> None:
        """Writes the rows of `df` to `feature_view`, and their vectors to our views over it."""
        with writing(self.repo_config.project):
            super().ingest_df(feature_view, df, field_mapping)
        self._ingest_vectors(feature_view, df)

    async def ingest_df_async(
        self, feature_view: Any, df: pd.DataFrame, field_mapping: dict[str, str] | None = None
    ) -> None:
        """`ingest_df` for stores that write asynchronously; inference runs in a thread, not on the event loop."""
        await super().ingest_df_async(feature_view, df, field_mapping)
        await asyncio.to_thread(self._ingest_vectors, feature_view, df)

    def _ingest_vectors(self, raw: FeatureView, frame: pd.DataFrame) -> None:
        for view in self._views_over(raw):
            try:
                self._ingest_vectors_of(view, frame)
            except Exception as exc:
                exc.add_note(
                    f"The pushed rows are in {raw.name!r}, but their vectors are not in {view.name!r}. Push them again "
                    "when this is mended, or leave them to the next `feast materialize`."
                )
                raise

    def _ingest_vectors_of(self, view: FeatureView, frame: pd.DataFrame) -> None:
        """Computes and writes the vectors of one view, and records in the ledger what was written."""
        transform = view.feature_transformation.udf
        vectors = transform.transform_frame(frame, mode="push")
        # With its type stated: Feast refuses a column of nothing but nulls.
        feature = transform.bound.feature
        vectors[feature.name] = vectors[feature.name].astype(pd.ArrowDtype(output_fields(feature)[0].type))
        rows = newest_rows(self._prep_rows_to_write_for_ingestion(view, vectors))
        with writing(self.repo_config.project):
            rows = self._not_older_than_stored(view, rows)
            if rows:
                self.online_write_batch(self.repo_config, view, rows, progress=None)
                open_target(self.repo_config, view).write(_entries(view, frame, rows))
        logger.debug("%s: wrote the vectors of %d of %d pushed rows", view.name, len(rows), len(frame))

    def _views_over(self, raw: FeatureView) -> list[FeatureView]:
        """Our online views that read `raw`, as the registry has them now."""
        return [
            _view(proto.SerializeToString(deterministic=True))
            for proto in self._registry_now().feature_views
            if proto.spec.project == self.repo_config.project
            and proto.spec.online
            and proto.spec.tags.get(SOURCE_TAG) == raw.name
        ]

    def _registry_now(self) -> RegistryProto:
        """The registry, read anew: after a model change no vector of the old model may reach the emptied table.

        Read as one message, since Feast's lists of views have a memo of one entry, for which the pushing store and
        this provider would compete.
        """
        project = self.repo_config.project
        deadline = time.monotonic() + _REGISTRY_SECONDS
        while True:
            try:
                self._registry.refresh(project)
                registry = self._registry.proto()
                if any(item.spec.name == project for item in registry.projects):
                    return registry
                failure = None
            except DecodeError as exc:
                failure = exc
            # Feast empties a file registry and then writes it; materializing does so, too.
            if time.monotonic() > deadline:
                raise InputError(
                    f"Expected a registry with project {project!r}, got "
                    f"{'one that cannot be read' if failure else 'one without it'}. Run `feast apply`."
                ) from failure
            time.sleep(_POLL_SECONDS)

    @functools.cached_property
    def _registry(self) -> BaseRegistry:
        return FeatureStore(repo_path=self.repo_config.repo_path, config=self.repo_config).registry

    def _not_older_than_stored(self, view: FeatureView, rows: Sequence[Row]) -> list[Row]:
        """The rows whose event is not older than the one that the online store has of the same entity."""
        feature = [view.features[0].name]
        fresh: list[Row] = []
        for start in range(0, len(rows), ROWS_PER_READ):
            chunk = rows[start : start + ROWS_PER_READ]
            stored = self.online_read(self.repo_config, view, [key for key, *_ in chunk], feature)
            for row, (stored_at, _) in zip(chunk, stored, strict=True):
                if stored_at is None or make_tzaware(row[2]) >= make_tzaware(stored_at):
                    fresh.append(row)
        return fresh


@functools.lru_cache(maxsize=256)
def _view(serialized: bytes) -> FeatureView:
    """The view of a registry message; building one takes Feast some milliseconds."""
    return FeatureView.from_proto(FeatureViewProto.FromString(serialized))


def _entries(view: FeatureView, frame: pd.DataFrame, rows: Sequence[Row]) -> Iterator[Entry]:
    """The ledger's entries of those rows of `frame` that were written."""
    transform = view.feature_transformation.udf
    key, timestamp = view.entity_columns[0].name, view.batch_source.timestamp_field
    columns = {name: frame[name].tolist() for name in transform.bound.feature.columns}
    times = [to_microseconds(moment.to_pydatetime()) for moment in pd.to_datetime(frame[timestamp], utc=True)]
    hashes = dict(zip(zip(frame[key], times, strict=True), digests(columns), strict=True))
    for entity_key, _, at, created in rows:
        value = entity_key.entity_values[0]
        name, moment = getattr(value, value.WhichOneof("val")), to_microseconds(at)
        made = to_microseconds(created) if created else 0
        yield Entry(name, moment, made, int(hashes[name, moment]), pushed=True)


def newest_rows(rows: Sequence[Row]) -> list[Row]:
    """Of each entity the row of the newest event; among equals the one created last, then the last one."""
    newest: dict[bytes, Row] = {}
    for row in rows:
        key = row[0].SerializeToString()
        if key not in newest or _age(row) >= _age(newest[key]):
            newest[key] = row
    return list(newest.values())


def _age(row: Row) -> tuple[datetime, datetime]:
    return make_tzaware(row[2]), make_tzaware(row[3]) if row[3] else datetime.min.replace(tzinfo=UTC)
