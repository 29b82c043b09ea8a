"""The comparison of an exported network with PyTorch, on the network's examples, read and padded as when served:

* alone: the graph and PyTorch, one row at a time, PyTorch without padding;
* together: all rows in one batch, padded to the longest, and in shuffled batches;
* neighbors: of vectors with `candidates`, the ten nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmrec_plugin.errors import ParityError
from llmrec_plugin.export.parity import ragged_batches
from llmrec_plugin.networks import Input, Network, Tokens
from llmrec_plugin.pipeline.networks import Arrays, collate, padded_lengths
from llmrec_plugin.pipeline.postprocess import normalize
from llmrec_plugin.specs import NetworkModel

NEIGHBORS = 10
TIE = 1e-6
"""Share of the largest score below which two candidates are equally near."""

Run = Callable[[Arrays], np.ndarray]
"""From a batch of graph inputs to (batch, dims) or (batch,) float32."""


@dataclass(frozen=True, kw_only=True)
class NetworkParity:
    """How close an exported network is to PyTorch; differences are absolute, per component.

    Attributes:
        examples: Rows compared, those without a value left out.
        tolerance: Largest difference accepted.
        max_abs_diff: Largest difference to PyTorch, one row at a time.
        batch_max_abs_diff: Largest difference to PyTorch's value of the row alone when all rows are in one batch.
        shuffled_max_abs_diff: The same in shuffled batches.
        neighbors: Rows whose ten nearest candidates were compared; 0 without candidates.
    """

    examples: int
    tolerance: float
    max_abs_diff: float
    batch_max_abs_diff: float
    shuffled_max_abs_diff: float
    neighbors: int


def compare(
    model: NetworkModel, network: Network, examples: Sequence[Arrays], reference: Run, graph: Run
) -> tuple[NetworkParity, np.ndarray]:
    """Compares a graph with PyTorch.

    Args:
        model: Gives the tolerance.
        network: What was exported.
        examples: The arrays of rows.
        reference: PyTorch.
        graph: The graph.

    Returns:
        What was measured, and PyTorch's values of the rows alone, (rows, dims) or (rows,) float32.

    Raises:
        ParityError: A difference is above the tolerance, or neighbors differ.
    """
    owner, inputs = f"model {model.name!r}", network.inputs
    expected = np.concatenate([reference(collate(inputs, [row], _lengths(inputs, row))) for row in examples])
    if not np.isfinite(expected).all():
        raise ParityError(f"{owner}: PyTorch gives values that are not finite for examples. Train it again.")
    if network.normalized and np.abs(np.linalg.norm(expected, axis=1) - 1).max() > 1e-3:
        raise ParityError(f"{owner}: it says that its vectors have unit norm, but PyTorch gives others.")
    padded = reference(collate_all(inputs, examples))
    if (worst := _largest(padded, expected)) > model.tolerance:
        raise ParityError(
            f"{owner}: in PyTorch itself a row's value changes by {worst:.3g} with its batch and padding, more than "
            f"the tolerance of {model.tolerance:.3g}. Ids of padding are 0 and masks 0: leave them out of sums, means, "
            "attention and recurrent states."
        )
    alone = np.concatenate([graph(collate(inputs, [row], padded_lengths(inputs, row))) for row in examples])
    together = graph(collate_all(inputs, examples))
    shuffled = np.empty_like(expected)
    for batch in ragged_batches(len(examples)):
        shuffled[batch] = graph(collate_all(inputs, [examples[number] for number in batch]))
    record = NetworkParity(
        examples=len(examples),
        tolerance=model.tolerance,
        max_abs_diff=_largest(alone, expected),
        batch_max_abs_diff=_largest(together, expected),
        shuffled_max_abs_diff=_largest(shuffled, expected),
        neighbors=0 if network.candidates is None else len(examples),
    )
    for what, difference in (
        ("one row at a time", record.max_abs_diff),
        ("all rows in one batch", record.batch_max_abs_diff),
        ("shuffled batches", record.shuffled_max_abs_diff),
    ):
        if difference > model.tolerance:
            raise ParityError(
                f"{owner}: the graph is off from PyTorch by {difference:.3g} ({what}), the tolerance is "
                f"{model.tolerance:.3g}. Nothing was stored. The module was traced on one batch: look for Python "
                "numbers that are taken from shapes or values, which the graph holds as constants."
            )
    if network.candidates is not None:
        _check_neighbors(owner, network, alone, expected)
    return record, expected


def _check_neighbors(owner: str, network: Network, vectors: np.ndarray, expected: np.ndarray) -> None:
    """Position by position the neighbors must be those of PyTorch, or as near in PyTorch as these are."""
    assert network.candidates is not None
    theirs = _scores(network, expected)
    ours = _scores(network, vectors)
    count = min(NEIGHBORS, theirs.shape[1])
    for number, (before, after) in enumerate(zip(theirs, ours, strict=True)):
        wanted = np.argsort(-before, kind="stable")[:count]
        found = np.argsort(-after, kind="stable")[:count]
        apart = np.abs(before[wanted] - before[found]) > TIE * max(np.abs(before).max(), 1e-12)
        if apart.any():
            raise ParityError(
                f"{owner}: of example {number} the {count} nearest candidates are {found.tolist()} for the graph and "
                f"{wanted.tolist()} for PyTorch. Nothing was stored; the tolerance may be too large for these vectors."
            )


def _scores(network: Network, vectors: np.ndarray) -> np.ndarray:
    """How near each candidate is to each vector, (rows, candidates) float64; larger is nearer."""
    candidates = np.asarray(network.candidates, dtype=np.float64)
    vectors = vectors.astype(np.float64)
    if network.metric == "cosine":
        vectors, candidates = normalize(vectors).astype(np.float64), normalize(candidates).astype(np.float64)
    products = vectors @ candidates.T
    if network.metric != "euclidean":
        return np.asarray(products)
    squares = (vectors**2).sum(1)[:, None] + (candidates**2).sum(1)
    return np.asarray(-np.sqrt(np.maximum(squares - 2 * products, 0)))


def _lengths(inputs: Sequence[Input], row: Arrays) -> list[int]:
    """The lengths of a row's sequences, without padding."""
    names = [f"{item.name}_ids" if isinstance(item, Tokens) else item.name for item in inputs]
    return [len(row[name]) for name in names if is_sequence(inputs, name)]


def collate_all(inputs: Sequence[Input], rows: Sequence[Arrays]) -> Arrays:
    """The rows in one batch, padded to the longest of them."""
    longest = np.array([_lengths(inputs, row) for row in rows], dtype=np.int64).max(axis=0)
    return collate(inputs, rows, longest.tolist())


def is_sequence(inputs: Sequence[Input], name: str) -> bool:
    suffixes = {"tokens": ("_ids", "_mask"), "vector_sequence": ("", "_mask"), "id_sequence": ("",)}
    return any(name == item.name + suffix for item in inputs for suffix in suffixes.get(item.kind, ()))


def _largest(values: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; infinite where a value is not a number or the shape is another."""
    if values.shape != expected.shape:
        return float("inf")
    return float(np.nan_to_num(np.abs(values - expected), nan=np.inf).max())
