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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pandas as pd
from feast import FeatureStore, FeatureView
from feast.infra.passthrough_provider import PassthroughProvider
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.utils import make_tzaware
from filelock import FileLock

from llmrec_plugin.feast.views import SOURCE_TAG
from llmrec_plugin.pipeline.packing import value_type
from llmrec_plugin.settings import load_settings

logger = logging.getLogger(__name__)

Row: TypeAlias = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
"""What an online store writes: entity key, values by feature, event timestamp, created timestamp."""

ROWS_PER_READ = 1_000
_LOCK_POLL_SECONDS = 0.002


class LLMRecProvider(PassthroughProvider):
    """Writes the vectors of pushed rows beside the rows."""

    def ingest_df(self, feature_view: Any, df: pd.DataFrame, field_mapping: dict[str, str] | None = None) -> None:
        """Writes the rows of `df` to `feature_view`, and their vectors to our views over it."""
        with self._writing():
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
        transform = view.feature_transformation.udf
        vectors = transform.transform_frame(frame, mode="push")
        # With its type stated: Feast refuses a column of nothing but nulls.
        feature = transform.bound.feature
        vectors[feature.name] = vectors[feature.name].astype(pd.ArrowDtype(value_type(feature)))
        rows = newest_rows(self._prep_rows_to_write_for_ingestion(view, vectors))
        with self._writing():
            rows = self._not_older_than_stored(view, rows)
            if rows:
                self.online_write_batch(self.repo_config, view, rows, progress=None)
        logger.debug("%s: wrote the vectors of %d of %d pushed rows", view.name, len(rows), len(frame))

    def _views_over(self, raw: FeatureView) -> list[FeatureView]:
        """Our online views that read `raw`, as the registry has them now."""
        # Not from a cache: after a model change the old model's vectors must not reach the emptied table. And not
        # through list_feature_views, whose one-entry memo the pushing store and this provider would fight over.
        self._registry.refresh(self.repo_config.project)
        return [
            _view(proto.SerializeToString(deterministic=True))
            for proto in self._registry.proto().feature_views
            if proto.spec.project == self.repo_config.project
            and proto.spec.online
            and proto.spec.tags.get(SOURCE_TAG) == raw.name
        ]

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

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Held by one thread of this machine at a time.

        Nobody else pushes between a look at what is stored and the write that depends on it; and SQLite, which
        allows one writer, fails with "database is locked" when threads of several processes push at once.
        """
        folder = load_settings().cache_folder / "push"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(folder / f"{self.repo_config.project}.lock")
        with lock.acquire(poll_interval=_LOCK_POLL_SECONDS):
            yield


@functools.lru_cache(maxsize=256)
def _view(serialized: bytes) -> FeatureView:
    """The view of a registry message; building one takes Feast some milliseconds."""
    return FeatureView.from_proto(FeatureViewProto.FromString(serialized))


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
