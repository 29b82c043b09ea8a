"""From observations to figures: medians, ratios within rounds, likeness to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NEIGHBORS = 10
FEW = 192  # texts: six batches of 32. In one or two, sorting by length, which most peers do, changes nothing.
EXACT = 0.99999  # smallest cosine of an engine that counts as exact


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one engine did on one corpus; None where it was not measured.

    Attributes:
        name: The engine.
        texts_per_s: Median over the rounds.
        texts_per_s_min: Of the slowest round.
        texts_per_s_max: Of the fastest round.
        tokens_per_s: Tokens of the texts, without padding.
        against_plain: Speed divided by that of plain ONNX Runtime, by rounds; their median.
        against_best: Speed divided by that of the fastest exact peer, by rounds; their median.
        cpu_ms_per_text: Processor time of all threads.
        peak_share: Arithmetic that the texts need, per second, divided by the machine's best fp32 matrix product.
        p50_ms: Median time of a single request.
        p99_ms: 99th percentile of it.
        cosine_min: Smallest cosine of a vector to the reference's.
        cosine_mean: Mean of it.
        overlap: Mean share of a text's ten nearest by the reference that are among its ten nearest.
        peak_rss_mb: Most memory held, in 10^6 bytes, after the throughput rounds.
    """

    name: str
    texts_per_s: float
    texts_per_s_min: float
    texts_per_s_max: float
    tokens_per_s: float
    against_plain: float | None
    against_best: float | None
    cpu_ms_per_text: float
    peak_share: float
    p50_ms: float | None
    p99_ms: float | None
    cosine_min: float
    cosine_mean: float
    overlap: float
    peak_rss_mb: float

    @property
    def exact(self) -> bool:
        """Whether its vectors are the reference's, rounding aside."""
        return self.cosine_min >= EXACT


def rows(
    observations: Mapping[str, Mapping[str, Any]],
    *,
    texts: int,
    tokens: int,
    flops: float,
    peak_gflops: float,
    peers: Sequence[str],
    plain: str,
) -> list[Row]:
    """The figures of every engine that got through.

    Args:
        observations: By engine: ``seconds`` and ``cpu_seconds`` by round, ``milliseconds`` of single requests,
            ``cosine_min``, ``cosine_mean``, ``overlap`` and ``peak_rss_mb``.
        texts: Texts of a round.
        tokens: Their tokens.
        flops: Their arithmetic.
        peak_gflops: The machine's best fp32 matrix product.
        peers: Engines that are not ours.
        plain: The engine that is plain ONNX Runtime.
    """
    best = best_exact(observations, peers)
    found = []
    for name, seen in observations.items():
        rates = texts / np.asarray(seen["seconds"])
        milliseconds = seen["milliseconds"]
        found.append(
            Row(
                name=name,
                texts_per_s=float(np.median(rates)),
                texts_per_s_min=float(rates.min()),
                texts_per_s_max=float(rates.max()),
                tokens_per_s=float(np.median(rates)) * tokens / texts,
                against_plain=ratio(observations, name, plain),
                against_best=ratio(observations, name, best),
                cpu_ms_per_text=float(np.median(seen["cpu_seconds"])) / texts * 1000,
                peak_share=float(np.median(rates)) * flops / texts / (peak_gflops * 1e9),
                p50_ms=float(np.percentile(milliseconds, 50)) if milliseconds else None,
                p99_ms=float(np.percentile(milliseconds, 99)) if milliseconds else None,
                cosine_min=seen["cosine_min"],
                cosine_mean=seen["cosine_mean"],
                overlap=seen["overlap"],
                peak_rss_mb=seen["peak_rss_mb"],
            )
        )
    return found


def ratio(observations: Mapping[str, Mapping[str, Any]], name: str, base: str | None) -> float | None:
    """How many times as fast as `base` the engine is: the median of the ratios of rounds, None without `base`.

    Both did the same work in every round, close together in time, so what slows the machine cancels.
    """
    if base is None or base not in observations:
        return None
    return float(np.median(np.asarray(observations[base]["seconds"]) / np.asarray(observations[name]["seconds"])))


def best_exact(observations: Mapping[str, Mapping[str, Any]], peers: Sequence[str]) -> str | None:
    """The fastest peer, by its median, whose vectors are the reference's."""
    exact = [name for name in peers if name in observations and observations[name]["cosine_min"] >= EXACT]
    return min(exact, key=lambda name: float(np.median(observations[name]["seconds"])), default=None)


def cosines(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine of each vector to the reference's, (n,) float64; a vector of zeros has cosine 0."""
    vectors, reference = vectors.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    return np.einsum("nd,nd->n", vectors, reference) / np.maximum(norms, 1e-12)


def overlap(vectors: np.ndarray, reference: np.ndarray) -> float:
    """Mean share of each text's nearest by the reference that are among its nearest by `vectors`.

    Both search among their own vectors; a text is not its own neighbor.
    """
    pairs = zip(nearest(vectors), nearest(reference), strict=True)
    return float(np.mean([len(set(found) & set(true)) / len(true) for found, true in pairs]))


def nearest(vectors: np.ndarray) -> np.ndarray:
    """Numbers of each row's `NEIGHBORS` nearest other rows by cosine, (n, NEIGHBORS) int64, nearest first."""
    unit = vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, :NEIGHBORS]
