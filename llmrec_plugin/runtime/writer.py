"""Rows -> values of a feature that a model writes: read, look up, generate what is missing, parse.

    rows -> slots -> key -> cache? -> prompt -> generator -> text -> typed value -> cache
                                   \\-> encoder with a head -> probabilities of labels /

A key holds all that a row brings into its prompt, so equal keys have equal values, and a value is kept under its key
and the fingerprint of everything else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llmrec_plugin.artifacts import Artifact, ArtifactStore
from llmrec_plugin.binding import BoundTokens
from llmrec_plugin.generation import Completion, GenerationSession
from llmrec_plugin.inference import Profile
from llmrec_plugin.pipeline.columns import Written
from llmrec_plugin.pipeline.outputs import InvalidOutput, ids_of, parse
from llmrec_plugin.pipeline.prompts import render
from llmrec_plugin.runtime.cache import ValueCache
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.generation.generators import open_session
from llmrec_plugin.settings import Settings
from llmrec_plugin.specs import Scores, Tags

KEYS_PER_CALL = 1024
"""Prompts handed to a generator at a time; enough to sort by length, few enough to keep what is done."""


class Outcome(NamedTuple):
    """What became of one key.

    Attributes:
        written: The value; None if the model gave none that is valid.
        reason: Why there is none.
        lasting: Whether the model would give the same again, so that it is kept.
    """

    written: Written | None
    reason: str = ""
    lasting: bool = True

    def to_bytes(self) -> bytes:
        return b"+" + self.written.to_bytes() if self.written is not None else b"-" + self.reason.encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Outcome:
        if data[:1] == b"+":
            return cls(Written.from_bytes(data[1:]))
        return cls(None, data[1:].decode())


class Writer:
    """Writes values in this process; opens each generator once, when it is first needed.

    Args:
        settings: Which engine and device to use.
        store: Where artifacts lie.
        cache: Where values are kept.
        encoder: Gives the loaded encoder of a model that scores labels.
    """

    def __init__(
        self,
        settings: Settings,
        store: ArtifactStore,
        cache: ValueCache,
        encoder: Callable[[Artifact, Profile], Encoder],
    ) -> None:
        self._settings, self._store, self._cache, self._encoder = settings, store, cache, encoder
        self._sessions: dict[str, GenerationSession] = {}
        self._lock = threading.Lock()

    def known(self, bound: BoundTokens, keys: Sequence[str]) -> dict[str, Outcome]:
        """The outcomes of those `keys` that were kept."""
        found = self._cache.get_bytes(bound.encoding_fingerprint, keys)
        return {key: Outcome.from_bytes(data) for key, data in found.items()}

    def keep(self, bound: BoundTokens, outcomes: dict[str, Outcome]) -> None:
        """Keeps what would come out again."""
        lasting = {key: outcome.to_bytes() for key, outcome in outcomes.items() if outcome.lasting}
        if lasting:
            self._cache.put_bytes(bound.encoding_fingerprint, lasting)

    def load(self, bound: BoundTokens, profile: Profile) -> None:
        """Opens what writes the feature.

        Raises:
            ArtifactError: The model is missing or damaged.
            ProviderError: Nothing here runs it.
        """
        artifact = self._store.find(bound.feature.model, bound.artifact_id)
        if isinstance(artifact, Artifact):
            self._encoder(artifact, profile)
        else:
            self._session(bound)

    def write(self, bound: BoundTokens, keys: Sequence[str], profile: Profile) -> list[Outcome]:
        """What the model gives for each of the distinct `keys`, in order.

        Raises:
            ArtifactError: The model is missing or damaged.
            InputError: The instructions of the prompt are longer than the model's context.
        """
        artifact = self._store.find(bound.feature.model, bound.artifact_id)
        if isinstance(artifact, Artifact):
            return self._label(bound, artifact, keys, profile)
        requests = [render(bound.feature, key) for key in keys]
        session, output = self._session(bound), bound.feature.output
        if isinstance(output, Scores):
            return [_scored(output, row) for row in session.score(requests, output.answers)]
        completions = session.generate(requests, bound.feature.decoding, output)
        return [_parsed(bound, completion) for completion in completions]

    def _label(self, bound: BoundTokens, artifact: Artifact, keys: Sequence[str], profile: Profile) -> list[Outcome]:
        output = bound.feature.output
        assert isinstance(output, Tags)
        logits, _ = self._encoder(artifact, profile).encode(keys)
        return [labelled(output, artifact, row) for row in logits]

    def _session(self, bound: BoundTokens) -> GenerationSession:
        with self._lock:  # opening takes seconds, and whoever else asks needs it, too
            if bound.artifact_id not in self._sessions:
                artifact = self._store.get_generator(bound.feature.model, bound.artifact_id)
                self._sessions[bound.artifact_id] = open_session(artifact, self._settings)
            return self._sessions[bound.artifact_id]


def labelled(output: Tags, artifact: Artifact, logits: np.ndarray) -> Outcome:
    """The labels whose probability is high enough, the most probable first, from (labels,) logits.

    The probability of a label is the logistic function of its logit; labels of equal probability are in the order of
    the model.
    """
    if not np.isfinite(logits).all():
        return Outcome(None, "the model gave a score that is not finite")
    manifest = artifact.manifest
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    least = np.array(manifest.thresholds) if output.min_score is None else np.full(len(scores), output.min_score)
    vocabulary = output.vocabulary or manifest.labels
    position = {tag: number for number, tag in enumerate(vocabulary)}
    order = np.argsort(-scores, kind="stable")
    kept = [int(i) for i in order if scores[i] >= least[i] and manifest.labels[i] in position][: output.max_items]
    tags = tuple(manifest.labels[i] for i in kept)
    probabilities = tuple(float(np.float32(scores[i])) for i in kept)
    return Outcome(Written(tags, tuple(position[tag] for tag in tags), probabilities))


def _scored(output: Scores, logprobs: np.ndarray) -> Outcome:
    if not np.isfinite(logprobs).all():
        return Outcome(None, "the model gave no score", lasting=False)
    weights = np.exp(logprobs.astype(np.float64) - logprobs.max())
    shares = tuple(float(np.float32(share)) for share in weights / weights.sum())
    return Outcome(Written(shares if output.of is None else shares[output.answers.index(output.of)]))


def _parsed(bound: BoundTokens, completion: Completion) -> Outcome:
    output = bound.feature.output
    if completion.finish == "error":
        return Outcome(None, completion.error or "the model gave nothing", completion.lasting)
    try:
        value = parse(output, completion.text)
    except InvalidOutput as exc:
        return Outcome(None, str(exc), completion.lasting)
    ids = ids_of(output, value) if isinstance(output, Tags) else ()
    return Outcome(Written(value, ids), lasting=completion.lasting)
