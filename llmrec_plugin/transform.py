"""The one symbol that a Feast transformation imports.

Feast stores a transformation as source text and rebuilds it in a bare namespace, so ours is two lines::

    from llmrec_plugin.transform import load as _load
    item_title_embedding = _load('batch', 'item_title_embedding', '{...the bound declaration...}')

`load` gives back a callable that pickles by reference (the same few bytes whenever it is written, so
Feast sees a change only when the declaration or the model changed) and that loads a model when it first
meets a row, never at ``feast apply``.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmrec_plugin.binding import Bound, BoundFeature, BoundSimilarity, from_values
from llmrec_plugin.errors import FingerprintMismatchError, MissingColumnError
from llmrec_plugin.pipeline.packing import stored_values, unpack
from llmrec_plugin.pipeline.postprocess import similarity
from llmrec_plugin.runtime.runner import Embedded, Mode, Status, runner_for
from llmrec_plugin.settings import load_settings

if TYPE_CHECKING:
    import pandas as pd

View = Literal["batch", "on_demand"]
_DECISIVE_FIRST: tuple[Status, ...] = ("invalid", "empty", "fallback", "ok")  # "fallback" is a promise for later
Columns = Mapping[str, Sequence[Any]]


class Transform:
    """The callable behind one Feast view.

    Args:
        view: ``batch`` maps a DataFrame to a DataFrame, ``on_demand`` a dict of columns to one.
        output: Name of the view and of the column that comes out.
        payload: JSON: ``bound``, the bound declaration, and for a batch view ``keep``, the names of the
            key and timestamp columns.
    """

    def __init__(self, view: View, output: str, payload: str) -> None:
        self.__name__ = self.__qualname__ = output
        self.__annotations__ = {}  # Feast asks every transformation for type hints
        self.view = view
        self.payload = payload

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.view, self.__name__, self.payload)

    @functools.cached_property
    def _values(self) -> dict[str, Any]:
        return json.loads(self.payload)

    @functools.cached_property
    def bound(self) -> Bound:
        """The declaration; decoded at first use, so that a registry of a newer version can be listed."""
        return from_values(self._values["bound"])

    def __call__(self, rows: pd.DataFrame | Columns) -> Any:
        return self.transform_frame(rows) if self.view == "batch" else self.transform_columns(rows)  # type: ignore[arg-type]

    def transform_frame(self, frame: pd.DataFrame, mode: Mode = "batch") -> pd.DataFrame:
        """Key and timestamp columns of `frame` and the vectors, row by row; no model is loaded for no rows."""
        bound = self.bound
        assert isinstance(bound, BoundFeature)
        keep = self._values["keep"]
        missing = [name for name in (*keep, *bound.feature.columns) if name not in frame.columns]
        if missing:
            raise MissingColumnError(self.__name__, missing, frame.columns)
        result = frame[keep].reset_index(drop=True)
        values: list[Any] = []
        statuses: list[Any] = []
        if len(frame):
            embedded = _embed(bound, {name: frame[name].tolist() for name in bound.feature.columns}, mode)
            values, statuses = stored_values(bound.feature, embedded.values), list(embedded.statuses)
        result[bound.feature.name] = values
        if bound.feature.status:
            result[bound.feature.status_name] = statuses
        return result

    def transform_columns(self, columns: Columns) -> dict[str, list[Any]]:
        """The output columns; vectors as tuples, which Feast converts twice as fast as lists, or as bytes."""
        called = time.monotonic()
        bound = self.bound
        values: list[Any]
        if isinstance(bound, BoundSimilarity):
            values, statuses = _similarities(bound, columns, called)
        else:
            embedded = _embed(bound, columns, _mode(columns), called)
            values, statuses = stored_values(bound.feature, embedded.values), embedded.statuses
        result: dict[str, list[Any]] = {self.__name__: values}
        if bound.feature.status:
            result[f"{self.__name__}_status"] = list(statuses)
        # Feast converts tuples twice as fast as lists or arrays. With full_feature_names=True it looks for prefixed
        # names, and then guesses the type, which it cannot of a tuple (feast/utils.py and type_map.py, 0.67).
        prefixed = {f"{self.__name__}__{name}": column for name, column in result.items()}
        result[self.__name__] = [tuple(value.tolist()) if isinstance(value, np.ndarray) else value for value in values]
        return result if "event_timestamp" in columns else result | prefixed


def load(view: View, output: str, payload: str) -> Transform:
    """The transformation that Feast's registry describes."""
    return Transform(view, output, payload)


def source(transform: Transform) -> str:
    """The source text from which Feast rebuilds `transform`."""
    return (
        "from llmrec_plugin.transform import load as _load\n"
        f"{transform.__name__} = _load({transform.view!r}, {transform.__name__!r}, {transform.payload!r})\n"
    )


def _embed(bound: BoundFeature, columns: Columns, mode: Mode, called: float | None = None) -> Embedded:
    return runner_for(load_settings()).embed(bound, columns, mode, called=called)


def _mode(columns: Columns) -> Mode:
    return "historical" if "event_timestamp" in columns else "on_demand"


def _similarities(bound: BoundSimilarity, columns: Columns, called: float) -> tuple[list[float | None], list[Status]]:
    """Per row the similarity, None where a side is null, fell back or (cosine) is a zero vector; and the status."""
    (left, left_statuses), (right, right_statuses) = (
        _side(side, bound.feature.name, columns, called) for side in (bound.left, bound.right)
    )
    statuses = [min(pair, key=_DECISIVE_FIRST.index) for pair in zip(left_statuses, right_statuses, strict=True)]
    values: list[float | None] = [None] * len(left)
    pairs = [
        (row, a, b)
        for row, (a, b) in enumerate(zip(left, right, strict=True))
        if a is not None and b is not None and statuses[row] != "fallback"
    ]
    if pairs:
        rows, lefts, rights = zip(*pairs, strict=True)
        scores = similarity(np.stack(lefts), np.stack(rights), bound.feature.metric)
        for row, score in zip(rows, scores.tolist(), strict=True):
            values[row] = None if math.isnan(score) else score
            if math.isnan(score) and statuses[row] == "ok":
                statuses[row] = "empty"  # a stored zero vector stands for a row without text
    return values, statuses


def _side(
    side: BoundFeature, owner: str, columns: Columns, called: float
) -> tuple[list[np.ndarray | None], list[Status]]:
    """The vectors of one side, read from the columns if stored, else computed from the request; and their statuses."""
    if not side.stored:
        embedded = _embed(side, columns, _mode(columns), called)
        return embedded.values, embedded.statuses
    if side.feature.name not in columns:
        raise MissingColumnError(owner, [side.feature.name], columns)
    vectors = [_vector(side, value) for value in columns[side.feature.name]]
    plain: list[Status] = ["empty" if vector is None else "ok" for vector in vectors]
    stored = columns.get(side.feature.status_name) or [None] * len(vectors)
    return vectors, [known if known in _DECISIVE_FIRST else status for known, status in zip(stored, plain, strict=True)]


def _vector(side: BoundFeature, value: Any) -> np.ndarray | None:
    if value is None or not hasattr(value, "__len__") or len(value) == 0:  # NaN stands for null in historical rows
        return None
    if side.feature.storage != "list":
        return unpack([value], side.feature.storage, side.feature.dims, owner=side.feature.name)[0]
    if len(value) != side.feature.dims:
        raise FingerprintMismatchError(
            f"A stored vector of feature {side.feature.name!r} has {len(value)} dims, expected {side.feature.dims}: "
            "it was written under another declaration. Run `feast materialize` for this view again."
        )
    return np.asarray(value, dtype=np.float32)
