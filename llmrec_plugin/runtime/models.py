"""The models of a process: each is loaded once, when it is first needed."""

from __future__ import annotations

import threading
from collections import defaultdict

from llmrec_plugin.artifacts import Artifact, ArtifactStore
from llmrec_plugin.binding import BoundFeature, BoundNetwork
from llmrec_plugin.inference import Profile
from llmrec_plugin.pipeline.networks import Vocabularies
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.networks import LoadedNetwork, read_vocabularies
from llmrec_plugin.settings import Settings


class Models:
    """Encoders and networks; what a feature gets always fits its declaration.

    Args:
        settings: Which device to use.
        store: Where the artifacts are.
    """

    def __init__(self, settings: Settings, store: ArtifactStore) -> None:
        self._settings = settings
        self._store = store
        self._encoders: dict[tuple[str, Profile], Encoder] = {}
        self._networks: dict[tuple[str, Profile], LoadedNetwork] = {}
        self._vocabularies: dict[str, Vocabularies] = {}
        self._lock = threading.Lock()
        # One lock per model: a request for a loaded one does not wait while another is loaded.
        self._loading: defaultdict[tuple[str, Profile], threading.Lock] = defaultdict(threading.Lock)

    def __len__(self) -> int:
        """How many encoders are loaded."""
        return len(self._encoders)

    def encoder(self, bound: BoundFeature, profile: Profile) -> Encoder:
        """The encoder of a feature.

        Raises:
            ArtifactError: The model is missing, damaged, or not what the feature declares.
        """
        return self.encoder_of(self.check_fits(bound, profile), profile)

    def check_fits(self, bound: BoundFeature, profile: Profile) -> Artifact:
        """The artifact of a feature's encoder, which need not be loaded.

        Raises:
            ArtifactError: The model is missing, or not what the feature declares.
        """
        loaded = self._encoders.get((bound.artifact_id, profile))  # perhaps by another feature
        artifact = loaded.artifact if loaded else self._store.get(bound.feature.model, bound.artifact_id)
        artifact.check_fits(bound.feature)
        return artifact

    def encoder_of(self, artifact: Artifact, profile: Profile) -> Encoder:
        """The encoder in an artifact."""
        key = (artifact.id, profile)
        with self._lock_of(key):
            if key not in self._encoders:
                self._encoders[key] = Encoder(artifact, self._settings, profile)
            return self._encoders[key]

    def network(self, bound: BoundNetwork, profile: Profile) -> LoadedNetwork:
        """The network of a feature.

        Raises:
            ArtifactError: The network is missing, damaged, or not what the feature declares.
        """
        key = (bound.artifact_id, profile)
        with self._lock_of(key):
            if key not in self._networks:
                artifact = self._store.get_network(bound.feature.model, bound.artifact_id)
                artifact.check_fits(bound.feature)
                self._networks[key] = LoadedNetwork(artifact, self._settings, profile)
            return self._networks[key]

    def vocabularies(self, bound: BoundNetwork) -> Vocabularies:
        """A network's vocabularies alone: rows whose values are cached need no graph."""
        if bound.artifact_id not in self._vocabularies:
            artifact = self._store.get_network(bound.feature.model, bound.artifact_id)
            self._vocabularies[bound.artifact_id] = read_vocabularies(artifact)
        return self._vocabularies[bound.artifact_id]

    def _lock_of(self, key: tuple[str, Profile]) -> threading.Lock:
        with self._lock:
            return self._loading[key]
