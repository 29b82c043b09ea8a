"""How much arithmetic a text costs, so that speed can be compared with what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def matmul_flops(config: Mapping[str, Any], lengths: np.ndarray) -> float:
    """Floating-point operations in the matrix products of a BERT-like encoder; a multiply-add counts as two.

    Only tokens that are there count, so an engine that pads does work which this does not see. Embedding look-up,
    normalization, activation and pooling are left out: they are no matrix products, and under 1 % of the whole.

    Args:
        config: The model's config.json, with ``hidden_size``, ``intermediate_size`` and ``num_hidden_layers``.
        lengths: Tokens of each text, (n,).

    Returns:
        The sum over the texts.
    """
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    lengths = np.asarray(lengths, dtype=np.float64)
    projections = 4 * 2 * hidden * hidden  # query, key, value and output, per token
    feed_forward = 2 * 2 * hidden * inner  # per token
    attention = 2 * 2 * hidden * lengths  # scores and weighted values, per token; all heads together
    return float((layers * lengths * (projections + feed_forward + attention)).sum())
