"""Exported generators in ONNX Runtime: the built-in `GenerationSession`."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmrec_plugin.artifacts import GeneratorArtifact
from llmrec_plugin.errors import ArtifactCorruptError, InputError, ParityError, ProviderError
from llmrec_plugin.generation import Completion, Request
from llmrec_plugin.inference import Device
from llmrec_plugin.manifests import GOLDEN_PROMPTS, GRAPH, TOKENIZER
from llmrec_plugin.runtime.generation.constraints import Constraint, constraint_of, forced_beginning
from llmrec_plugin.runtime.generation.graphs import FusedGraph
from llmrec_plugin.runtime.generation.plain import (
    Batch,
    CausalBatch,
    Seq2SeqBatch,
    plan,
    score_batch,
    search_batch,
    write_batch,
)
from llmrec_plugin.runtime.generation.prompts import EncodedPrompt, PromptTokenizer, common_prefix, encode_requests
from llmrec_plugin.runtime.generation.scoring import ScoredRow, consume_scores, questions_of
from llmrec_plugin.runtime.generation.slots import Entry, Slots, search, work
from llmrec_plugin.runtime.generation.writing import Row, Writing
from llmrec_plugin.runtime.memory import run_halving
from llmrec_plugin.runtime.providers import CPU
from llmrec_plugin.runtime.session import open_session
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import Decoding, Output, ShortText, to_spec

logger = logging.getLogger(__name__)

ENCODER, DECODER, DECODER_WITH_PAST = "encoder.onnx", "decoder.onnx", "decoder_with_past.onnx"

SLOTS = 96
"""Rows of a step; see docs/adr/0018-one-token-per-slot.md for what others took."""
LEAST_ROWS = 8
"""Rows that are worth a thread of their own."""
CACHE_BYTES = 512 * 2**20
"""Of keys and values; there are fewer slots where rows are so long that this is not enough."""
TWICE_BYTES = 512 * 2**20
"""Of a graph that is opened twice: for one run in all threads, and for a run in each."""
LEAST_PREFIX = 8
"""Fewer shared tokens are not worth a run of their own."""
PREFIXES = 4
"""Prefixes that are kept between calls: the instructions of a feature are read once per process."""

Finished = Callable[[int, Completion], None]


def open_generator(artifact: GeneratorArtifact, *, device: Device, threads: int | None = None) -> OnnxGenerator:
    """An exported generator in ONNX Runtime.

    Args:
        artifact: The model; its files were compared with their hashes.
        device: ``cuda`` must be usable, ``auto`` takes a GPU where it works, ``cpu`` never does.
        threads: CPU threads; None is what the settings say.

    Raises:
        ProviderError: The device is not usable.
        ParityError: A golden prompt does not give its recorded tokens here.
        MissingExtraError: onnxruntime is not installed.
    """
    generator = OnnxGenerator(artifact, device=device, threads=threads or load_settings().threads)
    generator.check_golden_prompts()
    return generator


class OnnxGenerator:
    """A `GenerationSession` on ONNX Runtime.

    One call computes at a time; others wait for it.

    Args:
        artifact: The model.
        device: See `open_generator`.
        threads: CPU threads.

    Attributes:
        artifact: The model.
        provider: What computes, e.g. ``CPUExecutionProvider``.
        steps: Runs of the graph so far.
    """

    def __init__(self, artifact: GeneratorArtifact, *, device: Device, threads: int) -> None:
        self.artifact = artifact
        self._lock = threading.Lock()
        self._source = artifact.path(TOKENIZER).read_text(encoding="utf-8")
        self._tokenizer = PromptTokenizer(self._source)
        self._constraints: dict[str, Constraint | None] = {}
        self._engine: FusedEngine | PlainEngine
        if artifact.manifest.attention == "fused":
            self._engine = FusedEngine(artifact, device, threads)
        else:
            self._engine = PlainEngine(artifact, device, threads)
        self.provider = self._engine.provider

    @property
    def steps(self) -> int:
        return self._engine.steps

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        output: Output | None = None,
        *,
        done: Finished | None = None,
    ) -> list[Completion]:
        """See `llmrec_plugin.generation.GenerationSession.generate`."""
        if not requests:
            return []
        prompts = encode_requests(requests, self.artifact.manifest, self._tokenizer, decoding.max_new_tokens)
        writing = self._writing(decoding, output)
        completions: list[Completion | None] = [None] * len(requests)
        telling = threading.Lock()

        def write(positions: Sequence[int]) -> None:
            left = [i for i in positions if completions[i] is None]

            def finished(row: Row) -> None:
                position = left[row.index]
                completion = writing.completion(row)
                completions[position] = completion
                if done is not None:
                    with telling:
                        done(position, completion)

            if left:
                seeds = [requests[i].seed for i in left]
                self._engine.write([prompts[i] for i in left], seeds, writing, decoding, finished)

        with self._lock:
            run_halving(write, range(len(requests)), f"Model {self.artifact.manifest.model!r}")
        assert all(completion is not None for completion in completions)
        return [completion for completion in completions if completion is not None]

    def score(self, requests: Sequence[Request], answers: Sequence[str]) -> np.ndarray:
        """See `llmrec_plugin.generation.GenerationSession.score`."""
        scores = np.full((len(requests), len(answers)), np.nan, dtype=np.float32)
        spelled = self._tokenizer.data(answers)
        wrong = [answer for answer, ids in zip(answers, spelled, strict=True) if not ids]
        if wrong or not answers:
            raise InputError(f"Answers to score must have one token or more, got {wrong or 'no answers'}.")
        if requests:
            room = max(map(len, spelled))
            prompts = encode_requests(requests, self.artifact.manifest, self._tokenizer, room)

            def score(positions: Sequence[int]) -> None:
                found = np.full((len(positions), len(answers)), np.nan, dtype=np.float32)
                self._engine.score([prompts[i] for i in positions], spelled, found)
                scores[positions] = found

            with self._lock:
                run_halving(score, range(len(requests)), f"Model {self.artifact.manifest.model!r}")
        return scores

    def check_golden_prompts(self) -> None:
        """Compares what is written for the golden prompts with what is recorded.

        Raises:
            ParityError: Other tokens are written here.
            ArtifactCorruptError: The file cannot be read.
        """
        manifest = self.artifact.manifest
        count, golden = self._golden(self.artifact.path(GOLDEN_PROMPTS))
        decoding = Decoding(max_new_tokens=count)
        writing = self._writing(decoding, None)
        rows: list[Row] = []
        with self._lock:
            prompts = [EncodedPrompt(ids, 0) for ids, _ in golden]
            self._engine.write(prompts, [0] * len(prompts), writing, decoding, rows.append)
        for row in rows:
            ids, expected = golden[row.index]
            if row.tokens != expected:
                raise ParityError(
                    f"Model {manifest.model!r} (artifact {self.artifact.id[:16]}) in onnxruntime on {self.provider}: "
                    f"golden prompt {self._tokenizer.decode(ids.tolist())!r:.60} gives the tokens {row.tokens[:8]}, "
                    f"expected {expected[:8]} at the beginning, and {len(row.tokens)} of them, expected "
                    f"{len(expected)}. It computes other numbers than the model did at export; try LLMREC_DEVICE=cpu, "
                    "another version of onnxruntime, or export again."
                )

    def _golden(self, path: Path) -> tuple[int, list[tuple[np.ndarray, list[int]]]]:
        """Tokens that are written at most, and the ids of each prompt with the tokens after it."""
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            items = [(np.array(item["ids"], dtype=np.int64), list(item["tokens"])) for item in content["prompts"]]
            return int(content["max_new_tokens"]), items
        except (OSError, ValueError, TypeError, KeyError) as exc:
            raise ArtifactCorruptError(
                f"{path} holds no golden prompts: {exc}. Run `llmrec export {self.artifact.manifest.model}` again."
            ) from exc

    def _writing(self, decoding: Decoding, output: Output | None) -> Writing:
        manifest = self.artifact.manifest
        stop = output.stop if isinstance(output, ShortText) else ()
        beginning = forced_beginning(output, self._tokenizer)
        return Writing(decoding, manifest, self._tokenizer, self._constraint(output), beginning, stop)

    def _constraint(self, output: Output | None) -> Constraint | None:
        """Kept, because a vocabulary of thousands takes a while to spell; it is never changed."""
        key = "" if output is None else json.dumps(to_spec(output), sort_keys=True)
        if key not in self._constraints:
            manifest, tokenizer = self.artifact.manifest, self._tokenizer
            self._constraints[key] = constraint_of(output, manifest, tokenizer, lambda: self._source)
        return self._constraints[key]


def _open(graph: Path, device: Device, threads: int) -> Any:
    """A session; ``auto`` takes the CPU where a GPU lacks kernels for the graph, as it may for attention in float32."""
    try:
        return open_session(graph, device=device, threads=threads)
    except ProviderError as exc:
        if device != "auto":
            raise
        logger.info("LLMREC_DEVICE=auto takes the CPU: %s", exc)
        return open_session(graph, device="cpu", threads=threads)


class FusedEngine:
    """Continuous batching, for graphs whose cache stays in place.

    Args:
        artifact: The model.
        device: See `open_generator`.
        threads: CPU threads. Steps of different rows run at a time in as many: that scales better than one step in
            several threads, which is for few rows.
        slots: Rows of a step.
    """

    def __init__(self, artifact: GeneratorArtifact, device: Device, threads: int, *, slots: int = SLOTS) -> None:
        self._manifest = artifact.manifest
        self._path, self._device = artifact.path(GRAPH), device
        self._graph = FusedGraph(_open(self._path, device, threads), artifact.manifest)
        self._of_one_thread: FusedGraph | None = None
        self.provider = self._graph.provider
        self.slots = slots
        self.workers = threads if self.provider == CPU else 1
        self._prefixes: OrderedDict[tuple[int, ...], np.ndarray] = OrderedDict()
        self.steps = 0
        self.tokens = 0

    def write(
        self,
        prompts: Sequence[EncodedPrompt],
        seeds: Sequence[int],
        writing: Writing,
        decoding: Decoding,
        finished: Callable[[Row], None],
    ) -> None:
        """Writes one row per prompt.

        Args:
            prompts: What to read.
            seeds: Of the draws of each.
            writing: How rows are written.
            decoding: What `writing` was made of.
            finished: Called with each row as soon as it is over, from any thread.
        """
        capacity = max(len(prompt.ids) for prompt in prompts) + decoding.max_new_tokens
        prefix = self._prefix(prompts)
        order = sorted(range(len(prompts)), key=lambda position: -len(prompts[position].ids))
        waiting = deque(Entry(prompts[i].ids, partial(writing.begin, i, seeds[i], len(prompts[i].ids))) for i in order)
        if decoding.method == "beam":
            rows = len(prompts) * decoding.beams
            self._run(rows, capacity, prefix, lambda slots: search(slots, waiting, writing, finished), decoding.beams)
        else:
            self._run(len(prompts), capacity, prefix, lambda slots: work(slots, waiting, writing.choose, finished))

    def score(self, prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[int]], scores: np.ndarray) -> None:
        """Fills in the log probability of each answer, (prompts, answers) float32."""
        questions = questions_of(answers)
        capacity = max(len(prompt.ids) for prompt in prompts) + max(map(len, answers))
        order = sorted(range(len(prompts)), key=lambda position: -len(prompts[position].ids))
        waiting = deque(
            Entry(prompts[i].ids, partial(ScoredRow, i, len(prompts[i].ids), questions, scores[i])) for i in order
        )
        prefix = self._prefix(prompts)
        self._run(len(prompts), capacity, prefix, lambda slots: work(slots, waiting, consume_scores, lambda row: None))

    def _run(
        self,
        rows: int,
        capacity: int,
        prefix: np.ndarray | None,
        job: Callable[[Slots], None],
        least: int = 1,
    ) -> None:
        """Runs the job in as many threads as rows are worth, with as many slots as there is memory for."""
        workers = max(min(self.workers, rows // max(LEAST_ROWS, least)), 1)
        most = CACHE_BYTES // (capacity * self._graph.bytes_per_token * workers)
        slots = max(min(self.slots, -(-rows // workers), most), least)
        graph = self._graph if workers == 1 else self._graph_of_one_thread()
        parts = [Slots(graph, graph.new_cache(slots, capacity), prefix) for _ in range(workers)]
        if workers == 1:
            job(parts[0])
        else:
            with ThreadPoolExecutor(workers, thread_name_prefix="llmrec-generate") as pool:
                list(pool.map(job, parts))  # list() re-raises what a worker raised
        self.steps += sum(part.steps for part in parts)
        self.tokens += sum(part.tokens for part in parts)

    def _graph_of_one_thread(self) -> FusedGraph:
        """For several runs at a time: they would wait for each other's threads."""
        if self._of_one_thread is None:
            size = sum(path.stat().st_size for path in self._path.parent.glob(f"{self._path.name}*"))
            if size > TWICE_BYTES:
                return self._graph
            self._of_one_thread = FusedGraph(_open(self._path, self._device, 1), self._manifest)
        return self._of_one_thread

    def _prefix(self, prompts: Sequence[EncodedPrompt]) -> np.ndarray | None:
        """The cache of what all prompts begin with.

        Of a single prompt that is its instructions, which the next one will have, too.
        """
        ids = [prompt.ids for prompt in prompts]
        shortest = min(map(len, ids)) - 1  # a token must be left, behind which there are logits
        head = min(prompt.head for prompt in prompts)
        shared = min(common_prefix(ids), shortest) if len(ids) > 1 else min(head, shortest)
        if head <= shared < head + LEAST_PREFIX:
            shared = head  # some data that begins alike would make a prefix of its own each time
        if shared < LEAST_PREFIX:
            return None
        key = tuple(ids[0][:shared].tolist())
        if key not in self._prefixes:
            self._prefixes[key] = self._read_prefix(ids[0][:shared])
            while len(self._prefixes) > PREFIXES:
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def _read_prefix(self, ids: np.ndarray) -> np.ndarray:
        known = [values for key, values in self._prefixes.items() if key == tuple(ids[: len(key)].tolist())]
        start = max(known, key=lambda values: values.shape[2], default=None)
        slots = Slots(self._graph, self._graph.new_cache(1, len(ids) + 1), start)
        slots.enter(np.append(ids, ids[-1:]))
        slots.read_ahead(0)
        self.steps += slots.steps
        self.tokens += slots.tokens
        return slots.prefix(len(ids))


class PlainEngine:
    """Static batches, for graphs as they were exported.

    Args:
        artifact: The model.
        device: See `open_generator`.
        threads: CPU threads.
    """

    def __init__(self, artifact: GeneratorArtifact, device: Device, threads: int) -> None:
        self._manifest = artifact.manifest
        causal = artifact.manifest.task == "causal"
        names = [GRAPH] if causal else [ENCODER, DECODER, DECODER_WITH_PAST]
        self._sessions = [_open(artifact.path(name), device, threads) for name in names]
        self.provider: str = self._sessions[-1].get_providers()[0]
        self.steps = 0

    def write(
        self,
        prompts: Sequence[EncodedPrompt],
        seeds: Sequence[int],
        writing: Writing,
        decoding: Decoding,
        finished: Callable[[Row], None],
    ) -> None:
        """See `FusedEngine.write`."""
        rows = [writing.begin(i, seed, len(prompts[i].ids)) for i, seed in enumerate(seeds)]
        for row in rows:
            if row.over:
                finished(row)
        going = [row for row in rows if not row.over]
        function = search_batch if decoding.method == "beam" else write_batch
        for batch, ids, positions in self._batches([prompts[row.index].ids for row in going]):
            function(batch, ids, [going[position] for position in positions], writing, finished)

    def score(self, prompts: Sequence[EncodedPrompt], answers: Sequence[Sequence[int]], scores: np.ndarray) -> None:
        """See `FusedEngine.score`."""
        questions = questions_of(answers)
        for batch, ids, positions in self._batches([prompt.ids for prompt in prompts]):
            rows = [ScoredRow(i, len(prompts[i].ids), questions, scores[i]) for i in positions]
            score_batch(batch, ids, rows, questions)

    def _batches(self, prompts: Sequence[np.ndarray]) -> list[tuple[Batch, list[np.ndarray], list[int]]]:
        """Batches, the prompts of each without what is shared, and their positions."""
        if not prompts:
            return []
        if self._manifest.task == "seq2seq":
            encoder, decoder, decoder_with_past = self._sessions
            batch: Batch = Seq2SeqBatch(encoder, decoder, decoder_with_past, self._manifest)
            return [(batch, [prompts[i] for i in rows], rows) for rows in plan([1] * len(prompts), 1)]
        shared = min(common_prefix(prompts), min(map(len, prompts)) - 1) if len(prompts) > 1 else 0
        prefix = None
        if shared >= LEAST_PREFIX:
            prefix = CausalBatch(self._sessions[0], self._manifest).prefix(prompts[0][:shared])
        else:
            shared = 0
        batch = CausalBatch(self._sessions[0], self._manifest, prefix)
        lengths = [len(prompt) - shared for prompt in prompts]
        plans = plan(lengths, self._manifest.vocab_size)
        return [(batch, [prompts[i][shared:] for i in rows], rows) for rows in plans]
