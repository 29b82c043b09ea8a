"""Rows -> values of a bound feature: assemble, look up, compute what is missing, post-process.

Vectors of texts are computed here; what a model writes, by `llmrec_plugin.runtime.writer`; values of networks over
columns by `llmrec_plugin.runtime.networks`.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundColumn, BoundFeature, BoundNetwork, BoundTokens
from llmrec_plugin.keys import load_noise_key
from llmrec_plugin.networks import Tokens
from llmrec_plugin.pipeline.assemble import Assembled, assemble
from llmrec_plugin.pipeline.columns import Status, Value, Written, as_text, fallback_of
from llmrec_plugin.pipeline.networks import MAX_CHARS, Rows, estimated_work
from llmrec_plugin.pipeline.networks import read_rows as read_network_rows
from llmrec_plugin.pipeline.postprocess import combine, finish
from llmrec_plugin.pipeline.prompts import read_rows
from llmrec_plugin.pipeline.redaction import redact_columns
from llmrec_plugin.pipeline.text import clean
from llmrec_plugin.runtime import observers
from llmrec_plugin.runtime.cache import RunReport, ValueCache
from llmrec_plugin.runtime.counts import RequestCounts
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.microbatch import MicroBatcher, Prepared
from llmrec_plugin.runtime.models import Models
from llmrec_plugin.runtime.networks import ROWS_PER_CALL, WORK_PER_BATCH, Result
from llmrec_plugin.runtime.private import privatized, without_user
from llmrec_plugin.runtime.writer import KEYS_PER_CALL, Outcome, Writer
from llmrec_plugin.settings import Settings
from llmrec_plugin.specs import NetworkFeature, OnEmpty, TextFeature
from llmrec_plugin.specs.networks import columns_of_source

logger = logging.getLogger(__name__)

T = TypeVar("T")
Mode = Literal["batch", "on_demand", "historical", "push"]
_REQUESTS: tuple[Mode, ...] = ("on_demand", "push")  # few rows and somebody waits: no progress bar, no report kept

_COUNTS_OF_PARTS = ("texts", "cached", "computed", "tokens")
WRITING_TOKENS = 16_384
"""Tokens, read and written, of the requests that a generator takes at a time."""
CHARACTERS_PER_TOKEN = 4
"""Of English; how long a text is, is only guessed while it waits."""


class Computed(NamedTuple):
    """The values of n rows, in their order.

    Attributes:
        values: Per row a (dims,) float32 vector, what a model wrote, a network's number, or None.
        statuses: Per row why its value is what it is.
        report: What computing them took.
        invalid: Row number -> why the row has no value: it could not be read, or what the model gave is not valid.
        unanswered: Row number -> why an engine gave no answer, though it may give one another time.
    """

    values: list[Value]
    statuses: list[Status]
    report: RunReport
    invalid: dict[int, str]
    unanswered: Mapping[int, str] = MappingProxyType({})

    def unanswered_summary(self, name: str) -> str:
        """How many rows got no answer and why the first did not, for messages."""
        reason = next(iter(self.unanswered.values()))
        return (
            f"Feature {name!r}: {len(self.unanswered)} of {len(self.values)} rows got no answer from the model, "
            f"first: {reason}"
        )


class Runner:
    """Computes features in this process; loads each model once, when it is first needed.

    Args:
        settings: Where artifacts and the cache lie, and which device to use.
        cache: Instead of the one that the settings name.
    """

    def __init__(self, settings: Settings, cache: ValueCache | None = None) -> None:
        self.store = ArtifactStore(settings.artifact_folders)
        self.cache = cache or ValueCache(settings.cache_folder, settings.cache_max_bytes)
        self._settings = settings
        self.requests = RequestCounts()
        self.models = Models(settings, self.store)
        self._batchers: dict[str, MicroBatcher[Any]] = {}
        self._lock = threading.Lock()
        self._writer = Writer(settings, self.store, self.cache, self.models.encoder_of)

    def compute(
        self,
        bound: BoundColumn,
        columns: Mapping[str, Sequence[Any]],
        mode: Mode,
        *,
        called: float | None = None,
        quiet: bool = False,
    ) -> Computed:
        """The values of n rows.

        A row's value depends on that row alone. A row that cannot be read gives None and is counted. On demand,
        requests of all threads share batches, and a row that misses the feature's deadline falls back.

        Args:
            bound: The feature and its artifact.
            columns: The rows by column.
            mode: ``on_demand`` heeds the deadline; all but it and pushes are recorded and show their progress.
            called: `time.monotonic` from which the deadline counts; default: now.
            quiet: Show and record nothing; the rows are a part of a run that the caller reports.

        Raises:
            MissingColumnError: A declared column is not there.
            ArtifactError: The model is missing, damaged, or not what the feature declares.
            SettingsError: The feature has noise, and its key is not there.
        """
        clock = time.monotonic()
        called = clock if called is None else called
        if isinstance(bound, BoundTokens):
            computed = self._write_rows(bound, columns, mode, called, quiet=quiet)
        elif isinstance(bound, BoundNetwork):
            computed = self._run_rows(bound, columns, mode, called, quiet=quiet)
        elif bound.of is None:
            computed = self._embed_rows(bound, _assembled(bound, columns), columns, mode, called, quiet=quiet)
        else:
            written = self._write_rows(bound.of, columns, mode, called, quiet=quiet)
            texts = _of_known_users(bound, _texts(bound, written), columns)
            computed = self._embed_rows(bound, texts, columns, mode, called, quiet=quiet)
            computed = computed._replace(unanswered=written.unanswered)
        report = replace(computed.report, seconds=time.monotonic() - clock)
        if not quiet:
            self._warn(report, computed.invalid)
            self.record(report)
        return computed._replace(report=report)

    def _embed_rows(
        self,
        bound: BoundFeature,
        assembled: Assembled,
        columns: Mapping[str, Sequence[Any]],
        mode: Mode,
        called: float,
        *,
        quiet: bool,
    ) -> Computed:
        feature = bound.feature
        texts = list(dict.fromkeys(text for row in assembled.rows for text in row))
        vectors = self.cache.get_many(bound.encoding_fingerprint, texts) if texts else {}
        cached = len(vectors)
        missing = [text for text in texts if text not in vectors]
        late: set[str] = set()
        tokens = 0
        if missing and mode == "on_demand":
            late = self._encode_together(bound, missing, vectors, called)
        elif missing:
            tokens = self._encode(bound, missing, vectors, mode, quiet=quiet)

        values: list[Value] = []
        statuses: list[Status] = []
        invalid = dict(assembled.invalid)
        for number, row in enumerate(assembled.rows):
            if not row:
                values.append(None if number in invalid else _stand_in(feature, feature.on_empty))
                statuses.append("invalid" if number in invalid else "empty")
            elif all(text in vectors for text in row):
                values.append(combine(feature, [vectors[text] for text in row]))
                statuses.append("ok")
            elif late and not late.isdisjoint(row):
                values.append(_stand_in(feature, feature.on_deadline))
                statuses.append("fallback")
            else:
                values.append(None)
                statuses.append("invalid")
                invalid[number] = "the model gave a vector that is not finite"
        report = _report(bound, mode, statuses, texts=len(texts), cached=cached, computed=len(missing) - len(late))
        if feature.noise is not None:
            values, statuses = privatized(bound, feature.noise, values, statuses, assembled.rows, columns)
        return Computed(values, statuses, replace(report, invalid=len(invalid), tokens=tokens), invalid)

    def _write_rows(
        self, bound: BoundTokens, columns: Mapping[str, Sequence[Any]], mode: Mode, called: float, *, quiet: bool
    ) -> Computed:
        feature = bound.feature
        inputs = read_rows(feature, columns)
        keys = list(dict.fromkeys(key for key in inputs.keys if key is not None))
        outcomes = self._writer.known(bound, keys)
        cached = set(outcomes)
        missing = [key for key in keys if key not in cached]
        if missing and mode == "on_demand":
            outcomes |= self._write_together(bound, missing, called)
        elif missing:
            outcomes |= self._write(bound, missing, mode, quiet=quiet)

        fallback = fallback_of(feature)
        values: list[Value] = []
        statuses: list[Status] = []
        invalid, unanswered = dict(inputs.invalid), {}
        for number, key in enumerate(inputs.keys):
            outcome = None if key is None else outcomes.get(key)
            if key is None:
                values.append(None)
                statuses.append("invalid" if number in invalid else "empty")
            elif outcome is not None and outcome.written is not None:
                values.append(outcome.written)
                statuses.append("cached" if key in cached else "ok")
            else:  # late, or without a valid value
                values.append(fallback)
                statuses.append("invalid" if outcome is not None and fallback is None else "fallback")
                if outcome is not None and not outcome.lasting:
                    unanswered[number] = outcome.reason
                elif outcome is not None and fallback is None:
                    invalid[number] = outcome.reason
        computed = len(outcomes) - len(cached)
        report = _report(bound, mode, statuses, texts=len(keys), cached=len(cached), computed=computed)
        return Computed(values, statuses, report, invalid, unanswered)

    def _run_rows(
        self, bound: BoundNetwork, columns: Mapping[str, Sequence[Any]], mode: Mode, called: float, *, quiet: bool
    ) -> Computed:
        feature = bound.feature
        parts = {
            name: self._embed_rows(
                part,
                _of_known_users(part, assemble(part.feature, columns), columns),
                columns,
                mode,
                called,
                quiet=quiet,
            )
            for name, part in bound.timed_parts
        }
        read = self.read_network_rows(bound, columns, parts)
        late = {n for part in parts.values() for n, status in enumerate(part.statuses) if status == "fallback"}
        rows: list[str] = list(dict.fromkeys(row for row in read.rows if row is not None))
        found = self.cache.get_many(bound.encoding_fingerprint, rows) if rows else {}
        results: dict[str, Result] = {row: Result(value) for row, value in found.items()}
        missing = [row for row in rows if row not in results]
        if missing and mode == "on_demand":
            results |= self._run_together(bound, missing, called)
        elif missing:
            results |= self._run(bound, missing, mode, quiet=quiet)

        values: list[Value] = []
        statuses: list[Status] = []
        invalid = dict(read.invalid)
        for number, row in enumerate(read.rows):
            result = None if row is None else results.get(row)
            if result is not None and result.value is not None:
                values.append(result.value if feature.dims is not None else float(result.value[0]))
                statuses.append("ok")
            elif number in invalid or result is not None:
                values.append(None)
                statuses.append("invalid")
                invalid.setdefault(number, result.reason if result is not None else "")
            elif row is not None or number in late:
                values.append(_stand_in(feature, feature.on_deadline))
                statuses.append("fallback")
            else:
                values.append(_stand_in(feature, feature.on_empty))
                statuses.append("empty")
        report = _report(bound, mode, statuses, texts=len(rows), cached=len(found), computed=len(results) - len(found))
        if feature.noise is not None:
            inputs = [() if row is None else (row,) for row in read.rows]
            values, statuses = privatized(bound, feature.noise, values, statuses, inputs, columns)
        for part in parts.values():
            counts = {name: getattr(report, name) + getattr(part.report, name) for name in _COUNTS_OF_PARTS}
            report = replace(report, **counts)
        return Computed(values, statuses, replace(report, invalid=len(invalid)), invalid)

    def read_network_rows(
        self,
        bound: BoundNetwork,
        columns: Mapping[str, Sequence[Any]],
        parts: Mapping[str, Computed] = MappingProxyType({}),
    ) -> Rows:
        """What rows bring into a network; a row with one of the `parts` late or invalid brings in nothing."""
        vectors = {
            name: [
                None if status == "fallback" else value
                for value, status in zip(part.values, part.statuses, strict=True)
            ]
            for name, part in parts.items()
        }
        sources, vocabularies = dict(bound.feature.inputs), self.models.vocabularies(bound)
        if bound.feature.redact is not None:
            texts = [item.name for item in bound.inputs if isinstance(item, Tokens)]
            names = [column for name in texts for column in columns_of_source(sources[name])]
            columns = redact_columns(bound.feature.redact, columns, names, MAX_CHARS)
        read = read_network_rows(bound.feature.name, bound.inputs, sources, columns, vocabularies, vectors)  # type: ignore[arg-type]
        invalid = read.invalid | without_user(bound, columns)
        for part in parts.values():
            invalid |= part.invalid
        return Rows([None if row in invalid else read.rows[row] for row in range(len(read.rows))], invalid)

    def _run(self, bound: BoundNetwork, rows: list[str], mode: Mode, *, quiet: bool) -> dict[str, Result]:
        """The results of rows; each part is kept before the next begins."""
        network = self.models.network(bound, "online" if mode in _REQUESTS else "batch")
        results: dict[str, Result] = {}
        chunks = _chunks(rows, ROWS_PER_CALL)
        show = self._settings.progress and mode not in _REQUESTS and not quiet
        for chunk in _with_bar(chunks, len(rows), bound.feature.name) if show else chunks:
            done = dict(zip(chunk, network.compute(chunk), strict=True))
            self._keep_results(bound, done)
            results |= done
        return results

    def _run_together(self, bound: BoundNetwork, rows: list[str], called: float) -> dict[str, Result]:
        """The results that are there in time; what is late is computed and kept all the same."""
        ready = self._together(
            bound,
            rows,
            called,
            prepare=lambda: Prepared(self.models.network(bound, "online").compute, WORK_PER_BATCH),
            keep=lambda results: self._keep_results(bound, results),
            count_tokens=lambda row: estimated_work(bound.inputs, row),
        )
        return {row: result for row, result in ready.items() if result is not None}

    def _keep_results(self, bound: BoundNetwork, results: Mapping[str, Result]) -> None:
        valid = {row: result.value for row, result in results.items() if result.value is not None}
        if valid:
            self.cache.put_many(bound.encoding_fingerprint, valid)

    def _write(self, bound: BoundTokens, keys: list[str], mode: Mode, *, quiet: bool) -> dict[str, Outcome]:
        """The outcomes of keys; each part is kept before the next begins."""
        outcomes: dict[str, Outcome] = {}
        chunks = _chunks(keys, KEYS_PER_CALL)
        show = self._settings.progress and mode not in _REQUESTS and not quiet
        for chunk in _with_bar(chunks, len(keys), bound.feature.name) if show else chunks:
            written = self._writer.write(bound, chunk, "online" if mode in _REQUESTS else "batch")
            done = dict(zip(chunk, written, strict=True))
            self._writer.keep(bound, done)
            outcomes |= done
        return outcomes

    def _write_together(self, bound: BoundTokens, keys: list[str], called: float) -> dict[str, Outcome]:
        """The outcomes that are there in time; what is late is written and kept all the same."""

        def prepare() -> Prepared[Outcome]:
            self._writer.load(bound, "online")
            return Prepared(lambda keys: self._writer.write(bound, keys, "online"), WRITING_TOKENS)

        ready = self._together(
            bound,
            keys,
            called,
            prepare=prepare,
            keep=lambda outcomes: self._writer.keep(bound, outcomes),
            count_tokens=lambda text: len(text) // CHARACTERS_PER_TOKEN + bound.feature.decoding.max_new_tokens,
        )
        return {key: outcome for key, outcome in ready.items() if outcome is not None}

    def write(self, bound: BoundTokens, keys: Sequence[str]) -> list[Outcome]:
        """What the model gives for rows' inputs, neither looked up nor kept: to measure how long it takes."""
        return self._writer.write(bound, keys, "batch")

    def load(self, bound: BoundColumn) -> None:
        """Makes the first request for the feature as fast as the others: loads the model, opens the cache.

        Raises:
            ArtifactError: The model is missing, damaged, or not what the feature declares.
        """
        if isinstance(bound, BoundNetwork):
            for _, part in bound.parts:
                self.load(part)
            self.models.network(bound, "online")
            self.models.vocabularies(bound)
            self.cache.size()
            if bound.feature.noise is not None:
                load_noise_key(bound.feature.noise.key_id)
            return
        tokens = bound if isinstance(bound, BoundTokens) else bound.of
        if tokens is not None:
            self._writer.load(tokens, "online")
        if isinstance(bound, BoundFeature):
            if bound.feature.noise is not None:
                load_noise_key(bound.feature.noise.key_id)
            self._encode_texts(bound, self.models.encoder(bound, "online"), ["ready"])
        self.cache.size()

    def drain(self) -> None:
        """Returns when what requests asked for is in the cache."""
        for batcher in list(self._batchers.values()):
            batcher.drain()

    def waiting(self) -> int:
        """How many texts and rows of requests wait to be computed, or are being computed, in this process."""
        with self._lock:
            batchers = list(self._batchers.values())
        return sum(len(batcher) for batcher in batchers)

    def record(self, report: RunReport, *, show: bool = True) -> None:
        """Keeps the report of a finished run, tells observers and, where progress is shown and `show`, prints it."""
        observers.notify(report, self.waiting)
        if report.mode in _REQUESTS:
            self.requests.add(report)
            logger.debug("%s", report)
            return
        self.cache.record(report)
        if self._settings.progress and show:
            print(report, file=sys.stderr)

    def _encode(
        self, bound: BoundFeature, texts: list[str], vectors: dict[str, np.ndarray], mode: Mode, *, quiet: bool
    ) -> int:
        """Adds the vectors of `texts`, where finite, to `vectors` and to the cache; returns the tokens read."""
        encoder = self.models.encoder(bound, "online" if mode in _REQUESTS else "batch")
        tokens = 0
        chunks = _chunks(texts, encoder.texts_per_call)
        show = self._settings.progress and mode not in _REQUESTS and not quiet
        for chunk in _with_bar(chunks, len(texts), bound.feature.name) if show else chunks:
            encoded, count = self._encode_texts(bound, encoder, chunk)
            done = {text: vector for text, vector in zip(chunk, encoded, strict=True) if vector is not None}
            self.cache.put_many(bound.encoding_fingerprint, done)
            vectors.update(done)
            tokens += count
        return tokens

    def _encode_together(
        self, bound: BoundFeature, texts: list[str], vectors: dict[str, np.ndarray], called: float
    ) -> set[str]:
        """Adds the vectors of `texts`, where finite, to `vectors`; returns the texts that missed the deadline."""

        def prepare() -> Prepared[np.ndarray]:
            encoder = self.models.encoder(bound, "online")
            return Prepared(lambda texts: self._encode_shared(bound, encoder, texts), encoder.token_budget)

        self.models.check_fits(bound, "online")  # a missing model is an error, not a late row
        max_tokens = bound.feature.max_tokens
        ready = self._together(
            bound,
            texts,
            called,
            prepare=prepare,
            keep=lambda done: self.cache.put_many(bound.encoding_fingerprint, done),
            count_tokens=lambda text: min(len(text) // CHARACTERS_PER_TOKEN + 2, max_tokens),
        )
        vectors.update((text, vector) for text, vector in ready.items() if vector is not None)
        return set(texts) - ready.keys()

    def _together(
        self,
        bound: BoundColumn,
        keys: list[str],
        called: float,
        *,
        prepare: Callable[[], Prepared[T]],
        keep: Callable[[dict[str, T]], None],
        count_tokens: Callable[[str], int],
    ) -> dict[str, T | None]:
        """The values of keys that are there in time, by the one batcher of all features that compute alike."""
        with self._lock:
            if bound.encoding_fingerprint not in self._batchers:
                self._batchers[bound.encoding_fingerprint] = MicroBatcher(
                    bound.feature.name, prepare, keep=keep, count_tokens=count_tokens
                )
            batcher: MicroBatcher[T] = self._batchers[bound.encoding_fingerprint]
        allowed = bound.feature.deadline_ms
        return batcher.encode(keys, None if allowed is None else called + allowed / 1000)

    def _encode_shared(self, bound: BoundFeature, encoder: Encoder, texts: list[str]) -> list[np.ndarray | None]:
        """The vectors of a batch that requests share; no report of theirs has its tokens."""
        vectors, tokens = self._encode_texts(bound, encoder, texts)
        observers.notify_tokens(bound.feature.name, tokens)
        return vectors

    def _encode_texts(
        self, bound: BoundFeature, encoder: Encoder, texts: list[str]
    ) -> tuple[list[np.ndarray | None], int]:
        """The finished vectors of texts, None where not finite, and the tokens read."""
        feature = bound.feature
        raw, tokens = encoder.encode([feature.prefix + text for text in texts], max_tokens=feature.max_tokens)
        finished = finish(feature, raw, already_normalized=encoder.artifact.manifest.normalize)
        finished.flags.writeable = False  # requests share them
        finite = np.isfinite(finished).all(axis=1)
        return [vector if sound else None for vector, sound in zip(finished, finite, strict=True)], tokens

    def _warn(self, report: RunReport, invalid: dict[int, str]) -> None:
        if invalid:
            row, reason = next(iter(invalid.items()))
            logger.warning(
                "%s: %d of %d rows could not be read and are null; the first is row %d: %s",
                report.feature, len(invalid), report.rows, row, reason,
            )  # fmt: skip


def _stand_in(feature: TextFeature | NetworkFeature, kind: OnEmpty) -> np.ndarray | float | None:
    if kind == "null":
        return None
    return 0.0 if feature.dims is None else np.zeros(feature.dims, dtype=np.float32)


def _assembled(bound: BoundFeature, columns: Mapping[str, Sequence[Any]]) -> Assembled:
    return _of_known_users(bound, assemble(bound.feature, columns), columns)


def _of_known_users(bound: BoundFeature, assembled: Assembled, columns: Mapping[str, Sequence[Any]]) -> Assembled:
    invalid = assembled.invalid | without_user(bound, columns)
    return Assembled([() if row in invalid else texts for row, texts in enumerate(assembled.rows)], invalid)


def _texts(bound: BoundFeature, written: Computed) -> Assembled:
    """What another feature wrote for the rows, as texts to encode."""
    feature = bound.feature
    rows: list[tuple[str, ...]] = []
    invalid = {**written.invalid, **written.unanswered}
    texts: Sequence[str] = [as_text(value) if isinstance(value, Written) else "" for value in written.values]
    if feature.redact is not None:
        texts = redact_columns(feature.redact, {"": texts}, [""], feature.max_chars)[""]
    for number, (value, status) in enumerate(zip(written.values, written.statuses, strict=True)):
        text = clean(texts[number], feature.max_chars)
        rows.append((text,) if text else ())
        if value is None and status == "fallback":
            invalid[number] = "its text was not written in time"
    return Assembled(rows, {number: reason for number, reason in invalid.items() if not rows[number]})


def _report(
    bound: BoundColumn, mode: Mode, statuses: Sequence[Status], *, texts: int, cached: int, computed: int
) -> RunReport:
    return replace(
        RunReport.begin(bound.feature.name, bound.fingerprint, mode),
        rows=len(statuses),
        empty=statuses.count("empty"),
        invalid=statuses.count("invalid"),
        fallback=statuses.count("fallback"),
        texts=texts,
        cached=cached,
        computed=computed,
    )


@functools.lru_cache(maxsize=8)
def runner_for(settings: Settings) -> Runner:
    """The runner of this process for these settings, so that a model is loaded once."""
    return Runner(settings)


# ONNX Runtime's threads do not survive a fork: a child begins with sessions of its own.
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=runner_for.cache_clear)


def _chunks(texts: list[str], size: int) -> Iterable[list[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]


def _with_bar(chunks: Iterable[list[str]], total: int, name: str) -> Iterable[list[str]]:
    from tqdm import tqdm  # not needed on the request path

    with tqdm(total=total, desc=name, unit="text", file=sys.stderr) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))
