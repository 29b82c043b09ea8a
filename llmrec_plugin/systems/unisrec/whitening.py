"""The variant without training: item texts' vectors, whitened; a user is the mean of the last items.

Vectors of a text encoder lie in a narrow cone: all are alike, and cosines say little. **Whitening** moves their mean to
zero and their covariance to the identity. **PCA whitening** turns to the principal axes and may keep the first of them
(Su et al., "Whitening Sentence Representations for Better Semantics and Faster Retrieval", 2021); **ZCA whitening**
stays as near to the given axes as it can (Kessy, Lewin, Strimmer, "Optimal Whitening and Decorrelation", 2018).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import Dataset
from llmrec_plugin.systems.sequences import Score, fingerprint, measured, quality_of
from llmrec_plugin.systems.trained import write_trained
from llmrec_plugin.systems.unisrec.catalogue import Encode, read_catalogue

EXAMPLES = 16
SMALLEST = 1e-5
"""Share of the largest variance below which an axis is no signal but rounding; it is not blown up."""

_log = logging.getLogger(__name__)


def fit_whitening(vectors: np.ndarray, dims: int, kind: Literal["pca", "zca"] = "pca") -> tuple[np.ndarray, np.ndarray]:
    """Mean and matrix, so that ``(x - mean) @ matrix`` has about the covariance 1.

    Args:
        vectors: (n, width) float32.
        dims: Components that come out; of ``zca`` all.
        kind: See the module.

    Returns:
        (width,) and (width, dims) float32.

    Raises:
        InputError: There are too few vectors, or `dims` does not fit.
    """
    count, width = vectors.shape
    if not 1 <= dims <= width or (kind == "zca" and dims != width) or count < 2:
        raise InputError(
            f"whitening: expected two vectors or more and 1 to {width} dims ({width} for zca), got {count} vectors and "
            f"{dims} dims."
        )
    exact = vectors.astype(np.float64)
    mean = exact.mean(0)
    variances, axes = np.linalg.eigh(np.cov(exact - mean, rowvar=False).reshape(width, width))
    variances, axes = variances[::-1][:dims], axes[:, ::-1][:, :dims]
    axes = axes * np.where(axes[np.abs(axes).argmax(0), np.arange(dims)] < 0, -1.0, 1.0)  # signs are free: one choice
    scale = 1 / np.sqrt(np.maximum(variances, SMALLEST * max(variances[0], np.finfo(np.float32).tiny)))
    matrix = axes * scale
    return mean.astype(np.float32), (matrix @ axes.T if kind == "zca" else matrix).astype(np.float32)


def train_whitening(
    dataset: Dataset,
    encode: Encode,
    output: Path,
    *,
    template: str,
    encoder: Mapping[str, str],
    kind: Literal["pca", "zca"] = "pca",
    dims: int | None = None,
    max_length: int = 10,
    split: str = "data",
    exclude_seen: bool = True,
    evaluated: int = 20_000,
    seed: int = 0,
    report: Callable[[str], None] = _log.info,
) -> dict[str, Any]:
    """Fits on all item texts, measures by full ranking, and writes the folder that the plugin's exports read.

    Args:
        dataset: Items with texts, and interactions to measure with.
        encode: The frozen text encoder.
        output: Folder to write.
        template: Text over the item's columns.
        encoder: Name and artifact of the encoder, for the record.
        kind: ``pca`` or ``zca``.
        dims: Components that are kept; default: 64 for ``pca`` or fewer if the encoder has fewer, all for ``zca``.
        max_length: Events of a history that are averaged.
        split: ``data`` or ``leave-one-out``.
        exclude_seen: Whether items of the history are not ranked.
        evaluated: Test events at most.
        seed: Of what is drawn.
        report: Called with one line of progress at a time.

    Returns:
        What ``quality.json`` holds; the baselines include the vectors without whitening.

    Raises:
        InputError: There are too few texts or events, or `dims` does not fit.
    """
    catalogue = read_catalogue(dataset, encode, template, split=split, seed=seed)
    sequences, vectors = catalogue.sequences, catalogue.vectors
    width = vectors.shape[1]
    mean, matrix = fit_whitening(vectors, dims or (width if kind == "zca" else min(64, width)), kind)
    table = _unit((vectors - mean) @ matrix)
    report(f"{len(vectors)} texts, {width} to {matrix.shape[1]} dims, {len(sequences.test.targets)} test events")
    ranking: dict[str, Any] = {"exclude_seen": exclude_seen, "evaluated": evaluated, "seed": seed}
    quality = {
        "system": "whitening",
        "kind": kind,
        "split": split,
        **quality_of(mean_scorer(table, max_length), sequences, **ranking),
    }
    asked = sequences.test.sample(evaluated, seed)
    plain = measured(mean_scorer(_unit(vectors), max_length), asked, exclude_seen=exclude_seen)
    quality["baselines"]["no whitening"] = plain
    config = {"system": "whitening", "kind": kind, "dims": matrix.shape[1], "max_length": max_length}
    config |= {"text_dims": width, "encoder": dict(encoder), "template": template, "data": fingerprint(sequences)}
    arrays = {"mean": mean, "matrix": matrix, "catalogue.table": table, "catalogue.texts": vectors[:EXAMPLES]}
    weights = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
    write_trained(output, config, sequences.items, weights, quality)
    return quality


def mean_scorer(table: np.ndarray, max_length: int) -> Score:
    """A function from histories to the cosine of the mean of their items' vectors with every item's vector."""

    def score(histories: Sequence[np.ndarray]) -> np.ndarray:
        users = np.stack([table[history[-max_length:] - 1].mean(0) for history in histories])
        return _unit(users) @ table.T

    return score


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)
