"""Vectors of the training texts, kept beside the checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from tqdm import tqdm

from llmrec_plugin.runtime.encoder import Encoder


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
