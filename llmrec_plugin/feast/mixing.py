"""No request may be answered by two versions of a model.

Feast looks up the views of a request one after another, and reads a SQL registry table by table, so a switch
that comes in between gives a request some views of the old version and some of the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from llmrec_plugin.errors import FingerprintMismatchError
from llmrec_plugin.feast.versions import FINGERPRINT_TAG


def check_one_version(views: Iterable[Any], on_demand_views: Iterable[Any]) -> None:
    """Raises unless the views of one request belong together; views asked for by version are left out.

    Raises:
        FingerprintMismatchError: A similarity is to be computed from vectors of another version than its own,
            or two views hold vectors of two exports of one model.
    """
    stored = {view.name: view for view in views if FINGERPRINT_TAG in view.tags and not _is_pinned(view)}
    exports: dict[str, tuple[str, str]] = {}
    for view in (*stored.values(), *on_demand_views):
        sides = _sides(view)
        for side in sides:
            if side["feature"]["entity"] is not None:
                _check_read(view, side["fingerprint"], stored.get(side["feature"]["name"]))
        for name, fingerprint in _reads(view).items():
            _check_read(view, fingerprint, stored.get(name))
        if _is_pinned(view):
            continue
        used = [(side["feature"]["model"], side["artifact"]) for side in sides]
        if not used and "llmrec.artifact" in view.tags:
            used = [(view.tags["llmrec.model"], view.tags["llmrec.artifact"])]
        for model, artifact in used:
            other, known = exports.setdefault(model, (view.name, artifact))
            if known != artifact:
                raise FingerprintMismatchError(
                    f"{other!r} and {view.name!r} use two exports of model {model!r} ({known[:16]} and "
                    f"{artifact[:16]}), whose vectors cannot be compared. If a rollout is under way, finish it with "
                    "`llmrec rollout promote`; until then ask for them in two requests. Else run `feast apply`."
                )


def _reads(view: Any) -> dict[str, str]:
    """Name -> fingerprint of the stored features that a network reads at request time; nothing for any other view."""
    if view.tags.get("llmrec.kind") != "network" or not hasattr(view.feature_transformation.udf, "payload"):
        return {}
    reads: dict[str, str] = json.loads(view.feature_transformation.udf.payload)["bound"].get("reads", {})
    return reads


def _sides(view: Any) -> list[dict[str, Any]]:
    """Both bound declarations of a similarity; nothing for any other view."""
    if view.tags.get("llmrec.kind") != "similarity":
        return []
    bound = json.loads(view.feature_transformation.udf.payload)["bound"]
    return [bound["left"], bound["right"]]


def _check_read(view: Any, fingerprint: str, source: Any) -> None:
    if source is None or fingerprint == source.tags[FINGERPRINT_TAG]:
        return
    raise FingerprintMismatchError(
        f"{view.name!r} reads values of {source.name!r} with fingerprint {fingerprint[:16]}, but "
        f"{source.tags[FINGERPRINT_TAG][:16]} is served. If a rollout is under way, it can be read after "
        "`llmrec rollout promote`. Else run `feast apply`."
    )


def _is_pinned(view: Any) -> bool:
    return view.projection.version_tag is not None
