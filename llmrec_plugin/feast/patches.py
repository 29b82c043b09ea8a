"""What Feast 0.65 to 0.67 get wrong for a batch view with a transformation, mended.

Each mend names its place upstream, and `tests/integration/test_patches.py` fails when upstream no longer
needs it. The class `LLMBatchFeatureView` mends what Feast asks the view itself; functions of Feast are
wrapped for the rest when `llmrec_plugin.feast` is imported. A feature repo does that, and so does Feast,
in every process that reads a stored view of ours, to rebuild its training source. The wrappers act only on
our views.

    A  `feast plan` and `apply` crash once a transformation differs         diff/registry_diff.py:158
    B  a change of the transformation alone is not seen                     feature_view.py:374, 396
    C  the watermark survives a model change, so old and new vectors mix    infra/registry/registry.py:884
    D  the SQL registry forgets materialization intervals                   infra/registry/base_registry.py:1283
    E  a no-change apply resets the version number                          infra/registry/registry.py:680
    G  rows written by the old transformation are served by the new view    feature_store.py:1509, 1605
    H  a version is not kept beside the served one, but half of it served   infra/registry/registry.py:749, sql.py:855
    I  materializing a version moves the watermark of the served one        infra/registry/registry.py:1026
    J  a registry file can be read half written                             infra/registry/file.py:41
    K  on-demand views and feature services read the table of version 0     batch_feature_view.py:165
    L  a switch between two look-ups mixes versions in one request          utils.py:1395; infra/registry/sql.py:1519
    M  a server whose registry was away once does not look at it again      feature_server.py:605
    N  a source is not asked before it is read (Feast 0.65 only)            infra/offline_stores/dask.py:984
    O  workers of a server share a connection to a SQL registry             vector_store_utils.py:39

(F, reads refused while materializing, is a setting: ``registry.serve_features_while_materializing: true``. Feast before
0.67 does not have it.)
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import logging
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import feast
from feast import utils
from feast.batch_feature_view import BatchFeatureView
from feast.data_source import DataSource
from feast.diff import registry_diff
from feast.diff.property_diff import PropertyDiff, TransitionType
from feast.feature_store import FeatureStore
from feast.feature_view import FeatureView
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.registry.file import FileRegistryStore
from feast.infra.registry.registry import Registry
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.stream_feature_view import StreamFeatureView

from llmrec_plugin.errors import FingerprintMismatchError
from llmrec_plugin.feast.mixing import check_one_version
from llmrec_plugin.feast.rollouts import check_supported, declare, fill_command, materialized, take_back
from llmrec_plugin.feast.training import TrainingSource
from llmrec_plugin.feast.versions import FINGERPRINT_TAG, NOTES, can_edit, check_kept, edit, kept_by, locked

logger = logging.getLogger(__name__)

TESTED_FEAST = ("0.65", "0.66", "0.67")
_MARK = "_llmrec_patched"
_OF_PARENTS: list[Any] = []


class LLMBatchFeatureView(BatchFeatureView):
    """A batch view that knows when its transformation changed (A, B, C, E)."""

    @classmethod
    def from_proto(cls, feature_view_proto: FeatureViewProto, skip_udf: bool = False) -> FeatureView:
        # The registry calls type(view).from_proto for the stored object, which is a stock BatchFeatureView.
        return FeatureView.from_proto(feature_view_proto, skip_udf=skip_udf)

    def _udf_differs(self, other: object) -> bool:
        return _udf_text(self) != _udf_text(other)

    def _schema_or_udf_changed(self, other: Any) -> bool:
        changed = super()._schema_or_udf_changed(other) or self._udf_differs(other)
        self._forget_intervals = self._udf_differs(other)
        if not changed:
            self.current_version_number = other.current_version_number
        return changed

    def update_materialization_intervals(self, existing_materialization_intervals: list[Any]) -> None:
        if not getattr(self, "_forget_intervals", False):
            super().update_materialization_intervals(existing_materialization_intervals)

    def __eq__(self, other: object) -> bool:
        # Compared against a stock view, a subclass is asked first; the SQL registry relies on that, too.
        self._forget_intervals = isinstance(other, FeatureView) and self._udf_differs(other)
        return bool(super().__eq__(other)) and not self._udf_differs(other)

    __hash__ = BatchFeatureView.__hash__


def apply_patches() -> None:
    """Wraps Feast's functions, once per process; warns under a Feast version that was not tested."""
    if not feast.__version__.startswith(tuple(f"{version}." for version in TESTED_FEAST)):
        warnings.warn(
            f"llmrec-plugin's corrections of Feast were tested with {', '.join(TESTED_FEAST)}.x, this is "
            f"{feast.__version__}. Install a tested version if `feast apply` misbehaves.",
            RuntimeWarning,
            stacklevel=2,
        )
    _wrap(registry_diff, "diff_registry_objects", _diff_registry_objects)
    _wrap(BaseRegistry, "deserialize_registry_values", _deserialize_registry_values, static=True)
    _wrap(FeatureStore, "_apply_diffs", _apply_diffs)
    _wrap(FeatureStore, "apply", _apply)
    _wrap(FeatureStore, "refresh_registry", _refresh_registry)
    for registry in _registries():
        _wrap(registry, "apply_feature_view", _apply_feature_view)
        _wrap(registry, "apply_materialization", _apply_materialization)
    if importlib.util.find_spec("feast.vector_store_utils"):  # since Feast 0.67
        from feast.vector_store_utils import VectorStoreRegistry

        _wrap(VectorStoreRegistry, "refresh", _refresh_registry)
    if not hasattr(DataSource, "resolve_credentials"):  # before Feast 0.66
        from feast.infra.offline_stores import dask

        _wrap(dask, "_read_datasource", _read_data_source)
        if importlib.util.find_spec("ibis"):
            from feast.infra.offline_stores import duckdb

            _wrap(duckdb, "_read_data_source", _read_data_source)
    _wrap(BatchFeatureView, "__copy__", _copy_view)
    _wrap(FileRegistryStore, "_write_registry", _write_registry)
    _wrap(utils, "_group_feature_refs", _group_feature_refs)
    _wrap(utils, "_get_entity_maps", _get_entity_maps)
    _wrap(utils, "_get_online_request_context", _get_online_request_context)


def _registries() -> Iterator[type[BaseRegistry]]:
    yield Registry
    if importlib.util.find_spec("sqlalchemy"):
        from feast.infra.registry.sql import SqlRegistry

        yield SqlRegistry


def _wrap(owner: Any, name: str, wrapper: Any, *, static: bool = False) -> None:
    original = getattr(owner, name)
    if getattr(original, _MARK, False):
        return
    wrapped = functools.wraps(original)(functools.partial(wrapper, original))
    if not static:
        wrapped = _as_function(wrapped, original)
    setattr(wrapped, _MARK, True)
    setattr(owner, name, staticmethod(wrapped) if static else wrapped)


def _as_function(partial: Any, original: Any) -> Any:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:  # a partial is not bound to an instance, a function is
        return partial(*args, **kwargs)

    return function


def _udf_text(view: object) -> str | None:
    return getattr(getattr(view, "feature_transformation", None), "udf_string", None)


def _diff_registry_objects(original: Any, current: Any, new: Any, object_type: Any) -> Any:
    """A: compares a batch view's transformation by its text; the original looks for a field it does not have."""
    _keep_notes(current, new)
    if not isinstance(new, LLMBatchFeatureView):
        return original(current, new, object_type)
    changes = [] if current == new else list(_changes(current, new))
    return registry_diff.FeastObjectDiff(
        name=new.name,
        feast_object_type=object_type,
        current_feast_object=current,
        new_feast_object=new,
        feast_object_property_diffs=changes,
        transition_type=TransitionType.UPDATE if changes else TransitionType.UNCHANGED,
    )


def _keep_notes(current: Any, new: Any) -> None:
    """Notes belong to the registry; a feature repo does not know them."""
    tags = getattr(current, "tags", None) or {}
    if FINGERPRINT_TAG in tags and tags[FINGERPRINT_TAG] == new.tags.get(FINGERPRINT_TAG):
        new.tags.update({note: tags[note] for note in NOTES if note in tags})


def _changes(current: FeatureView, new: LLMBatchFeatureView) -> Iterator[PropertyDiff]:
    """What ``feast plan`` shows; a changed declaration as the values that changed, not as two JSON texts."""
    before, after = current.to_proto().spec, new.to_proto().spec
    declared_anew = new._udf_differs(current)
    if declared_anew:
        old_values, new_values = (_declaration(view) for view in (current, new))
        for name in sorted(old_values.keys() | new_values.keys()):
            if old_values.get(name) != new_values.get(name):
                yield PropertyDiff(f"declaration.{name}", str(old_values.get(name)), str(new_values.get(name)))
    for field in before.DESCRIPTOR.fields:
        if field.name in (*registry_diff.FIELDS_TO_IGNORE, "feature_transformation"):
            continue
        if field.name in ("batch_source", "source_views"):
            # Compared as objects, since the messages hold the time at which each was built; and the training
            # source repeats the declaration.
            same = declared_anew or getattr(current, field.name) == getattr(new, field.name)
        else:
            same = getattr(before, field.name) == getattr(after, field.name)
        if not same:
            yield PropertyDiff(field.name, getattr(before, field.name), getattr(after, field.name))


def _declaration(view: FeatureView) -> dict[str, Any]:
    """The bound declaration behind a view as flat data; empty for a view that is not ours."""
    payload = getattr(view.feature_transformation.udf, "payload", None) if _udf_text(view) else None
    if payload is None:
        return {}
    bound = json.loads(payload)["bound"]
    return {**bound["feature"], "artifact": bound["artifact"], "fingerprint": bound["fingerprint"]}


def _deserialize_registry_values(original: Any, serialized_proto: bytes, feast_obj_type: type) -> Any:
    """D: batch views are stored as feature views."""
    result = original(serialized_proto, feast_obj_type)
    is_view = issubclass(feast_obj_type, FeatureView) and not issubclass(feast_obj_type, StreamFeatureView)
    return FeatureViewProto.FromString(serialized_proto) if result is None and is_view else result


def _apply_diffs(original: Any, store: FeatureStore, diff: Any, *args: Any, **kwargs: Any) -> Any:
    """G and H, for the local provider with SQLite."""
    pairs = [(item.current_feast_object, item.new_feast_object) for item in diff.feast_object_diffs]
    _check_versions(store, [new for _, new in pairs])
    with locked(store.registry):
        result = original(store, diff, *args, **kwargs)
    _after_apply(store, pairs)
    return result


def _apply(original: Any, store: FeatureStore, objects: Any, *args: Any, **kwargs: Any) -> Any:
    """G and H, for every other store."""
    objects = objects if isinstance(objects, Iterable) else [objects]
    objects = list(objects)
    _check_versions(store, objects)
    names = {item.name for item in objects if isinstance(item, LLMBatchFeatureView)}
    known = {view.name: view for view in store.list_batch_feature_views() if view.name in names} if names else {}
    with locked(store.registry):
        result = original(store, objects, *args, **kwargs)
    _after_apply(store, [(known.get(getattr(item, "name", "")), item) for item in objects])
    return result


def _refresh_registry(original: Any, owner: Any, *args: Any, **kwargs: Any) -> None:
    """M: the server sets its next timer after this, so an error in the timer's thread would be the last refresh."""
    try:
        original(owner, *args, **kwargs)
    except Exception as exc:
        if not isinstance(threading.current_thread(), threading.Timer):
            raise
        logger.warning("The registry cannot be read (%s: %s); what was read before is served.", type(exc).__name__, exc)


def open_own_connections(store: FeatureStore | None) -> None:
    """O: lets a forked process connect to its SQL registry anew; called by `llmrec_plugin.feast.load_artifacts`.

    The server reads the registry before it forks. Of two workers that talk over one connection, each may get the
    other's answer, e.g. that there are no feature views.
    """
    registry = getattr(store, "_registry", None)
    for engine in {getattr(registry, name, None) for name in ("read_engine", "write_engine")}:
        if engine is None:  # no SQL registry, or not read yet
            continue
        _OF_PARENTS.append(engine.pool)  # a driver may take its leave of the database when a connection is deleted
        engine.dispose(close=False)


def _check_versions(store: FeatureStore, objects: Iterable[Any]) -> None:
    """H: refuses a store that would keep the rows of two versions in one table, and to forget versions."""
    names = {item.name for item in objects if isinstance(item, LLMBatchFeatureView)}
    if names and kept_by(store.registry):
        check_supported(store)
    elif names:
        check_kept(store.registry, [view for view in store.list_batch_feature_views() if view.name in names])


def _after_apply(store: FeatureStore, pairs: list[tuple[Any, Any]]) -> None:
    if kept_by(store.registry):
        ours = [new for _, new in pairs if FINGERPRINT_TAG in (getattr(new, "tags", None) or {})]
        _prepare_versions(store, [view for view in ours if _is_from_repo(view)])
    else:
        _drop_stale_rows(store, pairs)


def _prepare_versions(store: FeatureStore, views: list[Any]) -> None:
    """H: makes the online tables of served and waiting versions, and says what to do next."""
    declared = {view.name: view.tags[FINGERPRINT_TAG] for view in views}
    book = edit(store.registry, store.project, lambda book: take_back(book, declared)) if views else {}
    waiting = [name for name, versions in book.items() if versions.candidate is not None]
    stored = [name for name in declared if book[name].kind == "feature_view"]
    tables = [
        book[name].view(number) for name in stored for number in (book[name].number, book[name].candidate)
        if number is not None
    ]  # fmt: skip
    nothing: dict[str, Any] = {"entities_to_delete": [], "entities_to_keep": [], "partial": True}
    if tables:
        online_store = store._get_provider().online_store
        online_store.update(store.config, tables_to_delete=[], tables_to_keep=tables, **nothing)
    if waiting:
        commands = [fill_command(name, book[name].candidate or 0) for name in stored if name in waiting]
        logger.warning(
            "A rollout is under way: %s. The old versions are served until `llmrec rollout promote`. First run:%s",
            ", ".join(f"{name} v{book[name].number} -> v{book[name].candidate}" for name in waiting),
            "".join(f"\n    {command}" for command in [*commands, "llmrec rollout status"]),
        )  # fmt: skip


def _drop_stale_rows(store: FeatureStore, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Empties the online table of each of our views whose active fingerprint changed."""
    for old, new in pairs:
        if old is None or not isinstance(new, LLMBatchFeatureView):
            continue
        before, after = old.tags.get(FINGERPRINT_TAG), new.tags[FINGERPRINT_TAG]
        active = store.registry.get_feature_view(new.name, store.project).tags.get(FINGERPRINT_TAG)
        if before == after or active != after:  # `feast apply --no-promote` leaves the old one active
            continue
        online_store = store._get_provider().online_store
        nothing: dict[str, Any] = {"entities_to_delete": [], "entities_to_keep": [], "partial": True}
        online_store.update(store.config, tables_to_delete=[old], tables_to_keep=[], **nothing)
        if getattr(store.config.online_store, "full_scan_for_deletion", True) is False:
            online_store.delete_table(store.config, old)  # type: ignore[attr-defined]  # Redis, told to keep such rows
        online_store.update(store.config, tables_to_delete=[], tables_to_keep=[new], **nothing)
        logger.warning(
            "%s: fingerprint changed from %s to %s. The stored vectors of the old one were removed, reads give null "
            "until `feast materialize` or `feast materialize-incremental` has run.",
            new.name, (before or "none")[:16], after[:16],
        )  # fmt: skip


def _apply_feature_view(
    original: Any, registry: Any, view: Any, project: str, commit: bool = True, no_promote: bool = False
) -> None:
    """H: a version is a fingerprint, and only a promotion changes which one is served.

    Feast serves each change at once, from an empty table; its SQL registry does so under ``--no-promote``, too.
    And what it writes back while it materializes (a state) overwrites parts of whatever is served by then.
    """
    number = None
    if kept_by(registry) and FINGERPRINT_TAG in view.tags:
        view.ensure_valid()
        if isinstance(registry, Registry):
            registry._prepare_registry_for_changes(project)
        declared = view.to_proto()
        declared.spec.project = project
        declared.meta.last_updated_timestamp.FromDatetime(utils._utc_now())
        number = edit(
            registry, project, lambda book: declare(book, declared, from_repo=_is_from_repo(view)), commit=commit
        )
    if number is None:
        original(registry, view, project, commit, no_promote)
    else:
        view.current_version_number = number


def _is_from_repo(view: Any) -> bool:
    """Whether a feature repo made the view; what Feast reads from the registry has Feast's own classes."""
    return any(type(part).__module__.startswith("llmrec_plugin.") for part in (view, view.feature_transformation))


def _apply_materialization(
    original: Any, registry: Any, view: Any, project: str, start: datetime, end: datetime, commit: bool = True
) -> None:
    """I: the rows belong to the version that was read when the run began; Feast looks at the name only."""
    if FINGERPRINT_TAG not in view.tags or not can_edit(registry):
        original(registry, view, project, start, end, commit)
        return
    of = view.tags[FINGERPRINT_TAG]
    edit(registry, project, lambda book: materialized(book, view.name, of, start, end), commit=commit)


def _write_registry(original: Any, store: FileRegistryStore, registry: Any) -> None:
    """J: writes beside the file and moves it there, since Feast reads the file whenever it has changed."""
    target = store._filepath.resolve()
    beside = copy.copy(store)
    beside._filepath = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        original(beside, registry)
        os.replace(beside._filepath, target)
    finally:
        beside._filepath.unlink(missing_ok=True)


def _read_data_source(original: Any, source: DataSource, *args: Any, **kwargs: Any) -> Any:
    """N: brings a training table up to date, which `resolve_credentials` does for newer versions of Feast."""
    if isinstance(source, TrainingSource):
        source.before_read()
    return original(source, *args, **kwargs)


def _copy_view(original: Any, view: BatchFeatureView) -> BatchFeatureView:
    """K: a copy with another projection is of the same version; Feast forgets which. Before 0.67 it forgets the
    transformation, too."""
    made = original(view)
    if FINGERPRINT_TAG in view.tags:
        made.current_version_number = view.current_version_number
        made.feature_transformation = view.feature_transformation
    return made


def _group_feature_refs(original: Any, features: Any, views: Any, on_demand_views: Any) -> Any:
    """L: refuses a request whose views do not belong together."""
    check_one_version(views, on_demand_views)
    return original(features, views, on_demand_views)


def _get_online_request_context(original: Any, registry: Any, project: str, *args: Any, **kwargs: Any) -> Any:
    """L: looks the views up again, once, if a switch came in between."""
    try:
        return original(registry, project, *args, **kwargs)
    except FingerprintMismatchError:
        registry.refresh(project)
        return original(registry, project, *args, **kwargs)


def _get_entity_maps(original: Any, registry: Any, project: str, views: Any) -> Any:
    """L: refuses rows of another version than the registry says. Called in every online request; this one and
    `_group_feature_refs` come late enough that the mends hold in the first request of a process, too."""
    check_kept(registry, views)
    return original(registry, project, views)
