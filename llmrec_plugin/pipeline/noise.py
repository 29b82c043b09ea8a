"""Differential privacy for vectors: clip, then normal noise.

    vector -> clipped to the L2 norm C -> + sigma * z, z standard normal per component

The mechanism and its calibration are those of Balle and Wang 2018 (arXiv:1805.06530), theorem 8: noise of deviation
sigma on a value that one user's data moves by at most s is (epsilon, delta)-private exactly if

    Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu) <= delta        mu = s / sigma

Several releases about one user are together as private as one of mu = sqrt(sum of their mu^2), also where what is
released depends on what was released before (Dong, Roth and Su 2022, arXiv:1905.02383, corollary 2).

z is no draw of a generator but a function: HMAC-SHA256 of the feature's fingerprint, the user and the row's texts with
the secret key, stretched by SHAKE-256. Whoever lacks the key cannot tell it from independent draws; whoever has it gets
the same z in every process.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence

import numpy as np

from llmrec_plugin.errors import InputError
from llmrec_plugin.keys import NoiseKey
from llmrec_plugin.pipeline.text import to_text
from llmrec_plugin.specs import GaussianNoise

_ROWS_AT_ONCE = 1024
_STEPS = 200


def privatize(
    noise: GaussianNoise,
    key: NoiseKey,
    fingerprint: str,
    vectors: np.ndarray,
    users: Sequence[str],
    inputs: Sequence[Sequence[str]],
) -> np.ndarray:
    """Clipped vectors with noise, (n, dims) float32.

    Args:
        noise: How much.
        key: Draws it.
        fingerprint: Of the feature; another one has other noise.
        vectors: (n, dims) float32.
        users: Per row whose vector it is.
        inputs: Per row the texts that the vector was computed from.
    """
    result = np.empty(vectors.shape, dtype=np.float32)
    deviation = sigma(noise)
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        seeds = [
            key.digest(json.dumps([fingerprint, user, *texts], ensure_ascii=True).encode("ascii"))
            for user, texts in zip(users[rows], inputs[rows], strict=True)
        ]
        result[rows] = clip(vectors[rows], noise.clip_norm) + deviation * normals(seeds, vectors.shape[1])
    return result


def clip(vectors: np.ndarray, norm: float) -> np.ndarray:
    """Each row of (n, dims) scaled down to the L2 norm `norm` where it is longer, float64."""
    wide = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide * np.minimum(1.0, np.divide(norm, norms, out=np.ones_like(norms), where=norms > 0))


def normals(seeds: Sequence[bytes], dims: int) -> np.ndarray:
    """Standard normal numbers, (len(seeds), dims) float64: SHAKE-256 of each seed, by Box and Muller's transform."""
    pairs = (dims + 1) // 2
    stream = b"".join(hashlib.shake_256(seed).digest(16 * pairs) for seed in seeds)
    uniforms = (np.frombuffer(stream, dtype="<u8").reshape(len(seeds), 2, pairs) + 0.5) * 2.0**-64  # in (0, 1]
    radii, angles = np.sqrt(-2 * np.log(uniforms[:, 0])), 2 * np.pi * uniforms[:, 1]
    return np.concatenate([radii * np.cos(angles), radii * np.sin(angles)], axis=1)[:, :dims]


def user_of(cell: object) -> str:
    """The key in a cell, equal for a number and its text.

    Raises:
        InputError: There is none.
    """
    user = to_text(cell).strip()
    if not user:
        raise InputError("the row has no user, whose key the noise depends on")
    return user


def sigma(noise: GaussianNoise) -> float:
    """Standard deviation of the noise on each component."""
    # Rounded up, so that the last bits of a machine's erfc make no other numbers than those of its neighbors.
    exact = 2 * noise.clip_norm / mu_of(noise.epsilon, noise.delta)
    digits = 8 - math.floor(math.log10(exact))
    return math.ceil(exact * 10.0**digits) / 10.0**digits


@functools.lru_cache(maxsize=256)
def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu that is (epsilon, delta)-private."""
    least, most = -50.0, 50.0  # of log(mu)
    for _ in range(_STEPS):
        middle = (least + most) / 2
        least, most = (middle, most) if delta_of(math.exp(middle), epsilon) <= delta else (least, middle)
    return math.exp(least)


def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon for which `mu` is (epsilon, delta)-private."""
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    most = 1.0
    while delta_of(mu, most) > delta:
        most *= 2
    least = 0.0
    for _ in range(_STEPS):
        middle = (least + most) / 2
        least, most = (middle, most) if delta_of(mu, middle) > delta else (least, middle)
    return most


def delta_of(mu: float, epsilon: float) -> float:
    """The smallest delta for which `mu` is (epsilon, delta)-private."""
    first, second = _log_phi(mu / 2 - epsilon / mu), epsilon + _log_phi(-mu / 2 - epsilon / mu)
    return math.exp(first) * -math.expm1(min(second - first, 0.0))


def _log_phi(x: float) -> float:
    """Logarithm of the standard normal distribution function."""
    if x > -30:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    # erfc is about to underflow. Abramowitz and Stegun 26.2.12; the terms left out are below 1e-8.
    square = x * x
    return -square / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / square + 3 / square**2)
