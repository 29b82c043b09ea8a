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
_ONLINE_STORES = {
    "faiss": "it keeps vectors in memory only, and Feast cannot configure it",
    "milvus": "a vector search gives back the query instead of each hit's vector",
    "qdrant": "writing fails",
}


def unsuited_settings(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """For each setting of a ``feature_store.yaml`` that does not suit LLM features: what comes of it, and a remedy."""
    for section, types in _REPLACED.items():
        kind = _kind(configuration.get(section))
        if kind in types:
            replacement, reason = types[kind]
            yield f"{section} is {kind!r}, but with LLM features {reason}.", f"{section}: {{type: {replacement}, ...}}"
    store = configuration.get("online_store")
    kind = _kind(store)
    if kind in _ONLINE_STORES:
        yield f"online_store is {kind!r}, but {_ONLINE_STORES[kind]}.", "Use SQLite, Redis or PostgreSQL."
    if isinstance(store, dict) and store.get("key_ttl_seconds"):
        yield (
            f"online_store deletes rows {store['key_ttl_seconds']} seconds after they are written. Rows that do not "
            "change are not written again, so they become null.",
            "Remove key_ttl_seconds; ttl of a feature view says how old a served row may be.",
        )


def _kind(value: Any) -> Any:
    """The type that a section of the file names."""
    return value.get("type") if isinstance(value, dict) else value
