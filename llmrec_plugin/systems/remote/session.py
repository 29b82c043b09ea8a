"""A model that an endpoint serves, as a session."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from llmrec_plugin import Artifact, Batch, Placement
from llmrec_plugin.errors import ParityError, ProviderError, RemoteError, quoted
from llmrec_plugin.systems.remote.configuration import RemoteSettings, load_remote_settings
from llmrec_plugin.systems.remote.protocols import Endpoint, OpenAI, TextEmbeddingsInference
from llmrec_plugin.systems.remote.transport import Clock, Transport

TOKEN_BUDGET = 8_192
"""Largest rows x length of a batch; `LLMREC_REMOTE_BATCH` bounds the texts of a request as well."""
MIN_COSINE = 0.999
MAX_STRETCH = 0.01
"""How the golden text of a request must agree with its recorded vector: in cosine, and in length. Rounding in any
precision is far closer, another model far off; the strict check of all golden texts is made when a model is loaded."""


def open_model(artifact: Artifact, *, device: str, placement: Placement) -> RemoteSession:
    """The model of `artifact` at the endpoint of the environment; see `llmrec_plugin.inference.Opener`.

    Raises:
        SettingsError: A setting of the endpoint is missing or invalid.
        ProviderError: A GPU of this machine was asked for.
    """
    if device not in ("auto", "cpu"):
        raise ProviderError(
            f"LLMREC_DEVICE={device} was asked for, but the runtime remote computes elsewhere. "
            "Set LLMREC_DEVICE=auto, or LLMREC_RUNTIME=onnxruntime for a GPU of this machine."
        )
    return RemoteSession(artifact, load_remote_settings(artifact.manifest.model))


class RemoteSession:
    """An endpoint that serves the model.

    Args:
        artifact: The model.
        settings: The endpoint.
        clock: Time and chance.
    """

    adjustable = False

    def __init__(self, artifact: Artifact, settings: RemoteSettings, clock: Clock | None = None) -> None:
        self._artifact, self._settings = artifact, settings
        self._endpoint = open_endpoint(artifact, settings, Transport(settings, clock))
        texts = artifact.manifest.golden_texts
        shortest = min(range(len(texts)), key=lambda number: (not texts[number].strip(), len(texts[number])))
        self._witness = texts[shortest]
        self._witness_vector = np.load(artifact.path("golden.npy"), allow_pickle=False)[shortest]
        # Pieces of all batches share the threads, so that there are never more requests than settings allow.
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="llmrec-remote")
        self.provider = f"{settings.api} at {settings.url}"
        self.placement = Placement(threads=1, callers=settings.concurrency, spinning=False, token_budget=TOKEN_BUDGET)

    def run(self, batch: Batch) -> np.ndarray:
        size = self._settings.batch - 1  # one text of each request is the golden one
        pieces = [batch.texts[start : start + size] for start in range(0, len(batch.texts), size)]
        return np.concatenate(list(self._pool.map(self._embed, pieces)))

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of some texts, from one request, which proves the model by a golden text."""
        vectors = self._endpoint.embed([self._witness, *texts])
        self._check_witness(vectors[0])
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise RemoteError(
                f"{self._settings.url}: expected finite vectors, got NaN or infinity for {len(broken)} of {len(texts)} "
                f"texts, the first {quoted(texts[broken[0] - 1])}. Half precision overflows in some models; let the "
                "endpoint compute in another."
            )
        return vectors[1:]

    def _check_witness(self, vector: np.ndarray) -> None:
        recorded = self._witness_vector.astype(np.float64)
        norm, expected = float(np.linalg.norm(vector)), float(np.linalg.norm(recorded))
        cosine = float(vector @ recorded) / max(norm * expected, 1e-12)
        ratio = norm / max(expected, 1e-12)
        if cosine >= MIN_COSINE and abs(ratio - 1) <= MAX_STRETCH:  # NaN is neither
            return
        manifest = self._artifact.manifest
        cause = "It serves another model, or pools it otherwise; check LLMREC_REMOTE_URL and LLMREC_REMOTE_MODEL"
        if cosine >= MIN_COSINE:
            cause = f"It is the model, but the endpoint {'does not normalize' if manifest.normalize else 'normalizes'}"
        raise ParityError(
            f"{self._settings.url} does not compute model {manifest.model!r} (artifact {self._artifact.id[:16]}): "
            f"golden text {self._witness!r:.60} has cosine {cosine:.6f} to its recorded vector and {ratio:.4f} times "
            f"its length, expected at least {MIN_COSINE} and 1 within {MAX_STRETCH}. {cause}."
        )


def open_endpoint(artifact: Artifact, settings: RemoteSettings, transport: Transport) -> Endpoint:
    """The endpoint, asked in its API."""
    manifest = artifact.manifest
    if settings.api == "tei":
        return TextEmbeddingsInference(transport, manifest.dims, normalize=manifest.normalize)
    return OpenAI(transport, manifest.dims, model=settings.model)
