"""A feature as a transformer of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from llmrec_plugin.adapters.columns import component_names
from llmrec_plugin.adapters.computing import FeatureVectors
from llmrec_plugin.errors import (
    DeclarationError,
    FingerprintMismatchError,
    InputError,
    MissingColumnError,
    MissingExtraError,
)
from llmrec_plugin.specs import ColumnFeature

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError as exc:
    raise MissingExtraError("scikit-learn", "ranker", "FeatureTransformer") from exc

Missing = Literal["nan", "zeros"]


class FeatureTransformer(TransformerMixin, BaseEstimator):
    """Rows -> the vectors of a feature, (n, dims) float32, from the same cache and with the same numbers as in Feast.

    It pickles with the feature's name (or declaration) and the fingerprint that it was fitted with, not with the
    model. A pipeline that was fitted with one model refuses to run with another.

    Args:
        feature: Name of a feature that an installed plugin declares, or a declaration, e.g. from
            `embedding_of_model`.
        missing: What a row without a vector gives: ``"nan"``, which an estimator that cannot read it refuses, or
            ``"zeros"``.
        add_indicator: Whether a last column ``<name>_missing`` says where there is none, 1.0 or 0.0.

    Attributes:
        fingerprint_: Of the feature, when it was fitted.
        n_features_in_: How many columns it reads.
        feature_names_in_: Their names, if a frame was fitted; a frame may have more columns than these.
    """

    def __init__(
        self, feature: str | ColumnFeature | None = None, *, missing: Missing = "nan", add_indicator: bool = False
    ) -> None:
        self.feature = feature
        self.missing = missing
        self.add_indicator = add_indicator

    def fit(self, X: Any, y: Any = None) -> FeatureTransformer:  # noqa: N803 - scikit-learn's name
        """Finds the feature and its model, and checks that the rows can be read; learns nothing.

        Raises:
            UnknownNameError: No plugin declares the feature.
            ArtifactError: The model is not exported, or not what is declared.
            InputError: The rows lack a column.
        """
        if self.missing not in ("nan", "zeros"):
            raise InputError(f"missing must be 'nan' or 'zeros', got {self.missing!r}.")
        values = self._opened()
        _ = values.dims
        _columns(values.feature, X)
        self.fingerprint_ = values.bound.fingerprint
        self.n_features_in_ = len(values.feature.columns)
        if hasattr(X, "columns"):
            self.feature_names_in_ = np.array(values.feature.columns, dtype=object)
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """The vectors of n rows, (n, dims) float32, and the indicator if it was asked for.

        Args:
            X: A frame, or a mapping, with the feature's columns; for a feature of one column also a sequence, a
                series or an (n, 1) array of its values.

        Raises:
            FingerprintMismatchError: The feature or its model changed since the fit.
            InputError: The rows lack a column.
        """
        check_is_fitted(self, "fingerprint_")
        values = self._opened()
        if values.bound.fingerprint != self.fingerprint_:
            raise FingerprintMismatchError(
                f"Feature {values.feature.name!r} was fitted with fingerprint {self.fingerprint_[:16]}, now it has "
                f"{values.bound.fingerprint[:16]}: another declaration or another model. What was trained on the old "
                "vectors cannot read the new ones; fit again."
            )
        matrix = values.matrix(_columns(values.feature, X))
        absent = np.isnan(matrix).all(axis=1)
        if self.missing == "zeros":
            matrix[absent] = 0.0
        return np.column_stack([matrix, absent.astype(np.float32)]) if self.add_indicator else matrix

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """``<name>_0`` to ``<name>_<dims - 1>``, the names that `expand_columns` gives, and ``<name>_missing``."""
        feature: Any = self._opened().feature
        names = component_names(feature)
        return np.array([*names, f"{feature.name}_missing"] if self.add_indicator else names, dtype=object)

    def _opened(self) -> FeatureVectors:
        """The feature; the same object, with its model, as long as the parameter is the same."""
        if self.feature is None:
            raise DeclarationError("FeatureTransformer needs feature=, the name or the declaration of a feature.")
        opened = self.__dict__.get("_values")
        if opened is None or opened[0] is not self.feature:
            opened = self._values = self.feature, FeatureVectors(self.feature)
        return opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_values"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _columns(feature: ColumnFeature, rows: Any) -> Mapping[str, Sequence[Any]]:
    names = feature.columns
    if isinstance(rows, Mapping) or hasattr(rows, "columns"):
        missing = [name for name in names if name not in rows]
        if missing:
            raise MissingColumnError(feature.name, missing, map(str, rows.keys()))
        return {name: list(rows[name]) for name in names}
    if isinstance(rows, str) or len(names) > 1:
        raise InputError(
            f"Feature {feature.name!r} reads {', '.join(map(repr, names))}: expected a frame with "
            f"{'these columns' if len(names) > 1 else 'this column, or a sequence of its values'}, got "
            f"{type(rows).__name__}."
        )
    shape = np.shape(rows) if isinstance(rows, np.ndarray) else ()
    if len(shape) == 2 and shape[1] == 1:
        rows = rows[:, 0]
    elif len(shape) > 1:
        raise InputError(f"Feature {feature.name!r} reads one column, got an array of shape {shape}.")
    return {names[0]: list(rows)}
