"""Static batches for graphs as Optimum exports them: any architecture, decoders and encoder-decoders.

Rows of similar length begin together. Such a graph gives back a longer cache each step, so rows that end are taken out
of the batch when they are a quarter of it, and none enter. Prompts of a decoder are padded on the left; positions count
real tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmrec_plugin.manifests import GeneratorManifest
from llmrec_plugin.pipeline.batching import pad
from llmrec_plugin.runtime.generation.scoring import Question, ScoredRow, consume_scores
from llmrec_plugin.runtime.generation.writing import Row, Writing

if TYPE_CHECKING:
    import onnxruntime

ROWS = 32
LOGIT_BYTES = 256 * 2**20
"""Such a graph gives the logits of every token of a prompt; batches are made so small that they fit into this."""
COMPACT_AT = 0.75

_PAST, _PRESENT = "past_key_values", "present"


class Batch(Protocol):
    """Rows that are written together."""

    def start(self, prompts: Sequence[np.ndarray], beginning: Sequence[int]) -> np.ndarray:
        """Reads prompts and, after each, tokens that are the same for all; gives the logits behind, (n, vocab)."""

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Reads a token per row, (n,) int64; the logits behind, (n, vocab) float32."""

    def select(self, rows: np.ndarray) -> None:
        """Goes on with these rows, in this order; a row may come more than once."""

    def state(self) -> Any:
        """Where the batch is; `restore` brings it back there."""

    def restore(self, state: Any) -> None: ...


class CausalBatch:
    """A decoder.

    Args:
        session: The open graph.
        manifest: The model.
        prefix: Cache of what the prompts begin with, (1, kv_heads, length, head_dim) float32 by name; prompts come
            without it.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        manifest: GeneratorManifest,
        prefix: dict[str, np.ndarray] | None = None,
    ) -> None:
        self._session = session
        self._pad = manifest.pad_token_id
        self._names = {item.name for item in session.get_inputs()}
        self._outputs = [item.name for item in session.get_outputs() if item.name == "logits" or _PRESENT in item.name]
        self._prefix = prefix or {
            name: np.zeros((1, manifest.kv_heads, 0, manifest.head_dim), dtype=np.float32)
            for name in self._names
            if name.startswith(_PAST)
        }

    def start(self, prompts: Sequence[np.ndarray], beginning: Sequence[int] = ()) -> np.ndarray:
        ids, mask = pad([[*prompt, *beginning] for prompt in prompts], self._pad, "left")
        rows = len(prompts)
        known = next(iter(self._prefix.values())).shape[2]
        self._cache = {name: np.repeat(values, rows, axis=0) for name, values in self._prefix.items()}
        self._mask = np.concatenate([np.ones((rows, known), dtype=np.int64), mask], axis=1)
        return self._run(ids)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        self._mask = np.concatenate([self._mask, np.ones((len(tokens), 1), dtype=np.int64)], axis=1)
        return self._run(tokens[:, None])

    def select(self, rows: np.ndarray) -> None:
        self._mask = self._mask[rows]
        self._cache = {name: values[rows] for name, values in self._cache.items()}

    def state(self) -> Any:
        return self._mask, self._cache

    def restore(self, state: Any) -> None:
        self._mask, self._cache = state

    def prefix(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The cache after one sequence, for `prefix` of other batches."""
        self.start([ids])
        return self._cache

    def _run(self, ids: np.ndarray) -> np.ndarray:
        positions = np.maximum(self._mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": self._mask, "position_ids": positions}
        feeds = {name: values for name, values in feeds.items() if name in self._names}
        found = dict(zip(self._outputs, self._session.run(self._outputs, {**feeds, **self._cache}), strict=True))
        logits = found.pop("logits")
        self._cache = {name.replace(_PRESENT, _PAST): values for name, values in found.items()}
        return np.asarray(logits[:, -1])


class Seq2SeqBatch:
    """An encoder-decoder. The encoder runs once; what the decoder keeps of it is handed on as it is.

    Args:
        encoder: Reads the prompts.
        decoder: Writes the first token.
        decoder_with_past: Writes the others.
        manifest: The model.
    """

    def __init__(
        self,
        encoder: onnxruntime.InferenceSession,
        decoder: onnxruntime.InferenceSession,
        decoder_with_past: onnxruntime.InferenceSession,
        manifest: GeneratorManifest,
    ) -> None:
        self._encoder, self._first, self._later = encoder, decoder, decoder_with_past
        self._manifest = manifest

    def start(self, prompts: Sequence[np.ndarray], beginning: Sequence[int] = ()) -> np.ndarray:
        ids, mask = pad([prompt.tolist() for prompt in prompts], self._manifest.pad_token_id, "right")
        names = {item.name for item in self._encoder.get_inputs()}
        feeds = {"input_ids": ids, "attention_mask": mask}
        states = self._encoder.run(["last_hidden_state"], {name: feeds[name] for name in feeds if name in names})[0]
        self._read = {"encoder_attention_mask": mask, "encoder_hidden_states": states}
        self._cross: dict[str, np.ndarray] = {}
        self._cache: dict[str, np.ndarray] = {}
        self._sources = np.arange(len(prompts))
        first = self._manifest.decoder_start_token_id
        assert first is not None
        return self._run(self._first, np.tile(np.array([first, *beginning], dtype=np.int64), (len(prompts), 1)))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return self._run(self._later, tokens[:, None])

    def select(self, rows: np.ndarray) -> None:
        sources = self._sources[rows]
        if not np.array_equal(sources, self._sources):  # else beams changed places within a request
            self._read = {name: values[rows] for name, values in self._read.items()}
            self._cross = {name: values[rows] for name, values in self._cross.items()}
            self._sources = sources
        self._cache = {name: values[rows] for name, values in self._cache.items()}

    def state(self) -> Any:
        return dict(self._cache)

    def restore(self, state: Any) -> None:
        self._cache = dict(state)

    def _run(self, session: onnxruntime.InferenceSession, ids: np.ndarray) -> np.ndarray:
        names = {item.name for item in session.get_inputs()}
        feeds = {"input_ids": ids, **self._read, **self._cross, **self._cache}
        outputs = [item.name for item in session.get_outputs() if item.name == "logits" or _PRESENT in item.name]
        found = session.run(outputs, {name: values for name, values in feeds.items() if name in names})
        for name, values in zip(outputs, found, strict=True):
            if name == "logits":
                logits = values
            else:
                kept = self._cross if ".encoder." in name else self._cache
                kept[name.replace(_PRESENT, _PAST)] = values
        return np.asarray(logits[:, -1])


def plan(lengths: Sequence[int], vocab_size: int, most: int = ROWS) -> list[list[int]]:
    """Positions in batches of similar length, longest first.

    Args:
        lengths: Tokens of each prompt that the graph gives logits of.
        vocab_size: Length of the logits.
        most: Rows of a batch.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches = []
    while order:
        rows = max(LOGIT_BYTES // (max(lengths[order[0]], 1) * vocab_size * 4), 1)
        rows = min(rows, most)
        batches.append(order[:rows])
        order = order[rows:]
    return batches


def write_batch(
    batch: Batch, prompts: Sequence[np.ndarray], rows: list[Row], writing: Writing, finished: Callable[[Row], None]
) -> None:
    """Writes rows that have just begun; all must begin with the same tokens."""
    logits = batch.start(prompts, rows[0].fresh)
    pending: list[list[int]] = [[] for _ in rows]
    while True:
        wanted = [i for i, row in enumerate(rows) if not row.over and not pending[i]]
        if wanted:
            writing.choose([rows[i] for i in wanted], logits[wanted])
        for i in wanted:
            pending[i] = list(rows[i].fresh)
            if rows[i].over:
                finished(rows[i])
        going = [i for i, row in enumerate(rows) if not row.over]
        if not going:
            return
        if len(going) <= COMPACT_AT * len(rows):
            batch.select(np.array(going))
            rows, pending = [rows[i] for i in going], [pending[i] for i in going]
        logits = batch.step(np.array([queue.pop(0) if queue else 0 for queue in pending], dtype=np.int64))


def search_batch(
    batch: Batch, prompts: Sequence[np.ndarray], rows: list[Row], writing: Writing, finished: Callable[[Row], None]
) -> None:
    """Beam search of rows that have just begun; all must begin with the same tokens."""
    logits = batch.start(prompts, rows[0].fresh)
    places = [[i] for i in range(len(rows))]
    while True:
        picked: list[int] = []
        tokens: list[int] = []
        going: list[tuple[Row, list[int]]] = []
        for row, mine in zip(rows, places, strict=True):
            parents = writing.search(row, logits[mine])
            if row.over:
                finished(row)
                continue
            assert row.beams is not None
            going.append((row, list(range(len(picked), len(picked) + len(parents)))))
            picked += [mine[parent] for parent in parents]
            tokens += [hypothesis.tokens[-1] for hypothesis in row.beams.running]
        if not going:
            return
        rows, places = [row for row, _ in going], [mine for _, mine in going]
        if picked != list(range(len(logits))):
            batch.select(np.array(picked))
        logits = batch.step(np.array(tokens, dtype=np.int64))


def score_batch(
    batch: Batch, prompts: Sequence[np.ndarray], rows: Sequence[ScoredRow], questions: Sequence[Question]
) -> None:
    """Scores the answers of each prompt."""
    logits = batch.start(prompts, ())
    states = [batch.state()]  # after each token of the path at hand
    for question, following in zip(questions, [*questions[1:], None], strict=True):
        consume_scores(rows, logits)
        if following is None:
            return
        shared = 0
        while shared < min(len(question.path), len(following.path)) and question.path[shared] == following.path[shared]:
            shared += 1
        del states[shared + 1 :]
        batch.restore(states[shared])
        for token in following.path[shared:]:
            logits = batch.step(np.full(len(prompts), token, dtype=np.int64))
            states.append(batch.state())
