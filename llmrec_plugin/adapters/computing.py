"""The values of one feature for rows that a library hands over."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundColumn, bind
from llmrec_plugin.errors import DeclarationError, MissingExtraError
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.runtime.runner import Computed, Mode, runner_for
from llmrec_plugin.settings import load_settings
from llmrec_plugin.specs import ColumnFeature, EmbeddingFeature, Metric, TokenFeature

logger = logging.getLogger(__name__)


class FeatureValues:
    """Computes one feature in this process, with the same cache and numbers as Feast's views.

    It pickles as the name or the declaration, never with weights: the process that unpickles it finds the model in
    its own artifact folder.

    Args:
        feature: Name of a feature that an installed plugin declares, or a declaration.
    """

    def __init__(self, feature: str | ColumnFeature) -> None:
        self._given = feature

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._given,)

    @functools.cached_property
    def feature(self) -> ColumnFeature:
        """The declaration.

        Raises:
            UnknownNameError: No plugin declares a feature of that name.
            DeclarationError: It has no values of its own columns.
        """
        feature: Any = self._given
        if isinstance(feature, str):
            feature = load_catalogue(load_settings().disabled_plugins).feature(feature)
        if not isinstance(feature, get_args(ColumnFeature)):
            raise DeclarationError(
                "Expected the name or the declaration of a feature that is computed from columns, got "
                f"{getattr(feature, 'name', feature)!r} ({type(feature).__name__})."
            )
        return feature

    @functools.cached_property
    def bound(self) -> BoundColumn:
        """The declaration and the artifact of its model, as it was when first asked for.

        Raises:
            ArtifactError: The model is not exported, or not what is declared.
        """
        return bind(self.feature, ArtifactStore(load_settings().artifact_folders))

    def compute(self, columns: Mapping[str, Sequence[Any]], mode: Mode = "batch") -> Computed:
        """The values of n rows, see `Runner.compute`; nothing is printed, and the run is counted as any other."""
        runner = runner_for(load_settings())
        if mode == "on_demand":
            return runner.compute(self.bound, columns, mode)
        computed = runner.compute(self.bound, columns, mode, quiet=True)
        runner.record(computed.report, show=False)
        if computed.invalid:
            row, reason = next(iter(computed.invalid.items()))
            logger.warning(
                "%s: %d of %d rows have no value; the first is row %d: %s",
                self.feature.name, len(computed.invalid), len(computed.values), row, reason,
            )  # fmt: skip
        return computed


class FeatureVectors(FeatureValues):
    """The same for a feature whose values are vectors."""

    @property
    def dims(self) -> int:
        """Length of each vector.

        Raises:
            DeclarationError: The feature's values are no vectors.
        """
        feature = self.feature
        if isinstance(feature, TokenFeature) or feature.dims is None:
            raise DeclarationError(
                f"Feature {feature.name!r} has no vectors (it is a {type(feature).__name__}). Name an embedding "
                "feature, or a network feature with dims."
            )
        return feature.dims

    def matrix(self, columns: Mapping[str, Sequence[Any]], mode: Mode = "batch") -> np.ndarray:
        """The vectors of n rows, (n, dims) float32; NaN where a row has none."""
        dims = self.dims
        values = self.compute(columns, mode).values
        matrix = np.full((len(values), dims), np.nan, dtype=np.float32)
        present = {row: value for row, value in enumerate(values) if isinstance(value, np.ndarray)}
        if present:
            matrix[list(present)] = np.stack(list(present.values()))
        return matrix


def embedding_of_model(
    model: str, *, name: str | None = None, column: str = "text", prefix: str = "", metric: Metric = "cosine"
) -> EmbeddingFeature:
    """A declaration for an exported encoder: the vector of one column's text, as the model was exported.

    Args:
        model: Name of the model; its artifact must be in an artifact folder.
        name: Of the feature; default: the model's, in letters that names may have.
        column: The column that holds the text.
        prefix: Put before every text, for models that were trained with one.
        metric: The similarity that the vectors are meant for.

    Raises:
        ArtifactNotFoundError: The model is not exported.
    """
    manifest = ArtifactStore(load_settings().artifact_folders).current(model).manifest
    allowed = "".join(letter if letter.isalnum() else "_" for letter in model.lower())
    return EmbeddingFeature(
        name=name or f"{allowed}_embedding",
        entity=None,
        text="{" + column + "}",
        model=model,
        pooling=manifest.pooling,
        normalize=manifest.normalize,
        prefix=prefix,
        metric=metric,
        max_tokens=manifest.max_tokens,
        dims=manifest.dims,
    )


def need(module: str, extra: str, purpose: str) -> Any:
    """The imported module.

    Raises:
        MissingExtraError: It is not installed; names the extra that has it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise MissingExtraError(module.partition(".")[0], extra, purpose) from exc
