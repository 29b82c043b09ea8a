"""A declaration bound to the exported model that computes it; the JSON that Feast's registry carries.

The whole declaration travels, not only its name, so a process that never saw the feature repo, and does
not even have the declaring plugin installed, computes the same numbers (docs/adr/0002).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeAlias

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import DeclarationError, FingerprintMismatchError
from llmrec_plugin.specs import SimilarityFeature, TextFeature, from_spec, to_spec


@dataclass(frozen=True)
class BoundFeature:
    """An embedding feature and the artifact that computes it."""

    feature: TextFeature
    artifact_id: str

    # Remembered: every request asks for both, and each is a hash over JSON.
    @functools.cached_property
    def fingerprint(self) -> str:
        return self.feature.fingerprint(self.artifact_id)

    @functools.cached_property
    def encoding_fingerprint(self) -> str:
        return self.feature.encoding_fingerprint(self.artifact_id)

    @property
    def stored(self) -> bool:
        """Whether the vector is read from the store rather than computed from the request."""
        return self.feature.entity is not None


@dataclass(frozen=True)
class BoundSimilarity:
    """A similarity feature and both of its sides."""

    feature: SimilarityFeature
    left: BoundFeature
    right: BoundFeature

    def __post_init__(self) -> None:
        spaces = [side.feature.vector_space(side.artifact_id) for side in (self.left, self.right)]
        if spaces[0] != spaces[1]:
            described = [
                f"{side.feature.name!r} (model {side.feature.model!r}, artifact {side.artifact_id[:16]}, dims "
                f"{side.feature.dims}, normalize {side.feature.normalize}, reduction {side.feature.reduction})"
                for side in (self.left, self.right)
            ]
            raise DeclarationError(
                f"Feature {self.feature.name!r} compares {described[0]} with {described[1]}: vectors of different "
                "spaces cannot be compared. Declare both with the same model, dims, normalize and reduction."
            )

    @property
    def fingerprint(self) -> str:
        return self.feature.fingerprint(self.left.fingerprint, self.right.fingerprint)


Bound: TypeAlias = BoundFeature | BoundSimilarity


def bind(feature: TextFeature, store: ArtifactStore) -> BoundFeature:
    """The feature with the current artifact of its model.

    Raises:
        ArtifactNotFoundError: The model is not exported.
        ArtifactMismatchError: The artifact is not what the feature declares.
    """
    artifact = store.current(feature.model)
    artifact.check_fits(feature)
    return BoundFeature(feature, artifact.id)


def to_values(bound: Bound) -> dict[str, Any]:
    """The bound declaration as JSON-ready data."""
    # The description is for people and stays in the view's own: a change of it is no change of the transformation.
    feature = {name: value for name, value in to_spec(bound.feature).items() if name != "description"}
    values: dict[str, Any] = {"feature": feature, "fingerprint": bound.fingerprint}
    if isinstance(bound, BoundSimilarity):
        return {**values, "left": to_values(bound.left), "right": to_values(bound.right)}
    return {**values, "artifact": bound.artifact_id}


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
        assert isinstance(left, BoundFeature)
        assert isinstance(right, BoundFeature)
        bound = BoundSimilarity(feature, left, right)
    else:
        bound = BoundFeature(feature, values["artifact"])
    if bound.fingerprint != values["fingerprint"]:
        raise FingerprintMismatchError(
            f"Feature {feature.name!r} was published with fingerprint {values['fingerprint'][:16]}, but this version "
            f"of llmrec-plugin computes {bound.fingerprint[:16]}: its numbers would differ from the stored ones. "
            "Install the version that published it, or run `feast apply` and materialize again with this one."
        )
    return bound
