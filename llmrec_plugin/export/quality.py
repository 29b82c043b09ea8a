"""What a reduced model costs: the neighbors it still finds, measured against the full fp32 model.

A cosine near 1 says little about a search: neighbors lie close together. So the measure that decides is the share of
the ten nearest neighbors that both models find (``overlap_at_10``), every text being a query against all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from llmrec_plugin.errors import QualityError
from llmrec_plugin.export.texts import Texts
from llmrec_plugin.specs import EncoderModel, Metric

NEIGHBORS = 10
SMALLEST_PREFIX = 16


@dataclass(frozen=True, kw_only=True)
class QualityRecord:
    """How close a model is to the full fp32 model that it was made from.

    Attributes:
        texts: Number of texts measured; none of them calibrated the model.
        texts_from: Where they came from.
        texts_sha256: SHA-256 over the texts that calibrated and measured.
        cosine_mean: Mean cosine of a text's two vectors.
        cosine_min: The smallest of those.
        worst_text: The text it belongs to, cut to 200 characters.
        overlap_at_10: Mean share of a text's ten nearest by the full model that this model finds among its ten.
        floor: The smallest share that the declaration accepts.
        batching_max_abs_diff: Largest difference of a component of a text's vector alone and in a batch.
        prefix: The same share when only the first components are kept, by their number.
        kept_in_fp32: Products that int8 leaves in float32 to reach the floor.
    """

    texts: int
    texts_from: str
    texts_sha256: str
    cosine_mean: float
    cosine_min: float
    worst_text: str
    overlap_at_10: float
    floor: float
    batching_max_abs_diff: float
    prefix: dict[str, float]
    kept_in_fp32: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready data."""
        return {**asdict(self), "kept_in_fp32": list(self.kept_in_fp32)}


def measure(
    model: EncoderModel,
    texts: Texts,
    exact: np.ndarray,
    reduced: np.ndarray,
    *,
    batching: float,
    kept_in_fp32: Sequence[str] = (),
) -> QualityRecord:
    """The record of `reduced` against `exact`, both (n, dims) float32 for ``texts.measurement`` in order."""
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(reduced, axis=1)
    cosines = np.einsum("nd,nd->n", exact, reduced) / np.maximum(norms, 1e-12)
    worst = int(cosines.argmin())
    truth = nearest(exact, model.metric)
    sizes = [2**power for power in range(4, 20) if SMALLEST_PREFIX <= 2**power < model.dims]
    return QualityRecord(
        texts=len(exact),
        texts_from=texts.origin,
        texts_sha256=texts.sha256,
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines[worst]),
        worst_text=texts.measurement[worst][:200],
        overlap_at_10=overlap(truth, nearest(reduced, model.metric)),
        floor=model.min_overlap,
        batching_max_abs_diff=batching,
        prefix={str(size): overlap(truth, nearest(reduced[:, :size], model.metric)) for size in sizes},
        kept_in_fp32=tuple(kept_in_fp32),
    )


def check(model: EncoderModel, record: QualityRecord) -> None:
    """Refuses a model below its floor.

    Raises:
        QualityError: It is; names value, floor, worst text and what to do.
    """
    if record.overlap_at_10 >= model.min_overlap:
        return
    raise QualityError(
        f"model {model.name!r}: it finds {record.overlap_at_10:.4f} of the ten nearest neighbors that the full fp32 "
        f"model finds, expected at least min_overlap={model.min_overlap}; measured on {record.texts} texts "
        f"({record.texts_from}). Smallest cosine: {record.cosine_min:.5f}, for {record.worst_text!r}. Nothing was "
        "stored. Measure on texts of your own (--texts), reduce less (another precision, more layers), or declare a "
        "smaller min_overlap if your ranking bears it."
    )


def nearest(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """The rows of the ten (or all) nearest other vectors of each row of (n, d), (n, 10), nearest first."""
    wide = vectors.astype(np.float64)
    if metric == "cosine":
        wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-300)
    scores = wide @ wide.T
    if metric == "euclidean":
        squares = np.diagonal(scores).copy()
        scores = 2 * scores - squares[None, :]  # - |x - y|^2, but for what is the same in a row
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, : min(NEIGHBORS, len(vectors) - 1)]


def overlap(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean share of the true neighbors among those found, both (n, neighbors)."""
    shares = [len(set(true) & set(rows)) / len(true) for true, rows in zip(truth.tolist(), found.tolist(), strict=True)]
    return float(np.mean(shares))
