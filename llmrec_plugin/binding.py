"""A declaration bound to the exported model that computes it; the JSON that Feast's registry carries.

The whole declaration travels, not only its name, so a process that never saw the feature repo, and does
not even have the declaring plugin installed, computes the same numbers (docs/adr/0002).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from llmrec_plugin.artifacts import Artifact, ArtifactStore, NetworkArtifact
from llmrec_plugin.errors import ArtifactMismatchError, DeclarationError, FingerprintMismatchError
from llmrec_plugin.networks import Input, input_from_spec
from llmrec_plugin.registry import Catalogue
from llmrec_plugin.specs import (
    ColumnFeature,
    GeneratedEmbeddingFeature,
    NetworkFeature,
    SimilarityFeature,
    Tags,
    TextFeature,
    TokenFeature,
    digest,
    from_spec,
    to_spec,
)


@dataclass(frozen=True)
class BoundTokens:
    """A feature whose values a model writes, and the artifact of that model."""

    feature: TokenFeature
    artifact_id: str

    @functools.cached_property
    def fingerprint(self) -> str:
        return self.feature.fingerprint(self.artifact_id)

    @functools.cached_property
    def encoding_fingerprint(self) -> str:
        return self.feature.generation_fingerprint(self.artifact_id)

    @property
    def artifacts(self) -> tuple[tuple[str, str], ...]:
        """Name and artifact id of each model that computes it."""
        return ((self.feature.model, self.artifact_id),)

    @property
    def stored(self) -> bool:
        """Whether the value is read from the store rather than computed from the request."""
        return self.feature.entity is not None


@dataclass(frozen=True)
class BoundFeature:
    """An embedding feature and the artifact that computes it.

    Attributes:
        feature: The declaration.
        artifact_id: Of the encoder.
        of: What writes the text, for a `GeneratedEmbeddingFeature`.
    """

    feature: TextFeature
    artifact_id: str
    of: BoundTokens | None = None

    # Remembered: every request asks for both, and each is a hash over JSON.
    @functools.cached_property
    def fingerprint(self) -> str:
        own = self.feature.fingerprint(self.artifact_id)
        return own if self.of is None else digest([own, self.of.fingerprint])

    @functools.cached_property
    def encoding_fingerprint(self) -> str:
        return self.feature.encoding_fingerprint(self.artifact_id)

    @property
    def artifacts(self) -> tuple[tuple[str, str], ...]:
        """Name and artifact id of each model that computes it."""
        return ((self.feature.model, self.artifact_id), *(self.of.artifacts if self.of else ()))

    @property
    def stored(self) -> bool:
        """Whether the vector is read from the store rather than computed from the request."""
        return self.feature.entity is not None

    @property
    def vector_space(self) -> str:
        """Equal for two features whose vectors may be compared with each other."""
        return self.feature.vector_space(self.artifact_id)

    def __str__(self) -> str:
        feature = self.feature
        return (
            f"{feature.name!r} (model {feature.model!r}, artifact {self.artifact_id[:16]}, dims {feature.dims}, "
            f"normalize {feature.normalize}, reduction {feature.reduction})"
        )


@dataclass(frozen=True)
class BoundNetwork:
    """A feature of a network over columns, and the artifacts that compute it.

    Attributes:
        feature: The declaration.
        artifact_id: Of the network.
        inputs: What the network reads, as its artifact says.
        space: The artifact's, see `llmrec_plugin.networks.Network`.
        parts: Input -> the embedding feature that computes it, for inputs that are computed.
        reads: Name and fingerprint of the stored features that it reads at request time, where it has no entity.
    """

    feature: NetworkFeature
    artifact_id: str
    inputs: tuple[Input, ...]
    space: str = ""
    parts: tuple[tuple[str, BoundFeature], ...] = ()
    reads: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        own = self.feature.fingerprint(self.artifact_id)
        if not self.parts and not self.reads:
            return own
        return digest([own, [(name, part.fingerprint) for name, part in self.parts], self.reads])

    @functools.cached_property
    def encoding_fingerprint(self) -> str:
        return self.feature.encoding_fingerprint(self.artifact_id)

    @property
    def artifacts(self) -> tuple[tuple[str, str], ...]:
        """Name and artifact id of each model that computes it."""
        return ((self.feature.model, self.artifact_id), *(item for _, part in self.parts for item in part.artifacts))

    @property
    def stored(self) -> bool:
        """Whether the value is read from the store rather than computed from the request."""
        return self.feature.entity is not None

    @functools.cached_property
    def timed_parts(self) -> tuple[tuple[str, BoundFeature], ...]:
        """The parts with the deadline of the whole instead of their own."""
        deadline = self.feature.deadline_ms
        return tuple(
            (name, replace(part, feature=replace(part.feature, deadline_ms=deadline))) for name, part in self.parts
        )

    @property
    def vector_space(self) -> str:
        """Equal for two features whose vectors may be compared with each other."""
        return self.feature.vector_space(self.artifact_id, self.space)

    def __str__(self) -> str:
        return (
            f"{self.feature.name!r} (network {self.feature.model!r}, artifact {self.artifact_id[:16]}, dims "
            f"{self.feature.dims}, space {self.space[:16]!r})"
        )


BoundVector: TypeAlias = BoundFeature | BoundNetwork
"""What may give vectors; a network's `dims` may be None."""


@dataclass(frozen=True)
class BoundSimilarity:
    """A similarity feature and both of its sides."""

    feature: SimilarityFeature
    left: BoundVector
    right: BoundVector

    def __post_init__(self) -> None:
        for side in (self.left, self.right):
            if side.feature.dims is None:
                raise DeclarationError(
                    f"Feature {self.feature.name!r} compares {side.feature.name!r}, which is a number; name features "
                    "that give vectors."
                )
        if self.left.vector_space != self.right.vector_space:
            raise DeclarationError(
                f"Feature {self.feature.name!r} compares {self.left} with {self.right}: vectors of different "
                "spaces cannot be compared. Declare both with the same model, dims, normalize and reduction; of "
                "networks, export both from one training, whose artifacts have one space."
            )

    @property
    def fingerprint(self) -> str:
        return self.feature.fingerprint(self.left.fingerprint, self.right.fingerprint)


BoundColumn: TypeAlias = BoundFeature | BoundTokens | BoundNetwork
"""What has a batch view."""

Bound: TypeAlias = BoundColumn | BoundSimilarity


def cached_parts(bound: Bound) -> Iterator[BoundColumn]:
    """The features under whose `encoding_fingerprint` values are cached when `bound` is computed."""
    if isinstance(bound, BoundSimilarity):
        yield from cached_parts(bound.left)
        yield from cached_parts(bound.right)
        return
    yield bound
    if isinstance(bound, BoundFeature) and bound.of is not None:
        yield from cached_parts(bound.of)
    if isinstance(bound, BoundNetwork):
        for _, part in bound.parts:
            yield from cached_parts(part)


def bind(feature: ColumnFeature, store: ArtifactStore) -> BoundColumn:
    """The feature with the current artifact of its model.

    Raises:
        ArtifactNotFoundError: The model is not exported.
        ArtifactMismatchError: The artifact is not what the feature declares.
    """
    if isinstance(feature, TokenFeature):
        return _bind_tokens(feature, store)
    if isinstance(feature, NetworkFeature):
        return _bind_network(feature, store)
    artifact = store.current(feature.model)
    artifact.check_fits(feature)
    of = _bind_tokens(feature.of, store) if isinstance(feature, GeneratedEmbeddingFeature) else None
    return BoundFeature(feature, artifact.id, of)


def bind_by_name(name: str, catalogue: Catalogue, store: ArtifactStore) -> Bound:
    """The registered feature of that name with the current artifacts of its models.

    Raises:
        UnknownNameError: No plugin declares it, or a side of a similarity.
        ArtifactNotFoundError: A model is not exported.
        ArtifactMismatchError: An artifact is not what the feature declares.
        DeclarationError: The sides of a similarity cannot be compared.
    """
    feature = catalogue.feature(name)
    if not isinstance(feature, SimilarityFeature):
        return bind(feature, store)
    left, right = (bind_by_name(side, catalogue, store) for side in (feature.left, feature.right))
    if not isinstance(left, BoundVector) or not isinstance(right, BoundVector):
        raise DeclarationError(f"Feature {name!r} compares {feature.left!r} with {feature.right!r}: name two vectors.")
    return BoundSimilarity(feature, left, right)


def _bind_network(feature: NetworkFeature, store: ArtifactStore) -> BoundNetwork:
    artifact = store.get_network(feature.model, store.current_id(feature.model))
    artifact.check_fits(feature)
    parts = [(name, bind(part, store)) for name, part in feature.parts]
    assert all(isinstance(part, BoundFeature) for _, part in parts)
    return BoundNetwork(feature, artifact.id, artifact.manifest.inputs, artifact.manifest.space, tuple(parts))  # type: ignore[arg-type]


def _bind_tokens(feature: TokenFeature, store: ArtifactStore) -> BoundTokens:
    artifact = store.find(feature.model, store.current_id(feature.model))
    if isinstance(artifact, NetworkArtifact):
        raise ArtifactMismatchError(
            f"Feature {feature.name!r}: model {feature.model!r} is a network over columns and writes nothing: name it "
            "in a NetworkFeature."
        )
    if isinstance(artifact, Artifact):
        _check_labels(feature, artifact)
    elif isinstance(feature.output, Tags) and (not feature.output.vocabulary or feature.output.scores):
        raise DeclarationError(
            f"Feature {feature.name!r}: model {feature.model!r} writes text: Tags need a vocabulary and "
            "have no scores. For probabilities declare Scores, or a model that scores labels."
        )
    return BoundTokens(feature, artifact.id)


def _check_labels(feature: TokenFeature, artifact: Artifact) -> None:
    labels = artifact.manifest.labels
    if not labels or not isinstance(feature.output, Tags) or feature.prompt is not None:
        raise ArtifactMismatchError(
            f"Feature {feature.name!r}: model {feature.model!r} "
            + ("scores labels: declare output=Tags() and text=." if labels else "is an encoder and writes nothing.")
        )
    unknown = sorted(set(feature.output.vocabulary) - set(labels))
    if unknown:
        raise ArtifactMismatchError(
            f"Feature {feature.name!r}: model {feature.model!r} has no label {unknown[0]!r}, which the vocabulary "
            f"names ({len(unknown)} of {len(feature.output.vocabulary)} are unknown). Leave the vocabulary empty for "
            f"all {len(labels)} labels, or name some of them."
        )


def to_values(bound: Bound) -> dict[str, Any]:
    """The bound declaration as JSON-ready data."""
    # The description is for people and stays in the view's own: a change of it is no change of the transformation.
    feature = {name: value for name, value in to_spec(bound.feature).items() if name != "description"}
    values: dict[str, Any] = {"feature": feature, "fingerprint": bound.fingerprint}
    if isinstance(bound, BoundSimilarity):
        return {**values, "left": to_values(bound.left), "right": to_values(bound.right)}
    if isinstance(bound, BoundNetwork):
        parts = {name: part.artifact_id for name, part in bound.parts}
        inputs = [to_spec(item) for item in bound.inputs]
        more = {"artifact": bound.artifact_id, "inputs": inputs, "space": bound.space}
        return {**values, **more, "parts": parts, "reads": dict(bound.reads)}
    of = {"of": to_values(bound.of)} if isinstance(bound, BoundFeature) and bound.of else {}
    return {**values, "artifact": bound.artifact_id, **of}


def from_values(values: dict[str, Any]) -> Bound:
    """The bound declaration that `to_values` wrote.

    Raises:
        FingerprintMismatchError: This version would compute other numbers than those declared.
        DeclarationError: The declaration was written by a newer version.
    """
    feature = from_spec(values["feature"])
    bound: Bound
    if isinstance(feature, SimilarityFeature):
        left, right = from_values(values["left"]), from_values(values["right"])
        assert isinstance(left, BoundVector)
        assert isinstance(right, BoundVector)
        bound = BoundSimilarity(feature, left, right)
    elif isinstance(feature, TokenFeature):
        bound = BoundTokens(feature, values["artifact"])
    elif isinstance(feature, NetworkFeature):
        inputs = tuple(input_from_spec(item) for item in values["inputs"])
        parts = tuple((name, BoundFeature(part, values["parts"][name])) for name, part in feature.parts)
        reads = tuple(sorted(values["reads"].items()))
        bound = BoundNetwork(feature, values["artifact"], inputs, values["space"], parts, reads)
    else:
        of = from_values(values["of"]) if "of" in values else None
        assert of is None or isinstance(of, BoundTokens)
        bound = BoundFeature(feature, values["artifact"], of)
    if bound.fingerprint != values["fingerprint"]:
        raise FingerprintMismatchError(
            f"Feature {feature.name!r} was published with fingerprint {values['fingerprint'][:16]}, but this version "
            f"of llmrec-plugin computes {bound.fingerprint[:16]}: its numbers would differ from the stored ones. "
            "Install the version that published it, or run `feast apply` and materialize again with this one."
        )
    return bound
