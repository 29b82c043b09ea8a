"""Texts for the tiny encoder, how its vectors are compared, and how its files are changed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from tiny import WORDS

from llmrec_plugin.artifacts import sha256_file
from llmrec_plugin.manifests import MANIFEST


def _random_texts(count: int) -> list[str]:
    choose = random.Random(0)
    return [" ".join(choose.choices(WORDS, k=choose.randint(0, 20))) for _ in range(count)]


TEXTS = _random_texts(300)


def check_same(got: np.ndarray, expected: np.ndarray) -> None:
    """The same (n, dims) float32 vectors but for rounding."""
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    cosines = np.sum(got * expected, axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.9999


def rehash(folder: Path, **changes: Any) -> None:
    """Makes the manifest agree with the files, as whoever replaced them would."""
    values = json.loads((folder / MANIFEST).read_text())
    values["files"] = {name: sha256_file(folder / name) for name in values["files"]}
    (folder / MANIFEST).write_text(json.dumps({**values, **changes}))
