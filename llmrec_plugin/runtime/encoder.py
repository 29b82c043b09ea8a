"""Texts -> vectors with one exported encoder."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from llmrec_plugin import manifests
from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.errors import ArtifactCorruptError, ParityError
from llmrec_plugin.inference import Batch, Placement, Profile, Session
from llmrec_plugin.pipeline.batching import pad, plan_batches
from llmrec_plugin.pipeline.cutting import cut
from llmrec_plugin.runtime.calibration import Opened, calibrate_batches, calibrate_requests, default_placement
from llmrec_plugin.runtime.memory import run_halving
from llmrec_plugin.runtime.overlap import ahead
from llmrec_plugin.runtime.placements import PlacementStore, placement_key
from llmrec_plugin.runtime.runtimes import choose_runtime, open_session
from llmrec_plugin.runtime.tokenizing import load_tokenizer
from llmrec_plugin.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GOLDEN_MIN_COSINE = 0.9999
GOLDEN_MIN_COSINE_REDUCED = 0.999
"""Of a model in another precision: rounding may fall otherwise on another processor."""
GOLDEN_MAX_STRETCH = 0.01  # of a vector's length
CALIBRATE_AFTER_SECONDS = 20.0
"""Batch work after which a calibration, which takes a few seconds, pays."""
TEXTS_PER_CALL = 1_024
"""Texts encoded between two writes to the cache: at most this much work is lost when a process dies."""
TEXTS_AHEAD = 4_096
"""Texts tokenized while the device works on those before. Batches are planned among so many: fewer would be padded more
(7 % for package descriptions, 17 % among 1,024)."""


class Encoder:
    """An exported encoder, loaded and checked.

    The files are compared with their hashes and the golden texts are encoded before the first value is
    given out, so a damaged file or a runtime that computes something else cannot go unnoticed.

    Args:
        artifact: The exported model.
        settings: Device, runtime and threads.
        profile: ``batch`` or ``online``, see `llmrec_plugin.inference.Profile`.

    Attributes:
        artifact: The exported model.
        runtime: What runs it.

    Raises:
        ArtifactCorruptError: A file differs from the manifest.
        ParityError: The golden texts do not give their recorded vectors here.
        ProviderError: The device or the runtime is not usable.
    """

    def __init__(self, artifact: Artifact, settings: Settings, profile: Profile = "batch") -> None:
        artifact.verify()
        self.artifact = artifact
        self.runtime = choose_runtime(artifact, settings)
        self._settings = settings
        self._profile = profile
        self._tokenizers: dict[int, Tokenizer] = {}
        self._lock = threading.Lock()
        self._placements = PlacementStore(settings.cache_folder / "placements")
        self._key = placement_key(artifact.id, self.runtime, profile, settings.device, settings.threads)
        known = self._placements.get(self._key)
        placement = known or default_placement(profile, settings.threads)
        session = self._open(placement)
        self._opened = Opened(session, placement if session.adjustable else session.placement)
        self._calibrating = threading.Lock()
        self._calibrated = known is not None or not session.adjustable
        self._busy_seconds = 0.0
        self._check_golden_texts(self._opened)
        if profile == "online" and not self._calibrated:
            self.calibrate()

    @property
    def provider(self) -> str:
        """What computes, e.g. ``CPUExecutionProvider``."""
        return self._opened.session.provider

    @property
    def placement(self) -> Placement:
        """How the machine is used."""
        return self._opened.placement

    @property
    def token_budget(self) -> int:
        """Rows x length of the batches that suit the device."""
        return self._opened.placement.token_budget

    @property
    def texts_per_call(self) -> int:
        """How many texts to hand in at a time, of many."""
        return 4 * TEXTS_AHEAD if self._opened.placement.overlapping else TEXTS_PER_CALL

    def encode(
        self, texts: Sequence[str], *, max_tokens: int | None = None, token_budget: int | None = None
    ) -> tuple[np.ndarray, int]:
        """The vectors of `texts`, in their order, and the number of tokens read.

        Neither the order of the texts nor the batches they fall into changes a vector by more than
        floating-point rounding (1e-6).

        Args:
            texts: n texts, prefix included.
            max_tokens: Truncation length, special tokens included; default and maximum: the model's.
            token_budget: Largest rows x length of a batch; default: what suits the device.

        Returns:
            (n, dims) float32 as the graph gives them (zeros for a text without tokens), and the count of
            unpadded tokens.
        """
        started = time.monotonic()
        vectors, tokens = self._encode(self._opened, texts, max_tokens, token_budget)
        if self._profile == "batch" and not self._calibrated:
            self._busy_seconds += time.monotonic() - started
            if self._busy_seconds > CALIBRATE_AFTER_SECONDS:
                self.calibrate()
        return vectors, tokens

    def count_tokens(self, texts: Sequence[str], *, max_tokens: int | None = None) -> int:
        """How many tokens `encode` would read of `texts`."""
        encodings = self._tokenizer(max_tokens or self.artifact.manifest.max_tokens).encode_batch_fast(list(texts))
        return sum(len(encoding.ids) for encoding in encodings)

    def calibrate(self) -> dict[Placement, list[float]]:
        """Measures how the model is fastest on this machine, and uses that from now on, here and in later processes.

        Takes seconds. Other threads may encode meanwhile; if one of them calibrates, this one does not.

        Returns:
            What was measured of every candidate: tokens per second of each round (``batch``) or seconds of each
            request (``online``). Empty where there is nothing to choose.
        """
        if not self._opened.session.adjustable or not self._calibrating.acquire(blocking=False):
            return {}
        try:
            default = default_placement(self._profile, self._settings.threads)
            now = self._opened if self.placement == default else Opened(self._open(default), default)
            search = calibrate_batches if self._profile == "batch" else calibrate_requests
            best, measured = search(now, self._open, self._run_some, self.artifact.manifest.max_tokens)
            if best.session is not self._opened.session:
                self._check_golden_texts(best)
            self._opened = best  # runs that have begun keep the one they have
            self._calibrated = True
            about = {"model": self.artifact.manifest.model, "artifact": self.artifact.id, "profile": self._profile}
            self._placements.put(self._key, best.placement, measured, about)
            return measured
        finally:
            self._calibrating.release()

    def _encode(
        self, opened: Opened, texts: Sequence[str], max_tokens: int | None, token_budget: int | None
    ) -> tuple[np.ndarray, int]:
        vectors = np.zeros((len(texts), self.artifact.manifest.dims), dtype=np.float32)
        reads_texts = self.runtime.reads == "texts"
        tokenizer = self._tokenizer(max_tokens or self.artifact.manifest.max_tokens)
        tokenize = tokenizer.encode_batch if reads_texts else tokenizer.encode_batch_fast
        if len(texts) == 1 and not reads_texts:  # a request: nothing to order, nothing to pad
            ids = np.array([tokenize(list(texts))[0].ids], dtype=np.int64)

            def run(rows: np.ndarray) -> None:
                vectors[rows] = opened.session.run(Batch(ids, np.ones_like(ids)))

            run_halving(run, np.arange(len(ids) if ids.size else 0), f"Model {self.artifact.manifest.model!r}")
            return vectors, ids.size
        step = TEXTS_AHEAD if opened.placement.overlapping else max(len(texts), 1)
        starts = range(0, len(texts), step)
        parts = [list(texts[start : start + step]) for start in starts]
        tokens = 0
        for start, part, encodings in zip(starts, parts, ahead(tokenize, parts), strict=True):
            sequences = [encoding.ids for encoding in encodings]
            kept = [cut(*pair, tokenizer) for pair in zip(part, encodings, strict=True)] if reads_texts else []
            tokens += self._run(opened, sequences, kept, vectors[start : start + step], token_budget)
        return vectors, tokens

    def _run(
        self,
        opened: Opened,
        sequences: list[list[int]],
        texts: list[str],
        vectors: np.ndarray,
        token_budget: int | None,
    ) -> int:
        """Fills in the vectors of token sequences; returns the number of tokens."""
        manifest = self.artifact.manifest
        session, placement = opened
        lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))

        def run(rows: np.ndarray) -> None:
            ids, mask = pad([sequences[row] for row in rows], manifest.pad_token_id, manifest.padding_side)
            vectors[rows] = session.run(Batch(ids, mask, [texts[row] for row in rows] if texts else ()))

        # A tokenizer without special tokens may find nothing in a text: its vector is zero, without inference.
        present = np.flatnonzero(lengths)
        plan = plan_batches(lengths[present], token_budget or placement.token_budget, placement.shape_step)
        batches = [present[batch] for batch in plan]

        def run_whole_or_halved(batch: np.ndarray) -> None:
            run_halving(run, batch, f"Model {manifest.model!r}")

        if placement.callers == 1 or len(batches) == 1:
            for batch in batches:
                run_whole_or_halved(batch)
        else:
            with ThreadPoolExecutor(placement.callers) as pool:
                list(pool.map(run_whole_or_halved, batches))  # list() re-raises what a worker raised
        return int(lengths.sum())

    def _open(self, placement: Placement) -> Session:
        return open_session(self.runtime, self.artifact, self._settings, placement)

    def _run_some(self, session: Session, rows: int, length: int) -> np.ndarray:
        """Runs full rows of some token; which it is does not matter to the time."""
        ids = np.full((rows, length), self.artifact.manifest.pad_token_id, dtype=np.int64)
        return session.run(Batch(ids, np.ones_like(ids)))

    def _tokenizer(self, max_tokens: int) -> Tokenizer:
        # Truncation is state of a tokenizer, so each length has its own copy; two threads never change one.
        with self._lock:
            if max_tokens not in self._tokenizers:
                manifest = self.artifact.manifest
                self._tokenizers[max_tokens] = load_tokenizer(
                    self.artifact.path(manifests.TOKENIZER),
                    min(max_tokens, manifest.max_tokens),
                    f"Model {manifest.model!r}",
                )
            return self._tokenizers[max_tokens]

    def _check_golden_texts(self, opened: Opened) -> None:
        manifest = self.artifact.manifest
        texts = manifest.golden_texts
        expected = np.load(self.artifact.path(manifests.GOLDEN), allow_pickle=False)
        actual, _ = self._encode(opened, texts, None, None)
        if expected.shape != actual.shape:
            raise ArtifactCorruptError(
                f"{self.artifact.path(manifests.GOLDEN)}: expected golden vectors of shape {actual.shape}, got "
                f"{expected.shape}. Run `llmrec export {manifest.model}` again."
            )
        least = GOLDEN_MIN_COSINE if manifest.precision == "fp32" else GOLDEN_MIN_COSINE_REDUCED
        lengths, recorded = np.linalg.norm(actual, axis=1), np.linalg.norm(expected, axis=1)
        cosines = np.einsum("nd,nd->n", actual, expected) / np.maximum(lengths * recorded, 1e-12)
        ratios = lengths / np.maximum(recorded, 1e-12)
        sound = (cosines >= least) & (np.abs(ratios - 1) <= GOLDEN_MAX_STRETCH)  # NaN is not
        if not sound.all():
            worst = int(np.argmin(np.where(sound, 2.0, np.nan_to_num(cosines, nan=-1.0))))
            raise ParityError(
                f"Model {manifest.model!r} (artifact {self.artifact.id[:16]}) in {self.runtime.name} on "
                f"{opened.session.provider}: golden text {texts[worst]!r:.60} has cosine {cosines[worst]:.6f} to its "
                f"recorded vector and {ratios[worst]:.4f} times its length, expected at least {least} and 1 within "
                f"{GOLDEN_MAX_STRETCH}. It computes other numbers than the model did at export; try LLMREC_DEVICE=cpu, "
                "LLMREC_RUNTIME=onnxruntime, another version of the runtime, or export again."
            )
