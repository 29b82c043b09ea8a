"""No request may be answered by two versions of a model.

Feast looks up the views of a request one after another, and reads a SQL registry table by table, so a switch
that comes in between gives a request some views of the old version and some of the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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
    artifacts: dict[str, tuple[str, str]] = {}
    for view in [*stored.values(), *on_demand_views]:
        for bound in _bound_embeddings(view):
            name, model, artifact = bound["feature"]["name"], bound["feature"]["model"], bound["artifact"]
            source = stored.get(name)
            if source is not None and view is not source and bound["feature"]["entity"] is not None:
                _check_fingerprint(view, source, bound["fingerprint"])
            if _is_pinned(view):
                continue
            other, known = artifacts.setdefault(model, (view.name, artifact))
            if known != artifact:
                raise FingerprintMismatchError(
                    f"{other!r} and {view.name!r} use two exports of model {model!r} ({known[:16]} and "
                    f"{artifact[:16]}), whose vectors cannot be compared. If a rollout is under way, finish it with "
                    "`llmrec rollout promote`; until then ask for them in two requests. Else run `feast apply`."
                )


def _check_fingerprint(view: Any, source: Any, expected: str) -> None:
    found = source.tags[FINGERPRINT_TAG]
    if found != expected and view.tags["llmrec.kind"] == "similarity":
        raise FingerprintMismatchError(
            f"{view.name!r} compares vectors of {source.name!r} with fingerprint {expected[:16]}, but {found[:16]} is "
            "served. If a rollout is under way, it can be read after `llmrec rollout promote`. Else run `feast apply`."
        )


def _bound_embeddings(view: Any) -> Iterator[dict[str, Any]]:
    """The bound declaration of an embedding, or both of a similarity's; nothing for a view that is not ours."""
    payload = getattr(getattr(getattr(view, "feature_transformation", None), "udf", None), "payload", None)
    if payload is not None:
        bound = json.loads(payload)["bound"]
        yield from (bound["left"], bound["right"]) if "left" in bound else (bound,)


def _is_pinned(view: Any) -> bool:
    return view.projection.version_tag is not None
