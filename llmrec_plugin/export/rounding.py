"""8-bit weights: rounded so that errors cancel, and small enough that no kernel saturates.

**Errors that cancel.** Rounding each weight to the nearest code is not best for the product: inputs are correlated, so
the error of one row can be made good by the rows after it. That is GPTQ (Frantar et al. 2022); the correlations are
measured on calibration texts.

**No saturation.** On x86 without VNNI the u8 x s8 kernel adds two neighboring products in 16 bits
(``vpmaddubsw``). With activation codes up to 255, two neighboring weights of one sign may sum to at most
`PAIR_LIMIT`; beyond, the sum is clipped without an error, and only on such processors. Codes made here never exceed it,
so every processor computes the same integers.
"""

from __future__ import annotations

import numpy as np

WEIGHT_MAX = 127
ACTIVATION_MAX = 255
PAIR_LIMIT = (2**15 - 1) // ACTIVATION_MAX
"""Largest sum of the same-signed weight codes in rows 2k and 2k + 1 of a column: 128."""

_DAMPING = 0.01  # of the mean diagonal, as in GPTQ: keeps the inverse bounded where inputs hardly vary
_BLOCK = 64


def round_weights(weights: np.ndarray, moments: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales, ``codes * scales`` standing for `weights`.

    Args:
        weights: (k, n) float.
        moments: Second moments of the inputs, (k, k) float64; None rounds to the nearest code.

    Returns:
        Codes, (k, n) int8, and scales, (n,) float32.
    """
    weights = np.asarray(weights, dtype=np.float64)
    scales = _column_scales(weights)
    left = weights / scales  # what is still to be represented, in codes
    if moments is None:
        return np.round(left).astype(np.int8), scales
    rows = len(left)
    damped = moments + np.eye(rows) * max(_DAMPING * float(np.trace(moments)) / rows, 1e-12)
    # Row i of the factor says how rows after i make good an error in row i.
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    codes = np.zeros_like(left)
    for start in range(0, rows, _BLOCK):
        stop = min(start + _BLOCK, rows)
        errors = np.zeros((stop - start, left.shape[1]))
        for row in range(start, stop):
            codes[row] = _nearest(left[row], codes[row - 1] if row % 2 else None)
            errors[row - start] = (left[row] - codes[row]) / factor[row, row]
            left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], errors[row - start])
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return codes.astype(np.int8), scales


def largest_pair_sum(codes: np.ndarray) -> int:
    """The largest sum of neighboring codes of one sign, to be at most `PAIR_LIMIT`."""
    pairs = _pairs(codes.astype(np.int64))
    return int(max(np.maximum(pairs, 0).sum(1).max(), np.maximum(-pairs, 0).sum(1).max()))


def _column_scales(weights: np.ndarray) -> np.ndarray:
    """The value of one code for each column of (k, n), (n,) float32, such that nearest codes keep every bound."""
    positive, negative = (_pairs(np.maximum(part, 0)).sum(1).max(0) for part in (weights, -weights))
    # Each of two codes may be rounded up by half a code.
    pairs = np.maximum(positive, negative) / (PAIR_LIMIT - 1)
    scales = np.maximum(np.maximum(np.abs(weights).max(0) / WEIGHT_MAX, pairs), 1e-12)
    return np.asarray(scales, dtype=np.float32)


def _nearest(values: np.ndarray, partner: np.ndarray | None) -> np.ndarray:
    """The nearest codes that stay within all bounds beside `partner`, the row before in the same pair."""
    room = np.zeros_like(values) if partner is None else partner
    high = np.minimum(WEIGHT_MAX, PAIR_LIMIT - np.maximum(room, 0))
    low = np.maximum(-WEIGHT_MAX, -PAIR_LIMIT - np.minimum(room, 0))
    return np.asarray(np.clip(np.round(values), low, high))


def _pairs(rows: np.ndarray) -> np.ndarray:
    """(k, n) as (ceil(k / 2), 2, n); the kernels fill up with zeros as well."""
    if len(rows) % 2:
        rows = np.concatenate([rows, np.zeros_like(rows[:1])])
    return rows.reshape(-1, 2, rows.shape[1])
