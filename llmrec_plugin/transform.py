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
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from llmrec_plugin.binding import Bound, BoundColumn, BoundSimilarity, BoundVector, from_values
from llmrec_plugin.errors import EngineError, FingerprintMismatchError, MissingColumnError
from llmrec_plugin.pipeline.columns import Status, Value, output_arrays, output_fields, plain_columns
from llmrec_plugin.pipeline.packing import unpack
from llmrec_plugin.pipeline.postprocess import similarity
from llmrec_plugin.runtime.arrivals import arrival
from llmrec_plugin.runtime.precedence import step_back
from llmrec_plugin.runtime.runner import Computed, Mode, runner_for
from llmrec_plugin.runtime.workers import in_ray_worker, worker_settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

logger = logging.getLogger(__name__)

View = Literal["batch", "on_demand"]
_DECISIVE_FIRST: tuple[Status, ...] = ("invalid", "empty", "fallback", "ok")  # "fallback" is a promise for later
Columns = Mapping[str, Sequence[Any]]
Side = tuple[list["np.ndarray | None"], list[Status]]


class Transform:
    """The callable behind one Feast view.

    Args:
        view: ``batch`` maps a DataFrame of pandas or Spark to one, ``on_demand`` a dict of columns to one.
        output: Name of the view and of the column that comes out.
        payload: JSON: ``bound``, the bound declaration, and for a batch view ``keep``, the names of the
            key and timestamp columns.
    """

    def __init__(self, view: View, output: str, payload: str) -> None:
        self.__name__ = self.__qualname__ = output
        self.__annotations__ = {}  # Feast asks every transformation for type hints
        self.__code__ = type(self).__call__.__code__  # Feast 0.65 compares the byte code of on-demand transformations
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

    @property
    def keep(self) -> list[str]:
        """Names of the key and timestamp columns that a batch view passes on."""
        return self._values["keep"]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that a batch view reads."""
        return self._bound_column.feature.columns

    @property
    def output_fields(self) -> list[pa.Field]:
        """What a batch view adds to the columns that it passes on."""
        return output_fields(self._bound_column.feature)

    def __call__(self, rows: Any) -> Any:
        if self.view == "on_demand":
            return self.transform_columns(rows)
        if type(rows).__module__.startswith("pyspark."):
            from llmrec_plugin.spark import transform_spark  # pyspark is there only where Spark calls

            return transform_spark(self, rows)
        if in_ray_worker():
            raise EngineError(
                f"{self.__name__!r} is run by Feast's own Ray engine or Ray offline store. That engine loses vectors "
                "without an error, and that store runs the model at every retrieval. Set batch_engine.type to "
                "llmrec_plugin.feast.ray.LLMRayComputeEngine and offline_store.type to "
                "llmrec_plugin.feast.ray.LLMRayOfflineStore in feature_store.yaml."
            )
        return self.transform_frame(rows)

    def transform_frame(self, frame: pd.DataFrame, mode: Mode = "batch") -> pd.DataFrame:
        """Key and timestamp columns of `frame` and the values, row by row; no model is loaded for no rows.

        Rows without a key are left out, since no store can hold them; so are rows to which an engine gave no answer,
        so that what is stored of them stays. A frame that was transformed already comes back as it is.

        Raises:
            EngineError: Training rows got no answer: a model would learn from the gaps.
        """
        if self.is_transformed(frame.columns):
            return frame
        frame = frame[self._have_key(frame[self.keep[0]].notna().to_numpy())]
        feature = self._bound_column.feature
        columns = {name: frame[name].tolist() for name in self.columns}
        values, statuses, answered = self._values_of(columns, len(frame), mode)
        result = frame[self.keep].reset_index(drop=True)
        for name, column in plain_columns(feature, values).items():
            result[name] = [list(value) if isinstance(value, tuple) else value for value in column]
        if feature.status:
            result[feature.status_name] = statuses
        return result if answered.all() else result[answered].reset_index(drop=True)

    def transform_batch(self, batch: pa.RecordBatch, mode: Mode = "batch") -> pa.RecordBatch:
        """The same for an arrow batch."""
        import pyarrow as pa  # takes a while to import, and nothing on the request path needs it

        if self.is_transformed(batch.schema.names):
            return batch
        batch = batch.filter(pa.array(self._have_key(batch.column(self.keep[0]).is_valid().to_numpy(False))))
        feature = self._bound_column.feature
        columns = {name: batch.column(name).to_pylist() for name in self.columns}
        values, statuses, answered = self._values_of(columns, batch.num_rows, mode)
        outputs = output_arrays(feature, values, statuses)
        schema = pa.schema([*(batch.schema.field(name) for name in self.keep), *output_fields(feature)])
        result = pa.record_batch([*(batch.column(name) for name in self.keep), *outputs], schema=schema)
        return result if answered.all() else result.filter(pa.array(answered))

    def _have_key(self, present: np.ndarray) -> np.ndarray:
        if not present.all():
            count = np.count_nonzero(~present)
            logger.warning(
                "%s: %d of %d rows have no %s and are left out.", self.__name__, count, len(present), self.keep[0]
            )
        return present

    def transform_table(self, table: pa.Table) -> pa.Table:
        """The same for an arrow table; without rows it has no columns, either."""
        import pyarrow as pa

        batches = [self.transform_batch(batch) for batch in table.combine_chunks().to_batches()]
        return pa.Table.from_batches(batches) if batches else pa.table({})

    def is_transformed(self, names: Sequence[str]) -> bool:
        """Whether columns of these `names` hold the output instead of the input.

        Raises:
            MissingColumnError: They hold neither.
        """
        present = set(names)
        missing = [name for name in (*self.keep, *self.columns) if name not in present]
        if missing and self.__name__ not in present:
            raise MissingColumnError(self.__name__, missing, present)
        return bool(missing)

    @property
    def _bound_column(self) -> BoundColumn:
        assert not isinstance(self.bound, BoundSimilarity)
        return self.bound

    def _values_of(self, columns: Columns, rows: int, mode: Mode) -> tuple[list[Value], list[str], np.ndarray]:
        """Values and statuses of the rows, and (rows,) bool: whether they were answered."""
        answered = np.ones(rows, dtype=bool)
        if not rows:
            return [], [], answered
        computed = _compute(self._bound_column, columns, mode)
        if computed.unanswered:
            summary = computed.unanswered_summary(self._bound_column.feature.name)
            if mode == "historical":
                raise EngineError(f"{summary}. Read again later; what was answered is kept.")
            logger.warning("%s. They are left out; materialize the same window again.", summary)
            answered[list(computed.unanswered)] = False
        return list(computed.values), list(computed.statuses), answered

    def transform_columns(self, columns: Columns) -> dict[str, list[Any]]:
        """The output columns; vectors as tuples, which Feast converts twice as fast as lists, or as bytes."""
        called = arrival()
        step_back()
        bound = self.bound
        result: dict[str, list[Any]]
        if isinstance(bound, BoundSimilarity):
            values, statuses = _similarities(bound, columns, called)
            result = {self.__name__: values}
        else:
            computed = _compute(bound, columns, _mode(columns), called)
            statuses = computed.statuses
            plain = plain_columns(bound.feature, computed.values)
            result = {self.__name__ + name.removeprefix(bound.feature.name): column for name, column in plain.items()}
        if bound.feature.status:
            result[f"{self.__name__}_status"] = list(statuses)
        # Feast converts tuples twice as fast as lists or arrays. With full_feature_names=True it looks for prefixed
        # names, and then guesses the type, which it cannot of a tuple (feast/utils.py and type_map.py, 0.67).
        prefixed = {f"{self.__name__}__{name}": column for name, column in result.items()}
        own = result[self.__name__]
        result[self.__name__] = [tuple(value.tolist()) if isinstance(value, np.ndarray) else value for value in own]
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


def _compute(bound: BoundColumn, columns: Columns, mode: Mode, called: float | None = None) -> Computed:
    return runner_for(worker_settings()).compute(bound, columns, mode, called=called)


def _mode(columns: Columns) -> Mode:
    return "historical" if "event_timestamp" in columns else "on_demand"


def _similarities(bound: BoundSimilarity, columns: Columns, called: float) -> tuple[list[float | None], list[Status]]:
    left, right = (_side(side, bound.feature.name, columns, called) for side in (bound.left, bound.right))
    return compare(bound, left, right)


def compare(bound: BoundSimilarity, left: Side, right: Side) -> tuple[list[float | None], list[Status]]:
    """Per row the similarity of two vectors, and its status.

    It is None where a side is null, fell back or (cosine) is a zero vector.

    Args:
        bound: The similarity.
        left: n vectors, each (dims,) float32 or None, and their statuses.
        right: The same of the other side.
    """
    pairs_of_statuses = zip(left[1], right[1], strict=True)
    statuses = [min(pair, key=_DECISIVE_FIRST.index) for pair in pairs_of_statuses]
    values: list[float | None] = [None] * len(statuses)
    pairs = [
        (row, a, b)
        for row, (a, b) in enumerate(zip(left[0], right[0], strict=True))
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


def _side(side: BoundVector, owner: str, columns: Columns, called: float) -> Side:
    """The vectors of one side, read from the columns if stored, else computed from the request; and their statuses."""
    if not side.stored:
        computed = _compute(side, columns, _mode(columns), called)
        return cast(list["np.ndarray | None"], computed.values), computed.statuses
    if side.feature.name not in columns:
        raise MissingColumnError(owner, [side.feature.name], columns)
    vectors = [_vector(side, value) for value in columns[side.feature.name]]
    plain: list[Status] = ["empty" if vector is None else "ok" for vector in vectors]
    stored = columns.get(side.feature.status_name) or [None] * len(vectors)
    return vectors, [known if known in _DECISIVE_FIRST else status for known, status in zip(stored, plain, strict=True)]


def _vector(side: BoundVector, value: Any) -> np.ndarray | None:
    assert side.feature.dims is not None
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
