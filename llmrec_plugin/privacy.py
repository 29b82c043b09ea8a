"""For people who declare privacy: look at what is redacted, make keys, add up what was released.

    redact(Redaction(email=True), "mail ann@example.org")    the text without, and counts
    new_noise_key("noise.key")                               writes a secret key, gives its id
    sigma(noise)                                             the deviation of the noise on each component
    expected_cosine(noise, dims)                             what is left of the vectors
    accounting(releases=12, epsilon=1.0, delta=1e-6)         what twelve releases about one user amount to
    total([(noise, 12), (other, 1)], delta=1e-6)             the same for several features
    statement(noise, dims=384)                               all of it in words

How they belong together: docs/how-to/privacy.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.keys import new_noise_key
from llmrec_plugin.pipeline.noise import epsilon_of, mu_of, sigma
from llmrec_plugin.pipeline.redaction import Redacted, redact
from llmrec_plugin.specs import GaussianNoise


class Guarantee(NamedTuple):
    """An (epsilon, delta) guarantee with regard to replacing one user's data."""

    epsilon: float
    delta: float


def accounting(releases: int, epsilon: float, delta: float, *, total_delta: float | None = None) -> Guarantee:
    """What `releases` vectors about one user amount to together, each of them (`epsilon`, `delta`)-private.

    A release is a vector that left: one for each distinct input of a user, of each feature. Reading one again is none.
    The sum is exact, for the Gaussian mechanism is: see `llmrec_plugin.pipeline.noise`.

    Args:
        releases: How many, also such as were chosen after the earlier ones were seen.
        epsilon: Of each.
        delta: Of each.
        total_delta: The delta of the answer; default: that of each.

    Raises:
        DeclarationError: A number is out of its range.
    """
    if releases < 0:
        raise DeclarationError(f"accounting: releases must not be negative, got {releases}.")
    noise = GaussianNoise(clip_norm=1.0, epsilon=epsilon, delta=delta, user="user", key_id="0" * 16)
    return total([(noise, releases)], delta=noise.delta if total_delta is None else total_delta)


def total(releases: Iterable[tuple[GaussianNoise, int]], *, delta: float) -> Guarantee:
    """What releases of several features about one user amount to together.

    Args:
        releases: The noise of a feature, and how many of its vectors about the user left.
        delta: Of the answer.
    """
    if not 0 < delta < 1:
        raise DeclarationError(f"accounting: the delta of the answer must be in (0, 1), got {delta!r}.")
    mu = math.sqrt(sum(count * mu_of(noise.epsilon, noise.delta) ** 2 for noise, count in releases))
    return Guarantee(epsilon_of(mu, delta) if mu else 0.0, delta)


def expected_cosine(noise: GaussianNoise, dims: int) -> float:
    """About the cosine of a vector of norm ``clip_norm`` with itself after noise: how much of it is left."""
    return 1 / math.sqrt(1 + dims * (sigma(noise) / noise.clip_norm) ** 2)


def statement(noise: GaussianNoise, dims: int, releases: Sequence[int] = (1, 12, 365)) -> str:
    """The guarantee in words, for people who must sign it; five lines.

    Args:
        noise: As declared.
        dims: Length of the vectors.
        releases: For how many vectors about one user the sum is told.
    """
    sums = ", ".join(
        f"{count}: epsilon {accounting(count, noise.epsilon, noise.delta).epsilon:.3g}" for count in releases
    )
    return (
        f"clipped to L2 norm {noise.clip_norm:g}, normal noise of deviation {sigma(noise):.4g} on each component\n"
        f"each release: ({noise.epsilon:g}, {noise.delta:g})-differentially private if one user's data is replaced\n"
        f"releases about one user at delta {noise.delta:g}: {sums}\n"
        f"expected cosine of a vector of {dims} dims with itself after noise: {expected_cosine(noise, dims):.3f}\n"
        f"drawn with key {noise.key_id} for each value of {noise.user!r}"
    )


__all__ = [
    "Guarantee",
    "Redacted",
    "accounting",
    "expected_cosine",
    "new_noise_key",
    "redact",
    "sigma",
    "statement",
    "total",
]
