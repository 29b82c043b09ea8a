"""Settings of ``feature_store.yaml`` with which Feast loses vectors of LLM features or computes them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_RAY = "llmrec_plugin.feast.ray"
_SPARK = "llmrec_plugin.feast.spark"
# section -> Feast's type -> the type to use, and why
_REPLACED = {
    "batch_engine": {
        "ray.engine": (f"{_RAY}.LLMRayComputeEngine", "it loses vectors, and errors of writes, without a word"),
    },
    "offline_store": {
        "ray": (f"{_RAY}.LLMRayOfflineStore", "it runs models over the whole source at every historical read"),
        "spark": (f"{_SPARK}.LLMSparkOfflineStore", "it cannot read training tables"),
    },
}


def unsuited_settings(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """For each setting of a ``feature_store.yaml`` that does not suit LLM features: what comes of it, and a remedy."""
    for section, types in _REPLACED.items():
        value = configuration.get(section)
        kind = value.get("type") if isinstance(value, dict) else value
        if kind in types:
            replacement, reason = types[kind]
            yield f"{section} is {kind!r}, but with LLM features {reason}.", f"{section}: {{type: {replacement}, ...}}"
