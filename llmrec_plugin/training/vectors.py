"""Vectors of the training texts, kept beside the checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.settings import load_settings


def stored_vectors(encoder: Encoder, texts: Sequence[str], folder: Path, *, progress: bool = True) -> np.ndarray:
    """The vectors of `texts`, (n, dims) float32, computed unless the folder holds them."""
    key = sha256("\n".join((encoder.artifact.id, *texts)).encode("utf-8", "replace")).hexdigest()[:16]
    path = folder / f"vectors-{key}.npy"
    if path.is_file():
        return np.asarray(np.load(path, allow_pickle=False))
    step = encoder.texts_per_call
    starts = tqdm(range(0, len(texts), step), desc="encoding", disable=not progress)
    vectors = np.concatenate([encoder.encode(texts[start : start + step])[0] for start in starts])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(path, vectors)
    return vectors


@dataclass(frozen=True, kw_only=True)
class FrozenEncoder:
    """An exported encoder as training reads texts with it; the vectors it gave are kept in a folder.

    Attributes:
        name: Of the model.
        artifact: Its id, 64 hex digits.
        encode: From n texts to their vectors, (n, dims) float32.
    """

    name: str
    artifact: str
    encode: Callable[[Sequence[str]], np.ndarray]


def frozen_encoder(model: str, folder: Path, *, progress: bool = True) -> FrozenEncoder:
    """The exported encoder of this name.

    Args:
        model: Name of an encoder that was exported.
        folder: Where vectors are kept.
        progress: Whether to show a bar.

    Raises:
        ArtifactNotFoundError: It was not exported.
    """
    settings = load_settings()
    encoder = Encoder(ArtifactStore(settings.artifact_folders).current(model), settings)
    return FrozenEncoder(
        name=model,
        artifact=encoder.artifact.id,
        encode=lambda texts: stored_vectors(encoder, texts, folder, progress=progress),
    )
