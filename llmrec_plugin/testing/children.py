"""What checks do in processes of their own; each function is called by `llmrec_plugin.testing.child`."""

from __future__ import annotations

import json
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from llmrec_plugin.binding import BoundColumn, from_values
from llmrec_plugin.runtime.runner import runner_for
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import Feature, SimilarityFeature, from_spec, to_spec
from llmrec_plugin.testing.declarations import collect
from llmrec_plugin.testing.rows import Columns

ANY_ARTIFACT = "0" * 64


def loaded_by_plugin(place: str, watched: Sequence[str]) -> list[str]:
    """Those of the `watched` packages that a plugin loads when it is imported and its hooks are called."""
    before = set(sys.modules)
    collect(pkgutil.resolve_name(place), "plugin")
    return sorted(name for name in watched if name in set(sys.modules) - before)


def described_plugin(place: str) -> dict[str, str]:
    """What a plugin declares, by ``feature name`` or ``model name``, as text in which equal declarations are equal."""
    catalogue = collect(pkgutil.resolve_name(place), "plugin")
    features = {f"feature {name}": described_feature(item.declaration) for name, item in catalogue.features.items()}
    models = {f"model {name}": described_model(item.declaration) for name, item in catalogue.models.items()}
    return features | models


def described_feature(feature: Feature) -> str:
    """The declaration and its fingerprint for some artifact."""
    return json.dumps([to_spec(feature), fingerprint(feature)])


def described_model(model: Any) -> str:
    """The declaration of a model."""
    return json.dumps(to_spec(model), default=repr)


def fingerprint(feature: Feature) -> str:
    """The fingerprint that the feature has with some artifact."""
    if isinstance(feature, SimilarityFeature):
        return feature.fingerprint(ANY_ARTIFACT, ANY_ARTIFACT)
    return feature.fingerprint(ANY_ARTIFACT)


def described_spec(spec: dict[str, Any]) -> str:
    """The declaration that a registry would hold, rebuilt; see `described_feature`."""
    return described_feature(from_spec(spec))


def compute_bound(payload: str, columns: Columns, cache: str) -> tuple[list[Any], list[str]]:
    """Values and statuses of rows, with this process's runner and an empty cache.

    Args:
        payload: The bound declaration as JSON.
        columns: The rows.
        cache: Folder of the cache.
    """
    settings = replace(load_settings(), cache_folder=Path(cache), progress=False)
    bound = cast(BoundColumn, from_values(json.loads(payload)))
    computed = runner_for(settings).compute(bound, columns, "batch", quiet=True)
    return list(computed.values), ["ok" if status == "cached" else status for status in computed.statuses]
