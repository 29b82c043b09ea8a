"""The gate of generators: exported graphs enter the store only if they write what ``transformers.generate`` writes.

Compared are the most probable tokens after prompts of all kinds, and the logits from which they were chosen:

* alone: one prompt at a time;
* ragged: prompts of all lengths together, each row at its own position;
* pieces: for a fused graph, a prompt read in two pieces, as behind a common prefix.

Where two tokens are as good as equally probable, which is chosen is an accident of rounding: that is accepted and
recorded, and what follows in that row is not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llmrec_plugin.errors import ParityError
from llmrec_plugin.export.greedy import Decoder, Prompt, Written, write
from llmrec_plugin.export.parity import parity_texts
from llmrec_plugin.specs import GeneratorModel

NEW_TOKENS = 24
TOLERANCE = 1e-3
"""Largest difference of a logit, or this share of a thousandth of the largest logit where that is more."""
TIE = 1e-4
"""Largest difference of two logits that are called equal."""
GOLDEN_COUNT = 4
"""How many prompts become the artifact's golden ones."""

_GOLDEN_LENGTH = 64
_LONGEST = 512
"""Longest prompt compared, in tokens, unless a layer sees a window that a longer one has to leave."""
_LONGEST_WINDOW = 2048


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """How close exported graphs are to PyTorch; differences are absolute, of logits.

    Attributes:
        prompts: Number of prompts compared.
        longest_tokens: Length of the longest, in tokens.
        new_tokens: Tokens written after each at most.
        written_tokens: Tokens compared, of all prompts and ways.
        tolerance: Largest difference accepted.
        max_abs_diff: Largest difference, one prompt at a time.
        ragged_max_abs_diff: Largest difference with prompts of all lengths together.
        pieces_max_abs_diff: Largest difference with prompts read in two pieces; None for a plain graph.
        ties: Tokens that differ because two were equally probable: way, prompt, step, the two tokens and the
            difference of their logits.
        passed: Whether all tokens are equal, but for ties, and all differences are within the tolerance.
    """

    prompts: int
    longest_tokens: int
    new_tokens: int
    written_tokens: int
    tolerance: float
    max_abs_diff: float
    ragged_max_abs_diff: float
    pieces_max_abs_diff: float | None
    ties: tuple[dict[str, Any], ...]
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready data."""
        return asdict(self)


def parity_prompts(model: GeneratorModel, encode: Any, vocabulary: int, window: int | None = None) -> list[list[int]]:
    """Prompts of all kinds, as token ids: texts, one token, ids at random, one that is long.

    Args:
        model: Gives task and length.
        encode: From a text to the ids of a whole prompt.
        vocabulary: Number of tokens from which random ids are drawn.
        window: Tokens that a layer sees at most.
    """
    texts = parity_texts()
    room = model.max_tokens - (new_tokens(model) if model.task == "causal" else 0)
    longest = _LONGEST if window is None else min(max(_LONGEST, window + NEW_TOKENS), _LONGEST_WINDOW)
    rng = np.random.default_rng(0)
    prompts = [
        encode(text) for text in (*texts[:GOLDEN_COUNT], *texts[GOLDEN_COUNT :: len(texts) // 4], " ".join(texts))
    ]
    prompts += [rng.integers(0, vocabulary, length).tolist() for length in (1, 2, 7, 33)]
    prompts = [prompt[: min(room, longest)] for prompt in prompts]
    return [prompt for prompt in prompts if prompt]


def new_tokens(model: GeneratorModel) -> int:
    """Tokens that are written after each prompt: `NEW_TOKENS`, or what leaves half of a small context to the prompt."""
    return min(NEW_TOKENS, max(model.max_tokens // 2, 1))


def compare_generator(
    model: GeneratorModel,
    prompts: Sequence[Prompt],
    expected: Sequence[Written],
    decoder: Decoder,
    ends: Sequence[int],
    pieces: Decoder | None = None,
) -> GenerationRecord:
    """Compares exported graphs with PyTorch.

    Args:
        model: What is compared, for messages and lengths.
        prompts: Token ids of whole prompts.
        expected: What PyTorch writes after each.
        decoder: The exported graphs.
        ends: Tokens that end an output.
        pieces: The exported graphs with each prompt in two pieces.

    Raises:
        ParityError: A token differs, or a logit by more than the tolerance; names the prompt and both.
    """
    count = new_tokens(model)
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    batches = [order[start : start + 8] for start in range(0, len(order), 8)]
    ways: dict[str, list[tuple[int, Written]]] = {
        "alone": [(row, write(decoder, [prompt], count, ends)[0]) for row, prompt in enumerate(prompts)],
        "ragged": [
            pair
            for batch in batches
            for pair in zip(batch, write(decoder, [prompts[row] for row in batch], count, ends), strict=True)
        ],
    }
    if pieces is not None:
        long = [row for row, prompt in enumerate(prompts) if len(prompt) > 1]
        ways["pieces"] = [(row, write(pieces, [prompts[row]], count, ends)[0]) for row in long]
    largest = max(float(np.abs(item.logits[np.isfinite(item.logits)]).max()) for item in expected)
    tolerance = TOLERANCE * max(1.0, largest / 1000)
    differences: dict[str, float] = {}
    ties: list[dict[str, Any]] = []
    for way, found in ways.items():
        for row, actual in found:
            difference, tie = _difference(model, way, prompts[row], expected[row], actual)
            differences[way] = max(differences.get(way, 0.0), difference)
            if difference > tolerance:
                raise ParityError(
                    f"model {model.name!r}: a logit of the export is off by {difference:.3g} ({way}, after the prompt "
                    f"{list(prompts[row][:12])} of {len(prompts[row])} tokens), the tolerance is {tolerance:.3g}."
                )
            ties += [{"way": way, "prompt": row, **tie}] if tie else []
    return GenerationRecord(
        prompts=len(prompts),
        longest_tokens=max(map(len, prompts)),
        new_tokens=count,
        written_tokens=sum(len(actual.tokens) for found in ways.values() for _, actual in found),
        tolerance=tolerance,
        max_abs_diff=differences["alone"],
        ragged_max_abs_diff=differences["ragged"],
        pieces_max_abs_diff=differences.get("pieces"),
        ties=tuple(ties),
        passed=True,
    )


def _difference(
    model: GeneratorModel, way: str, prompt: Prompt, expected: Written, actual: Written
) -> tuple[float, dict[str, Any] | None]:
    """Largest difference of the logits up to the first token that differs, and that token if it is a tie.

    Raises:
        ParityError: A token differs that was no tie.
    """
    pairs = zip(expected.tokens, actual.tokens, strict=False)
    other = next((step for step, (left, right) in enumerate(pairs) if left != right), None)
    compared = min(len(expected.tokens), len(actual.tokens)) if other is None else other + 1
    left, right = expected.logits[:compared], actual.logits[:compared]
    with np.errstate(invalid="ignore"):  # equal infinities stand for tokens that are never written
        apart = np.where(left == right, 0, np.abs(left - right))
    difference = float(np.nan_to_num(apart, nan=np.inf).max())
    where = f"({way}, after the prompt {list(prompt[:12])} of {len(prompt)} tokens)"
    if other is not None:
        wanted, got = expected.tokens[other], actual.tokens[other]
        lead = float(expected.logits[other, wanted] - expected.logits[other, got])
        if lead <= TIE:
            return difference, {"step": other, "expected": wanted, "got": got, "difference": lead}
        raise ParityError(
            f"model {model.name!r}: token {other + 1} of the export is {got}, PyTorch's is {wanted}, whose logit is "
            f"larger by {lead:.3g} {where}; the largest difference of a logit is {difference:.3g}."
        )
    if len(expected.tokens) != len(actual.tokens):
        raise ParityError(
            f"model {model.name!r}: the export writes {len(actual.tokens)} tokens and PyTorch {len(expected.tokens)} "
            f"{where}: something else ends the output."
        )
    return difference, None


def golden(prompts: Sequence[Prompt], expected: Sequence[Written], ends: Sequence[int], count: int) -> dict[str, Any]:
    """The content of ``golden.json``: short prompts as ids, and PyTorch's most probable tokens after them.

    Taken are those whose tokens are the least in doubt, so that rounding on another machine changes none. The token
    that ends is left out; `max_new_tokens` are written at most.
    """
    short = [row for row, prompt in enumerate(prompts) if len(prompt) <= _GOLDEN_LENGTH] or [0]
    rows = sorted(short, key=lambda row: -_least_lead(expected[row].logits))[:GOLDEN_COUNT]
    return {
        "max_new_tokens": count,
        "prompts": [
            {"ids": list(prompts[row]), "tokens": [token for token in expected[row].tokens if token not in ends]}
            for row in sorted(rows)
        ],
    }


def _least_lead(logits: np.ndarray) -> float:
    """The smallest difference of the largest and the second largest logit of a step; logits (steps, vocabulary)."""
    best = np.partition(logits, -2, axis=1)[:, -2:]
    return float((best[:, 1] - best[:, 0]).min())
