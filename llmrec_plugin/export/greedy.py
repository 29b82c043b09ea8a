"""Exported generators run the plain way: always the most probable token. What the gate compares with PyTorch.

A decoder takes prompts and gives logits (rows, vocabulary) float32 for the next token of each, then one more token of
each row at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llmrec_plugin.export.attention import PAST, PRESENT, SEQLENS, TOTAL
from llmrec_plugin.export.generator_graphs import DECODER, DECODER_WITH_PAST, ENCODER
from llmrec_plugin.export.rotary import POSITIONS
from llmrec_plugin.export.selection import LOGIT_POSITIONS, LOGITS
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.pipeline.batching import pad
from llmrec_plugin.runtime.session import open_session

Prompt = Sequence[int]


class Decoder(Protocol):
    """One batch of rows that are written together."""

    def start(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Begins a batch; the logits behind each prompt, (rows, vocabulary) float32."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Appends a token to each row, (rows) int64; the logits behind them, (rows, vocabulary) float32."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written for a prompt.

    Attributes:
        tokens: The tokens, the one that ends included.
        logits: From which each was chosen, (tokens, vocabulary) float32.
    """

    tokens: tuple[int, ...]
    logits: np.ndarray


def write(decoder: Decoder, prompts: Sequence[Prompt], new_tokens: int, ends: Sequence[int]) -> list[Written]:
    """At most `new_tokens` most probable tokens after each prompt, in their order; a row stops after one of `ends`."""
    logits = [decoder.start(prompts)]
    tokens = [logits[0].argmax(1)]
    while len(tokens) < new_tokens and not np.isin(tokens, ends).any(0).all():
        logits.append(decoder.step(tokens[-1]))
        tokens.append(logits[-1].argmax(1))
    chosen, seen = np.stack(tokens, 1), np.stack(logits, 1)  # (rows, steps), (rows, steps, vocabulary)
    ended = np.isin(chosen, ends)
    lengths = np.where(ended.any(1), ended.argmax(1) + 1, chosen.shape[1])
    return [
        Written(tokens=tuple(row[:length].tolist()), logits=scores[:length])
        for row, scores, length in zip(chosen, seen, lengths, strict=True)
    ]


class PlainDecoder:
    """A causal graph as Optimum writes it: padded on the left, the cache grows.

    Args:
        folder: Folder with the graph.
        pad_token_id: Token id used for padding.
    """

    def __init__(self, folder: Path, pad_token_id: int) -> None:
        self._session = open_session(folder / GRAPH, device="cpu")
        self._pad = pad_token_id
        self._names = {item.name for item in self._session.get_inputs()}
        self._outputs = [item.name for item in self._session.get_outputs()]

    def start(self, prompts: Sequence[Prompt]) -> np.ndarray:
        ids, self._mask = pad(prompts, self._pad, "left")
        self._cache = {
            item.name: np.zeros((len(prompts), item.shape[1], 0, item.shape[3]), np.float32)
            for item in self._session.get_inputs()
            if item.name.startswith(PAST)
        }
        return self._run(ids)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        self._mask = np.concatenate([self._mask, np.ones((len(tokens), 1), np.int64)], 1)
        return self._run(tokens[:, None])

    def _run(self, ids: np.ndarray) -> np.ndarray:
        positions = np.maximum(self._mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": self._mask, "position_ids": positions, **self._cache}
        feeds = {name: value for name, value in feeds.items() if name in self._names}
        found = dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        self._cache = {name.replace(PRESENT, PAST): found[name] for name in found if name.startswith(PRESENT)}
        return np.asarray(found[LOGITS][:, -1])


class FusedDecoder:
    """A fused causal graph: padded on the right, each row at its own length, the cache in place.

    Args:
        folder: Folder with the graph.
        pad_token_id: Token id used for padding.
        capacity: Tokens for which the cache has room.
    """

    def __init__(self, folder: Path, pad_token_id: int, capacity: int) -> None:
        self._session = open_session(folder / GRAPH, device="cpu")
        self._inputs = {item.name for item in self._session.get_inputs()}
        self._pad, self._capacity = pad_token_id, capacity

    def start(self, prompts: Sequence[Prompt]) -> np.ndarray:
        shapes = {item.name: item.shape for item in self._session.get_inputs() if item.name.startswith(PAST)}
        # Numbers that must not matter, as a buffer that is used again holds them.
        self._cache = {
            name: np.full((len(prompts), shape[1], self._capacity, shape[3]), 7.0, np.float32)
            for name, shape in shapes.items()
        }
        self._lengths = np.zeros(len(prompts), np.int64)
        ids, mask = pad(prompts, self._pad, "right")
        return self._run(ids, mask.sum(1))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._run(tokens[:, None], np.ones(len(tokens), np.int64))

    def extend(self, tokens: Prompt) -> np.ndarray:
        """Appends several tokens to the only row; the logits behind them, (1, vocabulary) float32."""
        return self._run(np.array([tokens], np.int64), np.array([len(tokens)]))

    def _run(self, ids: np.ndarray, new: np.ndarray) -> np.ndarray:
        positions = self._lengths[:, None] + np.arange(ids.shape[1])
        last = np.arange(len(ids)) * ids.shape[1] + new - 1
        self._lengths = self._lengths + new
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.ascontiguousarray(ids))
        if POSITIONS in self._inputs:
            binding.bind_cpu_input(POSITIONS, positions)
        binding.bind_cpu_input(SEQLENS, (self._lengths - 1).astype(np.int32))
        binding.bind_cpu_input(TOTAL, np.array(self._lengths.max(), np.int32))
        binding.bind_cpu_input(LOGIT_POSITIONS, last)
        values = require("onnxruntime").OrtValue
        for name, cache in self._cache.items():
            shared = values.ortvalue_from_numpy(cache)  # on the CPU the array's own memory
            binding.bind_ortvalue_input(name, shared)
            binding.bind_ortvalue_output(name.replace(PAST, PRESENT), shared)
        binding.bind_output(LOGITS, "cpu")
        self._session.run_with_iobinding(binding)
        return np.asarray(binding.get_outputs()[-1].numpy())


class InTwoPieces:
    """A fused decoder whose prompts, one at a time, are read in two pieces, as behind a common prefix."""

    def __init__(self, decoder: FusedDecoder) -> None:
        self._decoder = decoder

    def start(self, prompts: Sequence[Prompt]) -> np.ndarray:
        (prompt,) = prompts
        middle = (len(prompt) + 1) // 2
        self._decoder.start([prompt[:middle]])
        return self._decoder.extend(prompt[middle:])

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._decoder.step(tokens)


class Seq2SeqDecoder:
    """The three graphs of an encoder-decoder; prompts are padded on the right.

    Args:
        folder: Folder with the graphs.
        pad_token_id: Token id used for padding.
        start_token_id: First input of the decoder.
    """

    def __init__(self, folder: Path, pad_token_id: int, start_token_id: int) -> None:
        self._encoder, self._first, self._later = (
            open_session(folder / name, device="cpu") for name in (ENCODER, DECODER, DECODER_WITH_PAST)
        )
        self._pad, self._start = pad_token_id, start_token_id

    def start(self, prompts: Sequence[Prompt]) -> np.ndarray:
        ids, self._mask = pad(prompts, self._pad, "right")
        (self._states,) = self._encoder.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": self._mask})
        self._cache: dict[str, np.ndarray] = {}
        return self._run(self._first, np.full((len(prompts), 1), self._start, np.int64))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._run(self._later, tokens[:, None])

    def _run(self, session: Any, ids: np.ndarray) -> np.ndarray:
        names = {item.name for item in session.get_inputs()}
        feeds = {"input_ids": ids, "encoder_attention_mask": self._mask, "encoder_hidden_states": self._states}
        feeds = {name: value for name, value in {**feeds, **self._cache}.items() if name in names}
        outputs = [item.name for item in session.get_outputs()]
        found = dict(zip(outputs, session.run(outputs, feeds), strict=True))
        self._cache |= {name.replace(PRESENT, PAST): found[name] for name in found if name.startswith(PRESENT)}
        return np.asarray(found[LOGITS][:, -1])
