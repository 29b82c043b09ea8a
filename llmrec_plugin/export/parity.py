"""The gate: an exported graph enters the store only if it gives PyTorch's numbers.

Compared on the texts of ``sentences.txt`` and one that fills the model's whole length:

* alone: the graph and PyTorch, one text at a time, without padding;
* ragged: the graph and PyTorch, on padded batches of mixed lengths;
* batching: the graph with itself, alone and in those batches. A vector that depends on its neighbours would
  differ between training, which runs large batches, and serving, which runs single requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.errors import ParityError
from llmrec_plugin.pipeline.batching import graph_inputs, pad
from llmrec_plugin.runtime.session import open_session
from llmrec_plugin.specs import EncoderModel

GOLDEN_COUNT = 8
"""How many texts at the head of the corpus become the artifact's golden vectors."""

MIN_COSINE = 0.9999
"""Whatever tolerance a model declares, no vector may point elsewhere than PyTorch's."""

_BATCH = 8
_FULL_LENGTH_CHARS = 4_000
"""About 1,000 tokens: attention over the whole of an 8,192-token model would need gigabytes."""

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From a batch of inputs, each (batch, length) int64, to embeddings, (batch, dims) float32."""


@dataclass(frozen=True, kw_only=True)
class ParityRecord:
    """How close an exported graph is to PyTorch; differences are absolute, per component.

    Attributes:
        texts: Number of texts compared.
        longest_tokens: Length of the longest input, in tokens.
        truncated_texts: How many texts were cut to the model's maximum length.
        tolerance: Largest difference accepted.
        max_abs_diff: Largest difference to PyTorch, one text at a time.
        ragged_max_abs_diff: Largest difference to PyTorch in padded batches of mixed lengths.
        batching_max_abs_diff: Largest difference of a text's vector alone and in such a batch.
        mean_cosine: Mean cosine similarity to PyTorch's vectors, one text at a time.
        min_cosine: Smallest of those.
        worst_text: The text with the largest of all differences, cut to 200 characters.
        worst_abs_diff: That difference.
        passed: Whether every difference is within the tolerance and every cosine at least `MIN_COSINE`.
    """

    texts: int
    longest_tokens: int
    truncated_texts: int
    tolerance: float
    max_abs_diff: float
    ragged_max_abs_diff: float
    batching_max_abs_diff: float
    mean_cosine: float
    min_cosine: float
    worst_text: str
    worst_abs_diff: float
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready data."""
        return asdict(self)


def corpus() -> list[str]:
    """The texts of ``sentences.txt``, in order; the first `GOLDEN_COUNT` are the golden ones."""
    content = resources.files("llmrec_plugin.export").joinpath("sentences.txt").read_text(encoding="utf-8")
    lines = [line for line in content.split("\n") if line and not line.startswith("# ")]
    # Invisible characters are written as escapes, so that an editor can neither hide nor drop them.
    return [re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), line) for line in lines]


def parity_texts() -> list[str]:
    """The corpus and, last, one text long enough to fill the length of most models."""
    texts = corpus()
    return [*texts, " ".join(texts)[:_FULL_LENGTH_CHARS]]


def graph_runner(path: Path) -> Run:
    """Runs the graph at `path` on the CPU, in the session that serves it."""
    session = open_session(path, device="cpu")

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        (vectors,) = session.run(None, dict(inputs))
        return np.asarray(vectors)

    return run


def collate(
    encodings: Sequence[Any], model: EncoderModel, pad_token_id: int, inputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """The inputs of one batch, made as the runtime makes them.

    Args:
        encodings: What the tokenizer made of each text; none may be empty.
        model: Gives the padding side.
        pad_token_id: Token id to pad with.
        inputs: Names of the inputs to make.

    Returns:
        One (batch, length) int64 array per name, padded to the longest text.
    """
    ids, mask = pad([encoding.ids for encoding in encodings], pad_token_id, model.padding_side)
    return graph_inputs(inputs, ids, mask)


def compare(
    model: EncoderModel,
    texts: Sequence[str],
    encodings: Sequence[Any],
    *,
    reference: Run,
    graph: Run,
    inputs: Sequence[str],
    pad_token_id: int,
) -> ParityRecord:
    """Compares the graph with PyTorch.

    Args:
        model: Gives tolerance, maximum length and padding side.
        texts: Texts to compare on, at least one.
        encodings: What the tokenizer made of each, in the same order; texts without any token are left out.
        reference: The model in PyTorch.
        graph: The exported graph.
        inputs: Names of the graph's inputs.
        pad_token_id: Token id to pad with.

    Returns:
        The record, which has passed.

    Raises:
        ParityError: A difference is above the tolerance, or a cosine below `MIN_COSINE`; names both, the
            tolerance and the worst text.
    """
    kept = [row for row, encoding in enumerate(encodings) if encoding.ids]
    texts, encodings = [texts[row] for row in kept], [encodings[row] for row in kept]

    def run(function: Run, batches: Sequence[Sequence[int]]) -> np.ndarray:
        rows = np.concatenate([np.asarray(batch) for batch in batches])
        found = [function(collate([encodings[row] for row in batch], model, pad_token_id, inputs)) for batch in batches]
        vectors = np.concatenate(found).astype(np.float64)
        return vectors[np.argsort(rows)]  # back into the order of `texts`

    alone, ragged = [[row] for row in range(len(texts))], list(ragged_batches(len(texts)))
    expected, actual = run(reference, alone), run(graph, alone)
    expected_ragged, actual_ragged = run(reference, ragged), run(graph, ragged)
    pairs = [(expected, actual), (expected_ragged, actual_ragged), (actual, actual_ragged)]
    differences = np.stack([_row_difference(left, right) for left, right in pairs])  # (3, texts)
    cosines = _cosines(expected, actual)
    worst = int(differences.max(0).argmax())
    record = ParityRecord(
        texts=len(texts),
        longest_tokens=max(len(encoding.ids) for encoding in encodings),
        truncated_texts=sum(bool(encoding.overflowing) for encoding in encodings),
        tolerance=model.tolerance,
        max_abs_diff=float(differences[0].max()),
        ragged_max_abs_diff=float(differences[1].max()),
        batching_max_abs_diff=float(differences[2].max()),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        worst_text=texts[worst][:200],
        worst_abs_diff=float(differences[:, worst].max()),
        passed=bool(differences.max() <= model.tolerance and cosines.min() >= MIN_COSINE),
    )
    if not record.passed:
        raise ParityError(_failure(model, record))
    return record


def _failure(model: EncoderModel, record: ParityRecord) -> str:
    text = (
        f"model {model.name!r}: the export is off by {record.worst_abs_diff:.3g}, the tolerance is "
        f"{record.tolerance:.3g}; worst text: {record.worst_text!r}. "
        f"Against PyTorch, one text at a time: {record.max_abs_diff:.3g}; in padded batches: "
        f"{record.ragged_max_abs_diff:.3g}; the graph alone against in a batch: {record.batching_max_abs_diff:.3g}; "
        f"smallest cosine: {record.min_cosine:.6f}, at least {MIN_COSINE} is asked. Nothing was stored. "
    )
    if record.worst_abs_diff <= record.tolerance:
        return text + "The tolerance lets pass what turns the vectors; declare a smaller one, this export is wrong."
    if max(record.max_abs_diff, record.ragged_max_abs_diff) <= record.tolerance:
        return text + (
            "A text's vector depends on the batch it is in: this model does not bear padding on the "
            f"{model.padding_side}; declare the other padding_side."
        )
    return text + (
        "If the vectors are large because they are not normalized, a larger tolerance may be right; "
        "otherwise this export is wrong."
    )


def ragged_batches(count: int) -> Iterator[list[int]]:
    """All rows in batches, shuffled, so that short and long texts meet; the same batches every time."""
    order = np.random.default_rng(0).permutation(count).tolist()
    return (order[start : start + _BATCH] for start in range(0, count, _BATCH))


def _row_difference(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The largest difference per row; infinite where a value is not a number."""
    return np.asarray(np.nan_to_num(np.abs(left - right), nan=np.inf, posinf=np.inf).max(1))


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(1) / np.maximum(norms, 1e-300))
