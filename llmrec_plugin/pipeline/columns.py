"""Feature values as columns: which a feature has, of what types, for arrow and for Feast.

embedding            name: vector                          name_status
tags                 name: list of strings   name_ids   name_scores   name_status
choice, text, json   name: string                          name_status
scores               name: float, or list of floats        name_status
network              name: vector, or float                name_status
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from llmrec_plugin.pipeline.outputs import ColumnType, columns_of_output
from llmrec_plugin.pipeline.packing import stored_values, value_array, value_type
from llmrec_plugin.specs import ColumnFeature, NetworkFeature, Tags, TokenFeature

if TYPE_CHECKING:
    import pyarrow as pa


class Written(NamedTuple):
    """A value that a model wrote.

    Attributes:
        value: A tuple of strings (tags), a string (choice, text, JSON), a float or a tuple of floats (scores).
        ids: Of tags, their positions in the vocabulary.
        scores: Of tags of a model that scores labels, the probability of each; NaN for those of a fallback.
    """

    value: Any
    ids: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    def to_bytes(self) -> bytes:
        """The value as the cache holds it."""
        return json.dumps(self, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")

    @classmethod
    def from_bytes(cls, data: bytes) -> Written:
        """What `to_bytes` wrote."""
        value, ids, scores = json.loads(data.decode("utf-8", "surrogatepass"))
        return cls(tuple(value) if isinstance(value, list) else value, tuple(ids), tuple(scores))


Status = Literal["ok", "cached", "empty", "invalid", "fallback"]
"""Why a row's value is what it is."""
Value: TypeAlias = np.ndarray | Written | float | None
"""A row's value: a (dims,) float32 vector, what a model wrote, or a network's number."""


def is_number(feature: ColumnFeature) -> bool:
    """Whether each value is one number of a network."""
    return isinstance(feature, NetworkFeature) and feature.dims is None


def output_fields(feature: ColumnFeature) -> list[pa.Field]:
    """The arrow columns that `feature` stores: its values and, if declared, their statuses."""
    import pyarrow as pa  # a ranker that fetches over HTTP does without

    status = [pa.field(feature.status_name, pa.string())] if feature.status else []
    if is_number(feature):
        return [pa.field(feature.name, pa.float32()), *status]
    if not isinstance(feature, TokenFeature):
        return [pa.field(feature.name, value_type(feature)), *status]
    columns = columns_of_output(feature.output)
    return [*(pa.field(feature.name + suffix, _arrow_type(kind)) for suffix, kind in columns), *status]


def output_arrays(feature: ColumnFeature, values: Sequence[Value], statuses: Sequence[str]) -> list[pa.Array]:
    """n values and n statuses, as `output_fields` has them."""
    import pyarrow as pa

    status = [pa.array(statuses, pa.string())] if feature.status else []
    if is_number(feature):
        return [pa.array(values, pa.float32()), *status]
    if not isinstance(feature, TokenFeature):
        return [value_array(feature, values), *status]  # type: ignore[arg-type]
    cells = plain_columns(feature, values)
    types = [field.type for field in output_fields(feature)]
    return [*(pa.array(column, kind) for column, kind in zip(cells.values(), types, strict=False)), *status]


def plain_columns(feature: ColumnFeature, values: Sequence[Value]) -> dict[str, list[Any]]:
    """n values by column, statuses apart: vectors, bytes, tuples of strings or numbers, strings, numbers or None."""
    if is_number(feature):
        return {feature.name: list(values)}
    if not isinstance(feature, TokenFeature):
        return {feature.name: stored_values(feature, values)}  # type: ignore[arg-type]
    cells: dict[str, list[Any]] = {}
    for suffix, _ in columns_of_output(feature.output):
        field = suffix.lstrip("_") or "value"
        cells[feature.name + suffix] = [None if value is None else getattr(value, field) for value in values]
    return cells


def fallback_of(feature: TokenFeature) -> Written | None:
    """The declared fallback as a value; scores of tags are NaN, for no model gave them."""
    value = feature.fallback
    if value is None or not isinstance(feature.output, Tags):
        return None if value is None else Written(value)
    known = {tag: number for number, tag in enumerate(feature.output.vocabulary)}
    return Written(value, tuple(known.get(tag, -1) for tag in value), (float("nan"),) * len(value))


def as_text(written: Written) -> str:
    """The value as a text to encode: tags joined by a comma, anything else as it is written."""
    return ", ".join(written.value) if isinstance(written.value, tuple) else str(written.value)


def _arrow_type(kind: ColumnType) -> pa.DataType:
    import pyarrow as pa

    types: dict[ColumnType, pa.DataType] = {
        "string": pa.string(),
        "strings": pa.list_(pa.string()),
        "float": pa.float32(),
        "floats": pa.list_(pa.float32()),
        "ints": pa.list_(pa.int64()),
    }
    return types[kind]
