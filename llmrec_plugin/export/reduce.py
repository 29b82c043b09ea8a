"""From the float32 graph to the graph of the declared precision, measured and held to its floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from llmrec_plugin.errors import ParityError
from llmrec_plugin.export.embedding import Embedder
from llmrec_plugin.export.half import to_half
from llmrec_plugin.export.ladder import Int8Ladder, Ladder, OneStep, Step
from llmrec_plugin.export.parity import Run, graph_runner, parity_texts
from llmrec_plugin.export.quality import QualityRecord, check, measure
from llmrec_plugin.export.texts import Texts
from llmrec_plugin.specs import EncoderModel

Runner = Callable[[Path], Run]
"""Opens the graph in a file; the function it gives computes in the model's precision."""

BATCHING_BOUNDS = {"fp16": 2e-3, "bf16": 2e-2}
"""How far a text's vector may lie from the same text's vector in a batch, as a share of its length. With padding, sums
run in another order, and where they are rounded to half precision afterwards their last bit may flip. int8 gets the
model's own tolerance, like fp32: its sums are integers."""


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
    ladder = _ladder(model, path, scratch, embedder, texts, runner)

    def at(number: int) -> tuple[Step, QualityRecord]:
        step = ladder.write(number)
        reduced = embedder.vectors(step.run, texts.measurement)
        return step, measure(model, texts, exact, reduced, batching=0.0, kept_in_fp32=step.kept_in_fp32)

    step, record = at(0)
    if record.overlap_at_10 < model.min_overlap and ladder.count > 1:
        low, high = 0, ladder.count - 1  # low misses the floor; high reaches it, if anything does
        while high - low > 1:
            middle = (low + high) // 2
            if at(middle)[1].overlap_at_10 < model.min_overlap:
                low = middle
            else:
                high = middle
        step, record = at(high)
    check(model, record)
    return replace(record, batching_max_abs_diff=_batching(model, step, embedder))


def _ladder(model: EncoderModel, path: Path, scratch: Path, embedder: Embedder, texts: Texts, runner: Runner) -> Ladder:
    if model.precision == "int8":
        return Int8Ladder(model, path, scratch, embedder.inputs_alone([*parity_texts(), *texts.calibration]))
    if model.precision == "fp16":
        return OneStep(path, to_half, graph_runner)
    return OneStep(path, lambda _: None, runner)


def _batching(model: EncoderModel, step: Step, embedder: Embedder) -> float:
    """How much a text's vector depends on its batch; not more than rounding, or it is an error."""
    difference, worst = embedder.batching_difference(step.run, parity_texts())
    bound = BATCHING_BOUNDS.get(model.precision, model.tolerance)
    if difference > bound:
        raise ParityError(
            f"model {model.name!r} in {model.precision}: a text's vector depends on its batch, by {difference:.3g} of "
            f"its length, expected at most {bound:.3g}; worst text: {worst[:200]!r}. Nothing was stored. Declare "
            "precision='fp32'."
        )
    return difference
