"""Reduced forms of one graph, from the fastest to the closest: what export chooses from to reach a model's floor.

``int8`` has several: all large products in integers, or those that cost most for their time left in float32. ``fp16``
and ``bf16`` have one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.export.calibration import calibrate
from llmrec_plugin.export.graph import is_split, save_graph
from llmrec_plugin.export.int8 import Linear, code_inputs, find_linears, quantize
from llmrec_plugin.export.parity import Run, graph_runner
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.specs import EncoderModel

KEPT_SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
"""Shares of all multiplications that may stay in float32."""

_PROBES = 32

Inputs = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A reduced graph.

    Attributes:
        run: Runs it in its precision.
        kept_in_fp32: Names of products that int8 leaves in float32.
    """

    run: Run
    kept_in_fp32: tuple[str, ...] = ()


class Ladder(Protocol):
    """Reduced forms of one graph, step 0 the fastest."""

    count: int

    def write(self, step: int) -> Step:
        """Puts that form in the place of the graph."""


class OneStep:
    """The ladder of a precision with one form.

    Args:
        path: The graph.
        convert: Converts it in place.
        runner: Runs it in that precision.
    """

    count = 1

    def __init__(self, path: Path, convert: Callable[[Path], None], runner: Callable[[Path], Run]) -> None:
        convert(path)
        self._step = Step(run=runner(path))

    def write(self, step: int) -> Step:
        return self._step


class Int8Ladder:
    """int8 with more and more products in float32.

    Args:
        model: Names the model in errors.
        path: The float32 graph, which is replaced.
        scratch: Folder for copies of the graph.
        calibration: Inputs of the graph, one text each.

    Raises:
        DeclarationError: There is nothing to reduce in this graph.
    """

    count = len(KEPT_SHARES)

    def __init__(self, model: EncoderModel, path: Path, scratch: Path, calibration: Inputs) -> None:
        onnx = require("onnx")
        self._path, self._original, self._split = path, scratch / "fp32.onnx", is_split(path)
        self._probe, self._probes = scratch / "probe.onnx", calibration[:: len(calibration) // _PROBES + 1]
        save_graph(onnx.load(path), self._original, split=self._split)
        self._linears = find_linears(onnx.load(self._original))
        if not self._linears:
            raise DeclarationError(
                f"model {model.name!r}: its graph has no product of token vectors with constant weights, so there is "
                "nothing for int8 to make faster. Declare precision='fp32'."
            )
        names = list(dict.fromkeys(linear.activation for linear in self._linears))
        seen = calibrate(self._original, names, calibration, scratch)
        self._inputs = code_inputs(onnx.load(self._original), self._linears, seen)

    def write(self, step: int) -> Step:
        room = KEPT_SHARES[step] * sum(linear.weights.size for linear in self._linears)
        keep: list[str] = []
        for linear in self._by_cost if step else ():
            if linear.weights.size <= room:
                keep.append(linear.name)
                room -= linear.weights.size
        return Step(run=self._reduced(self._path, keep), kept_in_fp32=tuple(keep))

    @cached_property
    def _by_cost(self) -> list[Linear]:
        """The products, those first that turn vectors most for the time they save.

        Measured with one product at a time in int8: errors are small, so they add up.
        """
        names = {linear.name for linear in self._linears}
        exact = self._directions(names)
        turned = {name: float(((self._directions(names - {name}) - exact) ** 2).sum()) for name in sorted(names)}
        return sorted(self._linears, key=lambda linear: -turned[linear.name] / linear.weights.size)

    def _directions(self, keep: Collection[str]) -> np.ndarray:
        run = self._reduced(self._probe, keep)
        found = np.concatenate([run(item) for item in self._probes]).astype(np.float64)
        return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-300))

    def _reduced(self, target: Path, keep: Collection[str]) -> Run:
        graph = require("onnx").load(self._original)
        quantize(graph, self._inputs, keep=keep)
        save_graph(graph, target, split=self._split)
        return graph_runner(target)
