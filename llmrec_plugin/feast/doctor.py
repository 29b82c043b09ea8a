"""``llmrec doctor``: what in this feature repo loses data, stops serving or computes for nothing.

Each check names the trap and the line that mends it. The traps of Feast 0.67 that no setting mends are in
``docs/how-to/existing-feast-repo.md``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from feast import FeatureStore, FeatureView, FileSource, OnDemandFeatureView
from feast.feature_view import FeatureViewState
from feast.repo_config import BATCH_ENGINE_CLASS_FOR_TYPE

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import Bound, BoundColumn, BoundNetwork, BoundSimilarity, bind_by_name
from llmrec_plugin.diagnosis import Finding, Found, run_checks
from llmrec_plugin.errors import ArtifactError, FingerprintMismatchError, LLMRecError
from llmrec_plugin.feast.compatibility import unsuited_settings
from llmrec_plugin.feast.engine import LLMComputeEngine
from llmrec_plugin.feast.jobs import is_ours
from llmrec_plugin.feast.provider import LLMRecProvider
from llmrec_plugin.feast.usage import open_repo, transform_of
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import to_spec


def examine(repo: Path) -> list[Finding]:
    """Everything the checks find in the feature repo in `repo`, as it was last applied.

    Raises:
        InputError: There is no feature repo.
    """
    store = open_repo(repo)
    os.chdir(repo)  # relative paths start from the repo
    subject = _Subject(store, yaml.safe_load(Path("feature_store.yaml").read_text("utf-8")))
    return run_checks(_CHECKS, subject)


@dataclass(frozen=True)
class _Subject:
    store: FeatureStore
    configuration: dict[str, Any]

    @property
    def ours(self) -> list[FeatureView]:
        """Our batch views in the registry."""
        return [view for view in self.store.list_batch_feature_views() if is_ours(view)]

    @property
    def all_views(self) -> list[Any]:
        return [*self.store.list_batch_feature_views(), *self.store.list_on_demand_feature_views()]

    @property
    def applied(self) -> dict[str, Bound]:
        """Every feature of ours by the name of its view; one that cannot be read is left out, see `fingerprints`."""
        found = {}
        for view in self.all_views:
            transform = transform_of(view)
            with contextlib.suppress(FingerprintMismatchError):
                if transform:
                    found[view.name] = transform.bound
        return found

    @property
    def bound(self) -> dict[str, BoundColumn]:
        """Those of them that a model computes."""
        return {name: bound for name, bound in self.applied.items() if not isinstance(bound, BoundSimilarity)}

    @property
    def online_type(self) -> str:
        return str(self.store.config.online_store.type) if self.store.config.online_store else ""

    @property
    def engine_type(self) -> str:
        engine = self.configuration.get("batch_engine") or "local"
        return engine if isinstance(engine, str) else str(engine.get("type", "local"))

    @property
    def uses_our_engine(self) -> bool:
        if self.engine_type.startswith("llmrec_plugin.feast."):
            return True
        if self.engine_type in BATCH_ENGINE_CLASS_FOR_TYPE:  # to make one may start a cluster
            return False
        return isinstance(self.store._get_provider().batch_engine, LLMComputeEngine)


def reads_while_materializing(subject: _Subject) -> Found:
    registry = subject.store.config.registry
    known = "serve_features_while_materializing" in type(registry).model_fields  # since Feast 0.67
    if not known or not registry.serve_features_while_materializing:
        setting = "registry: {..., serve_features_while_materializing: true}"
        yield (
            "error",
            "Reads of a view are refused while it is materialized, and stay refused if that run is killed.",
            setting if known else f'pip install "feast~=0.67.0", and then {setting}',
        )
        for view in subject.ours:
            if view.state == FeatureViewState.MATERIALIZING:
                yield (
                    "error",
                    f"{view.name} is in state MATERIALIZING, so it is not served: a run is under way or was killed.",
                    f"Run it again, or: feast feature-views set-state {view.name} available_online",
                )


def compute_engine(subject: _Subject) -> Found:
    if subject.engine_type == "local":
        yield (
            "warning",
            "Feast's local engine computes a view in one piece: a failure loses the run, late rows are never found, "
            "memory grows with the table.",
            f"batch_engine: {{type: {LLMComputeEngine.__module__}.{LLMComputeEngine.__name__}}}",
        )


def engines_and_stores(subject: _Subject) -> Found:
    for found, fix in unsuited_settings(subject.configuration):
        yield "error", found, fix


def newest_rows_only(subject: _Subject) -> Found:
    if not subject.uses_our_engine and not subject.store.config.materialization_config.pull_latest_features:
        yield (
            "warning",
            "Every version of a row in the window is encoded, and only the newest is kept.",
            "materialization: {..., pull_latest_features: true}",
        )


def whole_tables(subject: _Subject) -> Found:
    if not subject.uses_our_engine and not subject.store.config.materialization_config.online_write_batch_size:
        yield (
            "error",
            "Without a batch size Feast's engines write only the first chunk of a table to the online store.",
            "materialization: {..., online_write_batch_size: 1000}",
        )


def async_reads(subject: _Subject) -> Found:
    if subject.online_type in ("redis", "dynamodb", "mongodb"):
        fix = "Run several workers: feast serve --workers N."
        if subject.online_type == "redis":
            fix = "online_store: {type: llmrec_plugin.feast.redis.LLMRecRedisOnlineStore, ...}"
        yield (
            "warning",
            f"On {subject.online_type}, Feast's server runs on-demand views on its event loop: one inference delays "
            "every other request.",
            fix,
        )


def server(subject: _Subject) -> Found:
    if any(isinstance(view, OnDemandFeatureView) and transform_of(view) for view in subject.all_views):
        if not Path("static_artifacts.py").is_file():
            yield (
                "note",
                "Each worker of `feast serve` loads its models at its first request.",
                "static_artifacts.py beside feature_store.yaml: from llmrec_plugin.feast import load_artifacts",
            )
        yield (
            "note",
            "By default `feast serve` replaces a worker every 1,000 requests, which loads the models again.",
            "feast serve --max-requests 0",
        )


def vector_search(subject: _Subject) -> Found:
    if subject.online_type == "sqlite":
        yield (
            "note",
            "Feast's SQLite store cannot search vectors on this Python.",
            "online_store: {type: llmrec_plugin.feast.sqlite.LLMRecSqliteOnlineStore, path: ...}, if you want to.",
        )


def rollouts(subject: _Subject) -> Found:
    if not subject.store.config.registry.enable_online_feature_view_versioning:
        yield (
            "note",
            "A new model empties its view at `feast apply`: reads give null until it is materialized.",
            "registry: {..., enable_online_feature_view_versioning: true}, to serve the old one until then.",
        )


def first_increment(subject: _Subject) -> Found:
    for view in subject.ours:
        raw = view.source_views[0]
        if not raw.ttl and raw.online:
            yield (
                "warning",
                f"View {raw.name} has no ttl: its first incremental run reaches back one year only.",
                f"ttl=timedelta(days=36_500) in {raw.name}, or a first `feast materialize START END`.",
            )


def never_applied(subject: _Subject) -> Found:
    if not any(map(transform_of, subject.all_views)):
        yield (
            "warning",
            "The registry has no view of this package: the repo was not applied, or no file of it calls publish.",
            "llm = publish(globals()) at the end of a file of the repo, then feast apply.",
        )


def never_materialized(subject: _Subject) -> Found:
    on_push = isinstance(subject.store._get_provider(), LLMRecProvider)
    for view in subject.ours:
        pushed = on_push and view.source_views[0].stream_source is not None
        if view.most_recent_end_time is None and not pushed:
            yield (
                "warning",
                f"{view.name} was never materialized, so every read gives null.",
                "feast materialize START END, with a START before the oldest row of the source.",
            )


def embedding_on_push(subject: _Subject) -> Found:
    for view in subject.ours:
        raw = view.source_views[0]
        if raw.stream_source is not None and not isinstance(subject.store._get_provider(), LLMRecProvider):
            yield (
                "warning",
                f"View {raw.name} has a push source: what is pushed to it has no vector until {view.name} is "
                "materialized.",
                f"provider: {LLMRecProvider.__module__}.{LLMRecProvider.__name__}",
            )


def future_watermarks(subject: _Subject) -> Found:
    now = datetime.now(UTC)
    for view in subject.ours:
        end = view.most_recent_end_time
        if end is not None and end > now:
            yield (
                "warning",
                f"{view.name} was materialized up to {end:%Y-%m-%d %H:%M}, which is in the future: Feast's next "
                "incremental run begins there.",
                "Never give an end in the future. With LLMComputeEngine the rows in between are found all the same.",
            )


def nanoseconds_on_spark(subject: _Subject) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if "spark" not in subject.engine_type:
        return
    for view in subject.ours:
        source = view.source_views[0].batch_source
        path = Path(source.path) if isinstance(source, FileSource) else None
        if path is None or not path.is_file():
            continue
        kind = pq.read_schema(path).field(source.timestamp_field).type
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            yield (
                "error",
                f"{path} holds timestamps in nanoseconds, which Spark cannot read.",
                'frame.to_parquet(..., coerce_timestamps="us")',
            )


def artifacts(subject: _Subject) -> Found:
    store = ArtifactStore(load_settings().artifact_folders)
    checked: dict[str, ArtifactError | None] = {}
    for view, bound in subject.bound.items():
        for model, artifact_id in bound.artifacts:
            if artifact_id not in checked:
                try:
                    store.find(model, artifact_id).verify()
                    checked[artifact_id] = None
                except ArtifactError as exc:
                    checked[artifact_id] = exc
        problem = next((checked[artifact_id] for _, artifact_id in bound.artifacts if checked[artifact_id]), None)
        if problem is not None:
            yield (
                "error",
                f"View {view} cannot be computed here: {problem}",
                "Copy or export the model; see the message.",
            )


def fingerprints(subject: _Subject) -> Found:
    for view in subject.all_views:
        transform = transform_of(view)
        if transform:
            try:
                transform.bound  # noqa: B018 - reading it checks it
            except FingerprintMismatchError as exc:
                yield "error", str(exc), "See the message."


def declarations(subject: _Subject) -> Found:
    settings = load_settings()
    catalogue, store = load_catalogue(settings.disabled_plugins), ArtifactStore(settings.artifact_folders)
    for bound in {bound.feature.name: bound for bound in subject.applied.values()}.values():
        name = bound.feature.name
        if name not in catalogue.features:  # the repo declares it
            continue
        try:
            now = bind_by_name(name, catalogue, store)
        except LLMRecError:  # publishing says what is wrong, and what is served is looked at by `artifacts`
            continue
        if isinstance(bound, BoundNetwork) and isinstance(now, BoundNetwork):
            now = replace(now, reads=bound.reads)  # only publishing knows them
        if now.fingerprint != bound.fingerprint:
            same = to_spec(bound.feature) == to_spec(now.feature)
            changed = (
                "another artifact of its model is current"
                if same
                else f"{catalogue.features[name].provenance} declares it otherwise"
            )
            yield (
                "warning",
                f"Feature {name} is applied with fingerprint {bound.fingerprint[:16]}, but {changed}: "
                f"{now.fingerprint[:16]}. What is served is the old one.",
                "feast apply, then materialize; or install and export what was applied.",
            )


_CHECKS: tuple[Callable[[_Subject], Found], ...] = (
    reads_while_materializing,
    compute_engine,
    engines_and_stores,
    newest_rows_only,
    whole_tables,
    async_reads,
    server,
    vector_search,
    rollouts,
    first_increment,
    never_applied,
    never_materialized,
    embedding_on_push,
    future_watermarks,
    nanoseconds_on_spark,
    artifacts,
    fingerprints,
    declarations,
)
