"""From the float32 graph to the graph of the declared precision, measured and held to its floor.

``int8`` turns every large product into integers. Should that cost more neighbors than the model's ``min_overlap``
allows, the products that cost most for their time stay in float32, in steps, until the floor is met. ``fp16`` converts
weights and activations. ``bf16`` leaves the graph as it is; the runtime that serves it computes in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmrec_plugin.errors import DeclarationError, ParityError
from llmrec_plugin.export.calibration import calibrate
from llmrec_plugin.export.embedding import Embedder
from llmrec_plugin.export.graph import is_split, save_graph
from llmrec_plugin.export.half import to_half
from llmrec_plugin.export.int8 import Linear, code_inputs, find_linears, quantize
from llmrec_plugin.export.parity import Run, graph_runner, parity_texts
from llmrec_plugin.export.quality import QualityRecord, check, measure
from llmrec_plugin.export.texts import Texts
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.specs import EncoderModel

Runner = Callable[[Path], Run]
"""Opens the graph in a file; the function it gives computes in the model's precision."""

KEPT_SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
"""Shares of all multiplications that may stay in float32, tried in this order."""

_PROBES = 48


BATCHING_BOUNDS = {"fp16": 2e-3, "bf16": 2e-2}
"""How far a text's vector may lie from the same text's vector in a batch, as a share of its length. With padding, sums
run in another order, and where they are rounded to half precision afterwards their last bit may flip. int8 gets the
model's own tolerance, like fp32: its sums are integers."""


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """A reduced graph.

    Attributes:
        run: Runs it in its precision.
        kept_in_fp32: Names of weights that int8 leaves in float32.
    """

    run: Run
    kept_in_fp32: tuple[str, ...] = ()


def reduce_to_floor(
    model: EncoderModel,
    path: Path,
    scratch: Path,
    embedder: Embedder,
    texts: Texts,
    exact: np.ndarray,
    runner: Runner,
) -> QualityRecord:
    """Puts the fastest graph of the declared precision that reaches ``min_overlap`` into `path`.

    Args:
        model: Gives precision and floor.
        path: The float32 graph, which is replaced.
        scratch: Folder for copies of the graph.
        embedder: Makes the graph's inputs.
        texts: Texts to calibrate and to measure on.
        exact: The full model's vectors of ``texts.measurement``, (n, dims) float32.
        runner: Runs ``bf16``; the other precisions run in ONNX Runtime on the CPU.

    Returns:
        What the graph costs.

    Raises:
        QualityError: No graph reaches the floor.
        ParityError: A text's vector depends on the batch it is in.
        ProviderError: The precision is ``bf16``, which nothing here computes.
        DeclarationError: There is nothing to reduce in this graph.
    """
    everything = parity_texts()
    calibration = embedder.inputs_alone([*everything, *texts.calibration])
    record = None
    for candidate in _candidates(model, path, scratch, calibration, runner):
        reduced = embedder.vectors(candidate.run, texts.measurement)
        batching, worst = embedder.batching_difference(candidate.run, everything)
        record = measure(model, texts, exact, reduced, batching=batching, kept_in_fp32=candidate.kept_in_fp32)
        bound = BATCHING_BOUNDS.get(model.precision, model.tolerance)
        if batching > bound:
            raise ParityError(
                f"model {model.name!r} in {model.precision}: a text's vector depends on its batch, by {batching:.3g} "
                f"of its length, expected at most {bound:.3g}; worst text: {worst[:200]!r}. Nothing was stored. "
                "Declare precision='fp32'."
            )
        if record.overlap_at_10 >= model.min_overlap:
            break
    assert record is not None  # there is always one candidate
    check(model, record)
    return record


def _candidates(
    model: EncoderModel,
    path: Path,
    scratch: Path,
    calibration: Sequence[Mapping[str, np.ndarray]],
    runner: Runner,
) -> Iterator[Reduced]:
    """Reduced graphs, fastest first; each stands in `path` until the next is asked for."""
    if model.precision == "int8":
        yield from _int8_candidates(model, path, scratch, calibration)
    elif model.precision == "fp16":
        to_half(path)
        yield Reduced(run=graph_runner(path))
    else:
        yield Reduced(run=runner(path))


def _int8_candidates(
    model: EncoderModel, path: Path, scratch: Path, calibration: Sequence[Mapping[str, np.ndarray]]
) -> Iterator[Reduced]:
    onnx = require("onnx")
    original, split = scratch / "fp32.onnx", is_split(path)
    save_graph(onnx.load(path), original, split=split)
    linears = find_linears(onnx.load(original))
    if not linears:
        raise DeclarationError(
            f"model {model.name!r}: its graph has no product of token vectors with constant weights, so there is "
            "nothing for int8 to make faster. Declare precision='fp32'."
        )
    statistics = calibrate(original, list(dict.fromkeys(item.activation for item in linears)), calibration, scratch)
    inputs = code_inputs(onnx.load(original), linears, statistics)

    def write(target: Path, keep: Collection[str]) -> Run:
        graph = onnx.load(original)
        quantize(graph, inputs, keep=keep)
        save_graph(graph, target, split=split)
        return graph_runner(target)

    ranked: list[Linear] = []
    total = sum(item.weights.size for item in linears)
    for share in KEPT_SHARES:
        if share and not ranked:
            probes = calibration[:: len(calibration) // _PROBES + 1]
            ranked = _by_cost(linears, lambda keep: write(scratch / "probe.onnx", keep), probes)
        keep, size = [], 0
        for item in ranked:
            if size + item.weights.size <= share * total:
                keep.append(item.name)
                size += item.weights.size
        yield Reduced(run=write(path, keep), kept_in_fp32=tuple(keep))


def _by_cost(
    linears: Sequence[Linear], write: Callable[[Collection[str]], Run], probes: Sequence[Mapping[str, np.ndarray]]
) -> list[Linear]:
    """The products, those first that turn vectors most for the time they save.

    Measured with one product at a time in int8: errors are small, so they add up.
    """

    def vectors(keep: Collection[str]) -> np.ndarray:
        run = write(keep)
        found = np.concatenate([run(item) for item in probes]).astype(np.float64)
        return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-300))

    names = {item.name for item in linears}
    exact = vectors(names)
    turned = {name: float(((vectors(names - {name}) - exact) ** 2).sum(1).mean()) for name in sorted(names)}
    return sorted(linears, key=lambda item: -turned[item.name] / item.weights.size)
