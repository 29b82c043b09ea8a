"""Rows -> values of a bound feature: assemble, look up, encode what is missing, post-process."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundFeature
from llmrec_plugin.inference import Profile
from llmrec_plugin.pipeline.assemble import assemble
from llmrec_plugin.pipeline.postprocess import combine, finish
from llmrec_plugin.runtime.cache import RunReport, VectorCache
from llmrec_plugin.runtime.counts import RequestCounts
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.microbatch import MicroBatcher, Prepared
from llmrec_plugin.settings import Settings

logger = logging.getLogger(__name__)

Mode = Literal["batch", "on_demand", "historical", "push"]
_REQUESTS: tuple[Mode, ...] = ("on_demand", "push")  # few rows and somebody waits: no progress bar, no report kept
Status = Literal["ok", "empty", "invalid", "fallback"]

CHARACTERS_PER_TOKEN = 4
"""Of English; how long a text is, is only guessed while it waits."""


class Embedded(NamedTuple):
    """The values of n rows, in their order.

    Attributes:
        values: Per row a (dims,) float32 vector or None.
        statuses: Per row why its value is what it is.
        report: What computing them took.
        invalid: Row number -> why the row could not be read.
    """

    values: list[np.ndarray | None]
    statuses: list[Status]
    report: RunReport
    invalid: dict[int, str]


class Runner:
    """Computes features in this process; loads each model once, when it is first needed.

    Args:
        settings: Where artifacts and the cache lie, and which device to use.
    """

    def __init__(self, settings: Settings) -> None:
        self.store = ArtifactStore(settings.artifact_folders)
        self.cache = VectorCache(settings.cache_folder, settings.cache_max_bytes)
        self._settings = settings
        self.requests = RequestCounts()
        self._encoders: dict[tuple[str, Profile], Encoder] = {}
        self._loading: defaultdict[tuple[str, Profile], threading.Lock] = defaultdict(threading.Lock)
        self._batchers: dict[str, MicroBatcher] = {}
        self._lock = threading.Lock()

    def embed(
        self,
        bound: BoundFeature,
        columns: Mapping[str, Sequence[Any]],
        mode: Mode,
        *,
        called: float | None = None,
        quiet: bool = False,
    ) -> Embedded:
        """The vectors of n rows.

        A row's vector depends on that row alone. A row that cannot be read gives None and is counted. On demand,
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
        """
        started, clock = time.time(), time.monotonic()
        feature = bound.feature
        assembled = assemble(feature, columns)
        texts = list(dict.fromkeys(text for row in assembled.rows for text in row))
        vectors = self.cache.get_many(bound.encoding_fingerprint, texts) if texts else {}
        cached = len(vectors)
        missing = [text for text in texts if text not in vectors]
        late: set[str] = set()
        tokens = 0
        if missing and mode == "on_demand":
            late = self._encode_together(bound, missing, vectors, clock if called is None else called)
        elif missing:
            tokens = self._encode(bound, missing, vectors, mode, quiet=quiet)

        zeros = np.zeros(feature.dims, dtype=np.float32)
        empty = None if feature.on_empty == "null" else zeros
        fallback = None if feature.on_deadline == "null" else zeros
        values: list[np.ndarray | None] = []
        statuses: list[Status] = []
        invalid = dict(assembled.invalid)
        for number, row in enumerate(assembled.rows):
            if not row:
                values.append(None if number in invalid else empty)
                statuses.append("invalid" if number in invalid else "empty")
            elif all(text in vectors for text in row):
                values.append(combine(feature, [vectors[text] for text in row]))
                statuses.append("ok")
            elif late and not late.isdisjoint(row):
                values.append(fallback)
                statuses.append("fallback")
            else:
                values.append(None)
                statuses.append("invalid")
                invalid[number] = "the model gave a vector that is not finite"
        report = RunReport(
            started=started,
            feature=feature.name,
            fingerprint=bound.fingerprint,
            mode=mode,
            rows=len(values),
            empty=sum(not row for row in assembled.rows) - len(assembled.invalid),
            invalid=len(invalid),
            texts=len(texts),
            cached=cached,
            computed=len(missing) - len(late),
            tokens=tokens,
            seconds=time.monotonic() - clock,
            fallback=statuses.count("fallback"),
        )
        if not quiet:
            self._warn(report, invalid)
            self.record(report)
        return Embedded(values, statuses, report, invalid)

    def load(self, bound: BoundFeature) -> None:
        """Makes the first request for the feature as fast as the others: loads the model, opens the cache.

        Raises:
            ArtifactError: The model is missing, damaged, or not what the feature declares.
        """
        self._encode_texts(bound, self.encoder(bound, "online"), ["ready"])
        self.cache.size()

    def drain(self) -> None:
        """Returns when what requests asked for is in the cache."""
        for batcher in list(self._batchers.values()):
            batcher.drain()

    def record(self, report: RunReport) -> None:
        """Keeps the report of a finished run and, where progress is shown, prints it."""
        if report.mode in _REQUESTS:
            self.requests.add(report)
            logger.debug("%s", report)
            return
        self.cache.record(report)
        if self._settings.progress:
            print(report, file=sys.stderr)

    def _encode(
        self, bound: BoundFeature, texts: list[str], vectors: dict[str, np.ndarray], mode: Mode, *, quiet: bool
    ) -> int:
        """Adds the vectors of `texts`, where finite, to `vectors` and to the cache; returns the tokens read."""
        encoder = self.encoder(bound, "online" if mode in _REQUESTS else "batch")
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
        self._check_fits(bound)  # a missing model is an error, not a late row
        allowed = bound.feature.deadline_ms
        until = None if allowed is None else called + allowed / 1000
        ready = self._batcher(bound).encode(texts, until)
        vectors.update((text, vector) for text, vector in ready.items() if vector is not None)
        return set(texts) - ready.keys()

    def _check_fits(self, bound: BoundFeature) -> None:
        encoder = self._encoders.get((bound.artifact_id, "online"))
        artifact = encoder.artifact if encoder else self.store.get(bound.feature.model, bound.artifact_id)
        artifact.check_fits(bound.feature)

    def _batcher(self, bound: BoundFeature) -> MicroBatcher:
        """The one for all features that encode alike."""
        key = bound.encoding_fingerprint
        max_tokens = bound.feature.max_tokens

        def prepare() -> Prepared:
            encoder = self.encoder(bound, "online")
            return Prepared(lambda texts: self._encode_texts(bound, encoder, texts)[0], encoder.token_budget)

        with self._lock:
            if key not in self._batchers:
                self._batchers[key] = MicroBatcher(
                    bound.feature.name,
                    prepare,
                    keep=lambda vectors: self.cache.put_many(key, vectors),
                    count_tokens=lambda text: min(len(text) // CHARACTERS_PER_TOKEN + 2, max_tokens),
                )
            return self._batchers[key]

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

    def encoder(self, bound: BoundFeature, profile: Profile) -> Encoder:
        """The encoder of a feature, loaded when it is first asked for.

        Raises:
            ArtifactError: The model is missing, damaged, or not what the feature declares.
        """
        key = (bound.artifact_id, profile)
        with self._lock:
            loading = self._loading[key]
        with loading:  # one lock per model: a request for a loaded one does not wait while another is loaded
            if key in self._encoders:
                self._encoders[key].artifact.check_fits(bound.feature)  # another feature may have loaded it
            else:
                artifact = self.store.get(bound.feature.model, bound.artifact_id)
                artifact.check_fits(bound.feature)
                self._encoders[key] = Encoder(artifact, self._settings, profile)
            return self._encoders[key]

    def _warn(self, report: RunReport, invalid: dict[int, str]) -> None:
        if invalid:
            row, reason = next(iter(invalid.items()))
            logger.warning(
                "%s: %d of %d rows could not be read and are null; the first is row %d: %s",
                report.feature, len(invalid), report.rows, row, reason,
            )  # fmt: skip


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
