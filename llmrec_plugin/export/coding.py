"""How an activation becomes 8 bits, chosen on calibration texts.

    code = round((x - shift) / scale / step) + zero_point,    clipped to 0..255

``shift`` and ``scale`` are per channel, ``step`` is per token or one constant, so a token's codes never depend on the
texts around it. Three kinds of inputs:

* **normalized** (from a LayerNormalization): a few channels are tens of times larger than the rest and would take the
  range from all others. Dividing channels by their range and multiplying the weights' rows with it evens that out:
  SmoothQuant (Xiao et al. 2023), with a shift beside the scale. It is free here: a second LayerNormalization with
  another weight and bias gives the evened values. How much range moves into the weights (``alpha``) is chosen by error.
  Once channels are even, tokens are nearly even, too, and a constant step may cost no quality and saves time.
* **bounded** (GELU): never below -0.17, so nearly the whole range is left to positive values.
* **other**: per-token step and symmetric codes, the vector-wise quantization of LLM.int8() (Dettmers et al. 2022).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec_plugin.export.calibration import Statistics
from llmrec_plugin.export.rounding import ACTIVATION_MAX, round_weights

GELU_MIN = -0.17
"""A little below the minimum of GELU, -0.16997."""

TINY = 1e-10
"""Smallest step: a token of zeros has no range."""

_CENTER = 128
_SAMPLE = 1024
_STATIC_ALPHAS, _TOKEN_ALPHAS = (1.0, 0.85), (0.35, 0.5, 0.7)
_STATIC_BONUS = 1.25
"""How much larger the error of a constant step may be: it saves three passes over the activations."""


@dataclass(frozen=True, kw_only=True)
class Coding:
    """The coding of one activation, see the module's docstring.

    Attributes:
        shift: (k,) float32; None for no shift and no scale.
        scale: (k,) float32; None for no shift and no scale.
        step: The constant step; None for one step per token.
        zero_point: The code of zero.
        minimum: Lower bound of all values; 0 where there is none.
    """

    shift: np.ndarray | None = None
    scale: np.ndarray | None = None
    step: float | None = None
    zero_point: int = _CENTER
    minimum: float = 0.0

    @property
    def smallest_step(self) -> float:
        """The smallest per-token step: with it, `minimum` still has a code."""
        return max(TINY, -self.minimum / self.zero_point)

    @property
    def codes_above(self) -> int:
        """How many codes the largest value of a token may use."""
        return ACTIVATION_MAX - self.zero_point

    def even(self, values: np.ndarray) -> np.ndarray:
        """(tokens, k) as they are coded: shifted and scaled."""
        return values if self.shift is None else (values - self.shift) / self.scale

    def widen(self, weights: np.ndarray) -> np.ndarray:
        """(k, n) weights that give the same product with evened values, but for the shift."""
        return weights if self.scale is None else weights * self.scale[:, None]

    def decoded(self, values: np.ndarray) -> np.ndarray:
        """Evened values, (tokens, k), after coding and decoding."""
        evened = self.even(values)
        step: float | np.ndarray
        if self.step is not None:
            step = self.step
        else:
            largest = evened if self.minimum < 0 else np.abs(evened)
            step = np.maximum(largest.max(1, keepdims=True) / self.codes_above, self.smallest_step)
        codes = np.clip(np.round(evened / step) + self.zero_point, 0, ACTIVATION_MAX)
        return np.asarray((codes - self.zero_point) * step)


def choose(statistics: Statistics, weights: Sequence[np.ndarray], *, normalized: bool, bounded: bool) -> Coding:
    """The coding with the smallest error of the products.

    Args:
        statistics: What calibration saw of the activation.
        weights: Weights of every product that reads it, each (k, n).
        normalized: Whether a LayerNormalization gives the activation, so that shift and scale are free.
        bounded: Whether it is never below `GELU_MIN`.
    """
    if bounded:
        return _best((Coding(zero_point=zero, minimum=GELU_MIN) for zero in (8, 12, 16, 20, 26)), statistics, weights)[
            0
        ]
    if not normalized:
        return Coding()
    fixed, fixed_error = _best(
        (_evened(statistics, weights, alpha, True) for alpha in _STATIC_ALPHAS), statistics, weights
    )
    token, token_error = _best(
        (_evened(statistics, weights, alpha, False) for alpha in _TOKEN_ALPHAS), statistics, weights
    )
    return fixed if fixed_error <= _STATIC_BONUS * token_error else token


def _evened(statistics: Statistics, weights: Sequence[np.ndarray], alpha: float, constant: bool) -> Coding:
    # Under a constant step every value must fit, so the range is centered.
    shift = (statistics.low + statistics.high) / 2 if constant else statistics.sample.mean(0)
    ranges = np.maximum(np.maximum(statistics.high - shift, shift - statistics.low), 1e-6)
    rows = np.maximum(np.max([np.abs(matrix).max(1) for matrix in weights], axis=0), 1e-9)
    scale = ranges**alpha / rows ** (1 - alpha)
    scale = (scale / np.exp(np.log(scale).mean())).astype(np.float32)
    step = float((ranges / scale).max() / (ACTIVATION_MAX - _CENTER)) if constant else None
    return Coding(shift=shift.astype(np.float32), scale=scale, step=step)


def _best(codings: Iterable[Coding], statistics: Statistics, weights: Sequence[np.ndarray]) -> tuple[Coding, float]:
    sample = statistics.sample[:: max(1, len(statistics.sample) // _SAMPLE)]
    errors = [(coding, sum(_error(coding, sample, matrix) for matrix in weights)) for coding in codings]
    return min(errors, key=lambda item: item[1])


def _error(coding: Coding, sample: np.ndarray, weights: np.ndarray) -> float:
    """Squared error of a product, its mean left out because the bias makes it good, relative to its variance."""
    widened = coding.widen(weights)
    codes, scales = round_weights(widened)
    exact = coding.even(sample) @ widened
    error = coding.decoded(sample) @ (codes * scales) - exact
    return float((error - error.mean(0)).var() / max(float((exact - exact.mean(0)).var()), 1e-30))
