"""What the activations of a graph look like on calibration texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec_plugin.export.toolchain import require
from llmrec_plugin.runtime.session import open_session

TOKENS = 4096
"""How many tokens of each activation are kept to measure correlations."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What calibration saw of one activation of k channels.

    Attributes:
        sample: Values of some tokens, (tokens, k) float32.
        low: Smallest value of each channel over all tokens, (k,) float32.
        high: Largest value of each channel over all tokens, (k,) float32.
    """

    sample: np.ndarray
    low: np.ndarray
    high: np.ndarray


def calibrate(
    path: Path, names: Collection[str], inputs: Sequence[Mapping[str, np.ndarray]], scratch: Path
) -> dict[str, Statistics]:
    """What the activations of a graph look like.

    Args:
        path: The graph.
        names: Activations to watch, each (batch, length, k) float32.
        inputs: Inputs of the graph, one text each, so that nothing is padding.
        scratch: Folder for a copy of the graph.
    """
    onnx = require("onnx")
    graph = onnx.load(path)
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    watched = scratch / "watched.onnx"
    data = scratch / "watched.onnx_data"  # always a file of its own, so that graphs of any size can be watched
    data.unlink(missing_ok=True)
    onnx.save_model(graph, watched, save_as_external_data=True, location=data.name)
    session = open_session(watched, device="cpu")
    total = sum(item["input_ids"].size for item in inputs)
    stride = -(-total // TOKENS)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in names}
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    seen = 0
    for item in inputs:
        for name, value in zip(names, session.run(list(names), dict(item)), strict=True):
            values = value.reshape(-1, value.shape[-1])
            kept[name].append(values[-seen % stride :: stride].copy())
            low[name] = np.minimum(low.get(name, np.inf), values.min(0))
            high[name] = np.maximum(high.get(name, -np.inf), values.max(0))
        seen += item["input_ids"].size
    return {name: Statistics(sample=np.concatenate(kept[name]), low=low[name], high=high[name]) for name in names}
