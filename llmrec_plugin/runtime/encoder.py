"""Texts -> vectors with one exported encoder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from llmrec_plugin import artifacts
from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.errors import ArtifactCorruptError, ArtifactMismatchError, ParityError
from llmrec_plugin.pipeline.batching import graph_inputs, pad, plan_batches
from llmrec_plugin.runtime.session import CPU, Profile, open_session
from llmrec_plugin.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CPU_TOKEN_BUDGET = 512
GPU_TOKEN_BUDGET = 32_768
GOLDEN_MIN_COSINE = 0.9999
GOLDEN_MAX_STRETCH = 0.01  # of a vector's length


class Encoder:
    """An exported encoder, loaded and checked.

    The files are compared with their hashes and the golden texts are encoded before the first value is
    given out, so a damaged file or a provider that computes something else cannot go unnoticed.

    Args:
        artifact: The exported model.
        settings: Device and threads.
        profile: ``batch`` or ``online``, see `llmrec_plugin.runtime.session`.

    Attributes:
        token_budget: Rows x length of the batches that suit the device.

    Raises:
        ArtifactCorruptError: A file differs from the manifest.
        ParityError: The golden texts do not give their recorded vectors here.
        ProviderError: The device is not usable.
    """

    def __init__(self, artifact: Artifact, settings: Settings, profile: Profile = "batch") -> None:
        artifact.verify()
        self.artifact = artifact
        self._session = open_session(
            artifact.path(artifacts.GRAPH), device=settings.device, profile=profile, threads=settings.threads
        )
        self.provider = self._session.get_providers()[0]
        on_cpu = self.provider == CPU
        self._callers = settings.threads if on_cpu and profile == "batch" else 1
        self.token_budget = CPU_TOKEN_BUDGET if on_cpu else GPU_TOKEN_BUDGET
        self._tokenizers: dict[int, Tokenizer] = {}
        self._lock = threading.Lock()
        self._check_golden_texts()

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
        manifest = self.artifact.manifest
        vectors = np.zeros((len(texts), manifest.dims), dtype=np.float32)
        if not texts:
            return vectors, 0
        tokenizer = self._tokenizer(max_tokens or manifest.max_tokens)
        sequences = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
        lengths = [len(sequence) for sequence in sequences]

        def run(batch: np.ndarray) -> None:
            ids, mask = pad([sequences[i] for i in batch], manifest.pad_token_id, manifest.padding_side)
            vectors[batch] = self._run(ids, mask)

        # A tokenizer without special tokens may find nothing in a text: its vector is zero, without inference.
        present = np.flatnonzero(lengths)
        batches = [
            present[batch] for batch in plan_batches([lengths[i] for i in present], token_budget or self.token_budget)
        ]
        if self._callers == 1 or len(batches) == 1:
            for batch in batches:
                run(batch)
        else:
            with ThreadPoolExecutor(self._callers) as pool:
                list(pool.map(run, batches))  # list() re-raises what a worker raised
        return vectors, sum(lengths)

    def count_tokens(self, texts: Sequence[str], *, max_tokens: int | None = None) -> int:
        """How many tokens `encode` would read of `texts`."""
        encodings = self._tokenizer(max_tokens or self.artifact.manifest.max_tokens).encode_batch_fast(list(texts))
        return sum(len(encoding.ids) for encoding in encodings)

    def _run(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        manifest = self.artifact.manifest
        return self._session.run([manifest.output], graph_inputs(manifest.inputs, ids, mask))[0]

    def _tokenizer(self, max_tokens: int) -> Tokenizer:
        # Truncation is state of a tokenizer, so each length has its own copy; two threads never change one.
        with self._lock:
            if max_tokens not in self._tokenizers:
                from tokenizers import Tokenizer

                tokenizer = Tokenizer.from_file(str(self.artifact.path(artifacts.TOKENIZER)))
                tokenizer.no_padding()
                special = tokenizer.num_special_tokens_to_add(False)
                if max_tokens <= special:
                    raise ArtifactMismatchError(
                        f"Model {self.artifact.manifest.model!r} adds {special} special tokens to every text, so "
                        f"max_tokens={max_tokens} leaves no room for it. Declare at least {special + 1}."
                    )
                tokenizer.enable_truncation(min(max_tokens, self.artifact.manifest.max_tokens))
                self._tokenizers[max_tokens] = tokenizer
            return self._tokenizers[max_tokens]

    def _check_golden_texts(self) -> None:
        texts = self.artifact.manifest.golden_texts
        expected = np.load(self.artifact.path(artifacts.GOLDEN), allow_pickle=False)
        actual, _ = self.encode(texts)
        if expected.shape != actual.shape:
            raise ArtifactCorruptError(
                f"{self.artifact.path(artifacts.GOLDEN)}: expected golden vectors of shape {actual.shape}, got "
                f"{expected.shape}. Run `llmrec export {self.artifact.manifest.model}` again."
            )
        lengths, recorded = np.linalg.norm(actual, axis=1), np.linalg.norm(expected, axis=1)
        cosines = np.einsum("nd,nd->n", actual, expected) / np.maximum(lengths * recorded, 1e-12)
        ratios = lengths / np.maximum(recorded, 1e-12)
        sound = (cosines >= GOLDEN_MIN_COSINE) & (np.abs(ratios - 1) <= GOLDEN_MAX_STRETCH)  # NaN is not
        if not sound.all():
            worst = int(np.argmin(np.where(sound, 2.0, np.nan_to_num(cosines, nan=-1.0))))
            raise ParityError(
                f"Model {self.artifact.manifest.model!r} (artifact {self.artifact.id[:16]}) on {self.provider}: golden "
                f"text {texts[worst]!r:.60} has cosine {cosines[worst]:.6f} to its recorded vector and "
                f"{ratios[worst]:.4f} times its length, expected at least {GOLDEN_MIN_COSINE} and 1 within "
                f"{GOLDEN_MAX_STRETCH}. This provider computes other numbers than PyTorch did at export; try "
                "LLMREC_DEVICE=cpu, another onnxruntime version, or export again."
            )
