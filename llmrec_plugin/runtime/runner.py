"""Rows -> values of a bound feature: assemble, look up, encode what is missing, post-process."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundFeature
from llmrec_plugin.pipeline.assemble import assemble
from llmrec_plugin.pipeline.postprocess import combine, finish
from llmrec_plugin.runtime.cache import RunReport, VectorCache
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.session import Profile
from llmrec_plugin.settings import Settings

logger = logging.getLogger(__name__)

Mode = Literal["batch", "on_demand", "historical", "push"]
_REQUESTS: tuple[Mode, ...] = ("on_demand", "push")  # few rows and somebody waits: no progress bar, no report kept
Status = Literal["ok", "empty", "invalid", "fallback"]

TEXTS_PER_CHUNK = 1024
"""Texts encoded between two writes to the cache: at most this much work is lost when a process dies."""


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
        self._encoders: dict[tuple[str, Profile], Encoder] = {}
        self._lock = threading.Lock()

    def embed(
        self, bound: BoundFeature, columns: Mapping[str, Sequence[Any]], mode: Mode, *, quiet: bool = False
    ) -> Embedded:
        """The vectors of n rows.

        A row's vector depends on that row alone. A row that cannot be read gives None and is counted.

        Args:
            bound: The feature and its artifact.
            columns: The rows by column.
            mode: For the report, the progress bar (none on demand and for pushes) and the threads' placement.
            quiet: Show and record nothing; the rows are a part of a run that the caller reports.

        Raises:
            MissingColumnError: A declared column is not there.
            ArtifactError: The model is missing, damaged, or not what the feature declares.
        """
        started, clock = time.time(), time.perf_counter()
        feature = bound.feature
        assembled = assemble(feature, columns)
        texts = list(dict.fromkeys(text for row in assembled.rows for text in row))
        vectors = self.cache.get_many(bound.encoding_fingerprint, texts) if texts else {}
        cached = len(vectors)
        missing = [text for text in texts if text not in vectors]
        tokens = self._encode(bound, missing, vectors, mode, quiet=quiet) if missing else 0

        empty = None if feature.on_empty == "null" else np.zeros(feature.dims, dtype=np.float32)
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
            computed=len(missing),
            tokens=tokens,
            seconds=time.perf_counter() - clock,
        )
        if not quiet:
            self._warn(report, invalid)
            self.record(report)
        return Embedded(values, statuses, report, invalid)

    def record(self, report: RunReport) -> None:
        """Keeps the report of a finished run and, where progress is shown, prints it."""
        if report.mode in _REQUESTS:
            logger.debug("%s", report)
            return
        self.cache.record(report)
        if self._settings.progress:
            print(report, file=sys.stderr)

    def _encode(
        self, bound: BoundFeature, texts: list[str], vectors: dict[str, np.ndarray], mode: Mode, *, quiet: bool
    ) -> int:
        """Adds the vectors of `texts`, where finite, to `vectors` and to the cache; returns the tokens read."""
        feature = bound.feature
        encoder = self.encoder(bound, "online" if mode in _REQUESTS else "batch")
        normalized = encoder.artifact.manifest.normalize
        tokens = 0
        chunks = _chunks(texts, TEXTS_PER_CHUNK)
        show = self._settings.progress and mode not in _REQUESTS and not quiet
        for chunk in _with_bar(chunks, len(texts), feature.name) if show else chunks:
            raw, count = encoder.encode([feature.prefix + text for text in chunk], max_tokens=feature.max_tokens)
            finished = finish(feature, raw, already_normalized=normalized)
            finite = np.isfinite(finished).all(axis=1)
            done = {chunk[i]: finished[i] for i in np.flatnonzero(finite)}
            self.cache.put_many(bound.encoding_fingerprint, done)
            vectors.update(done)
            tokens += count
        return tokens

    def encoder(self, bound: BoundFeature, profile: Profile) -> Encoder:
        """The encoder of a feature, loaded when it is first asked for.

        Raises:
            ArtifactError: The model is missing, damaged, or not what the feature declares.
        """
        key = (bound.artifact_id, profile)
        with self._lock:
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
