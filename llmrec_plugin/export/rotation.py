"""PCA as a rotation of the finished vectors, so that a prefix of them is the best of its length.

Truncating a vector (``reduction="prefix"``) suits models trained for it (Matryoshka, Kusupati et al. 2022). Others
spread their information over all components; turned onto the principal axes of their own vectors, they lose less. An
orthogonal matrix changes no dot product, cosine or distance of whole vectors, so nothing is lost before truncation.
"""

from __future__ import annotations

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.export.parity import Run


def principal_axes(vectors: np.ndarray) -> np.ndarray:
    """The axes along which `vectors` are longest, from most to least, as the columns of an orthogonal matrix.

    Not centered: similarities are taken from the origin. The largest entry of each axis is positive, so that equal
    vectors give equal axes.

    Args:
        vectors: (n, dims) float32.

    Returns:
        (dims, dims) float32.

    Raises:
        InputError: There are fewer vectors than dims.
    """
    count, dims = vectors.shape
    if count < dims:
        raise InputError(
            f"rotation='pca' needs at least as many calibration texts as dims, expected {dims}, got {count}. "
            "Give more texts (--texts FILE; every second one calibrates)."
        )
    axes = np.linalg.svd(vectors.astype(np.float64), full_matrices=False)[2].T
    largest = axes[np.abs(axes).argmax(0), np.arange(dims)]
    return np.asarray(axes * np.where(largest < 0, -1.0, 1.0), dtype=np.float32)


def rotated(run: Run, axes: np.ndarray | None) -> Run:
    """`run` with its vectors multiplied by `axes`; `run` itself where there are none."""
    return run if axes is None else lambda inputs: np.asarray(run(inputs) @ axes)
