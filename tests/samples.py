"""Declarations and settings that tests start from; each takes changes by field name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmrec_plugin.binding import BoundFeature
from llmrec_plugin.settings import Settings
from llmrec_plugin.specs import EmbeddingFeature, EncoderModel, HistoryEmbeddingFeature, SimilarityFeature, TextFeature

_ENCODED: dict[str, Any] = {
    "model": "tiny",
    "pooling": "mean",
    "normalize": True,
    "prefix": "",
    "metric": "cosine",
    "max_tokens": 16,
    "dims": 8,
}


def embedding(**changes: Any) -> EmbeddingFeature:
    """One vector per item, from the template ``{title}``."""
    return EmbeddingFeature(
        **{"name": "item_title_embedding", "entity": "item", "text": "{title}", **_ENCODED, **changes}
    )


def query(**changes: Any) -> EmbeddingFeature:
    """One vector per request, from the template ``{query}``."""
    return embedding(**{"name": "query_text_embedding", "entity": None, "text": "{query}", **changes})


def history(**changes: Any) -> HistoryEmbeddingFeature:
    """One vector per user, the mean of the last three events, newest first."""
    return HistoryEmbeddingFeature(
        **{
            "name": "user_history_embedding",
            "entity": "user",
            "events": "events",
            "order": "newest_first",
            "last_n": 3,
            **_ENCODED,
            **changes,
        }
    )


def match(**changes: Any) -> SimilarityFeature:
    """The cosine of query and item."""
    return SimilarityFeature(
        **{
            "name": "query_item_similarity",
            "left": "query_text_embedding",
            "right": "item_title_embedding",
            "metric": "cosine",
            **changes,
        }
    )


def model(**changes: Any) -> EncoderModel:
    """A model declaration; nothing lies at its source."""
    return EncoderModel(
        **{
            "name": "tiny",
            "source": "path:weights",
            "pooling": "mean",
            "normalize": True,
            "dims": 8,
            "max_tokens": 16,
            "metric": "cosine",
            **changes,
        }
    )


def bound(feature: TextFeature, artifact_id: str = "a" * 64) -> BoundFeature:
    """The feature with an artifact that no machine holds, unless told which."""
    return BoundFeature(feature, artifact_id)


def settings(folder: Path, **changes: Any) -> Settings:
    """Artifacts and cache below `folder`, on two threads of the CPU, without progress bars."""
    return Settings(
        **{
            "artifact_folders": (folder / "artifacts",),
            "cache_folder": folder / "cache",
            "training_folder": folder / "cache" / "training",
            "cache_max_bytes": 2**20,
            "device": "cpu",
            "runtime": "auto",
            "generator": "auto",
            "threads": 2,
            "disabled_plugins": frozenset(),
            "progress": False,
            **changes,
        }
    )
