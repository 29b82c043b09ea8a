"""Features in the terms of other libraries; each name imports its library when it is first asked for.

    expand_columns, collapse_columns       vectors as columns of a frame, for LightGBM and XGBoost
    FeatureTransformer                     scikit-learn
    RankerDataset, collate_rows            PyTorch
    FeatureEmbedder, FeatureEmbeddingProvider   Feast's own embedding interfaces
    add_feature, write_source              Hugging Face datasets
    observe_with_prometheus, observe_with_opentelemetry   what the runs of this process come to
    embedding_of_model                     a declaration for a model that is exported and has none

A library that is not installed raises `MissingExtraError`, which names the extra that has it.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "FeatureEmbedder": "feast_embedder",
    "FeatureEmbeddingProvider": "feast_embedder",
    "FeatureTransformer": "scikit_learn",
    "RankerDataset": "pytorch",
    "add_feature": "hugging_face",
    "collapse_columns": "columns",
    "collate_rows": "pytorch",
    "embedding_of_model": "computing",
    "expand_columns": "columns",
    "observe_with_opentelemetry": "tracing",
    "observe_with_prometheus": "prometheus",
    "write_source": "hugging_face",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULES)}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
