"""What Feast 0.67 gets wrong for a batch view with a transformation, mended.

Each mend names its place upstream, and `tests/integration/test_patches.py` fails when upstream no longer
needs it. The class `LLMBatchFeatureView` mends what Feast asks the view itself; four functions of Feast
are wrapped for the rest when `publish` is called, which happens in the process that runs ``feast apply``
or ``feast plan``. They act only on our views; serving and materializing run stock Feast.

    A  `feast plan` and `apply` crash once a transformation differs         diff/registry_diff.py:158
    B  a change of the transformation alone is not seen                     feature_view.py:374, 396
    C  the watermark survives a model change, so old and new vectors mix    infra/registry/registry.py:884
    D  the SQL registry forgets materialization intervals                   infra/registry/base_registry.py:1283
    E  a no-change apply resets the version number                          infra/registry/registry.py:680
    G  rows written by the old transformation are served by the new view    feature_store.py:1509, 1605

(F, reads refused while materializing, is a setting: ``registry.serve_features_while_materializing: true``.)
"""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import feast
from feast.batch_feature_view import BatchFeatureView
from feast.diff import registry_diff
from feast.diff.property_diff import PropertyDiff, TransitionType
from feast.feature_store import FeatureStore
from feast.feature_view import FeatureView
from feast.infra.registry.base_registry import BaseRegistry
from feast.protos.feast.core.FeatureView_pb2 import FeatureView as FeatureViewProto
from feast.stream_feature_view import StreamFeatureView

logger = logging.getLogger(__name__)

TESTED_FEAST = ("0.67",)
FINGERPRINT_TAG = "llmrec.fingerprint"
_MARK = "_llmrec_patched"


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
    """G, for the local provider with SQLite."""
    pairs = [(item.current_feast_object, item.new_feast_object) for item in diff.feast_object_diffs]
    result = original(store, diff, *args, **kwargs)
    _drop_stale_rows(store, pairs)
    return result


def _apply(original: Any, store: FeatureStore, objects: Any, *args: Any, **kwargs: Any) -> Any:
    """G, for every other store."""
    objects = objects if isinstance(objects, Iterable) else [objects]
    objects = list(objects)
    names = {item.name for item in objects if isinstance(item, LLMBatchFeatureView)}
    known = {view.name: view for view in store.list_batch_feature_views() if view.name in names} if names else {}
    result = original(store, objects, *args, **kwargs)
    _drop_stale_rows(store, [(known.get(getattr(item, "name", "")), item) for item in objects])
    return result


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
