"""A vector column as float32 columns and back, for models that read tables: LightGBM, XGBoost.

The columns of a vector of d components named ``item_text_embedding`` are ``item_text_embedding_0`` to
``item_text_embedding_<d-1>``, without leading zeros, in the place of the vector. Trained models know columns by these
names, so the names do not change. A row without a vector is NaN in all of them. A status column becomes a
category with the fixed order of `STATUSES`, so its codes are the same in every frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import numpy as np

from llmrec_plugin.errors import ColumnTypeError, DeclarationError, MissingColumnError
from llmrec_plugin.pipeline.columns import Status
from llmrec_plugin.pipeline.packing import unpack
from llmrec_plugin.serving import Column
from llmrec_plugin.specs import NetworkFeature, TextFeature

if TYPE_CHECKING:
    import pandas as pd

STATUSES: tuple[str, ...] = (*get_args(Status), "null", "not_found")
"""What a status column may hold, in the order of its codes."""

Vector: TypeAlias = Column | TextFeature | NetworkFeature
"""What a column holds: a column of a `Layout`, or the declaration of a feature."""


def column_of(vector: Vector) -> Column:
    """Name, length, storage and status of a vector column.

    Raises:
        DeclarationError: It holds no vectors.
    """
    if isinstance(vector, Column):
        found = vector
    elif isinstance(vector, (*get_args(TextFeature), NetworkFeature)) and vector.dims is not None:
        status = vector.status_name if vector.status else None
        found = Column(name=vector.name, dims=vector.dims, storage=vector.storage, status=status)
    else:
        raise DeclarationError(f"Expected a feature or a layout's column that holds vectors, got {vector!r:.200}.")
    if found.storage is None:
        raise DeclarationError(f"Column {found.name!r} holds numbers, not vectors; it needs no expansion.")
    return found


def component_names(vector: Vector) -> list[str]:
    """The names of the columns that stand for a vector: ``<name>_0`` to ``<name>_<dims - 1>``."""
    column = column_of(vector)
    return [f"{column.name}_{number}" for number in range(column.dims)]


def expand_columns(frame: pd.DataFrame, vectors: Iterable[Vector]) -> pd.DataFrame:
    """A copy of `frame` with each vector as float32 columns in its place, and its status, if there, as a category.

    Args:
        frame: From a historical or an online read; vectors as lists, tuples, arrays or, packed, as bytes; None or
            NaN for none.
        vectors: Features, or columns of a `Layout`, whose columns are expanded.

    Raises:
        MissingColumnError: The frame has no such column.
        ColumnTypeError: A cell is no vector of the declared length, or a status is unknown.
        FingerprintMismatchError: A packed vector has another length.
        DeclarationError: A name of a component is already a column, or something is no vector.
    """
    import pandas as pd

    columns = {column.name: column for column in map(column_of, vectors)}
    for name in columns:
        _check_there(frame, name, [name])
    statuses = {column.status for column in columns.values() if column.status in frame}
    parts: list[Any] = []
    for name in frame.columns:
        if name in columns:
            matrix = vector_matrix(frame[name], columns[name])
            parts.append(pd.DataFrame(matrix, index=frame.index, columns=component_names(columns[name]), copy=False))
        elif name in statuses:
            parts.append(_categories(frame[name]))
        else:
            parts.append(frame[name])
    expanded = pd.concat(parts, axis=1)
    repeated = expanded.columns[expanded.columns.duplicated()].tolist()
    if repeated:
        raise DeclarationError(
            f"After the expansion there are two columns {repeated[0]!r}. Rename the one that is not part of a vector."
        )
    return expanded


def collapse_columns(frame: pd.DataFrame, vectors: Iterable[Vector]) -> pd.DataFrame:
    """The inverse of `expand_columns`: each vector a (dims,) float32 array, or None where all components are NaN.

    Packed vectors come back as arrays, too; statuses as strings.

    Raises:
        MissingColumnError: A component is not there.
    """
    import pandas as pd

    columns = list(map(column_of, vectors))
    starts: dict[str, Column] = {}
    absorbed: set[str] = set()
    for column in columns:
        names = component_names(column)
        _check_there(frame, column.name, names)
        starts[names[0]] = column
        absorbed.update(names)
    statuses = {column.status for column in columns}
    parts: dict[str, Any] = {}
    for name in frame.columns:
        if name in starts:
            parts[starts[name].name] = _vectors(frame, starts[name])
        elif name in statuses:
            parts[name] = frame[name].astype(object).where(frame[name].notna(), None)
        elif name not in absorbed:
            parts[name] = frame[name]
    return pd.DataFrame(parts, index=frame.index)


def vector_matrix(cells: pd.Series, column: Column) -> np.ndarray:
    """The vectors of n cells, (n, dims) float32; NaN where there is none.

    Raises:
        ColumnTypeError: A cell is no vector of `column.dims` numbers.
        FingerprintMismatchError: A packed vector has another length.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    assert column.storage is not None
    kind = pa.list_(pa.float32()) if column.storage == "list" else pa.binary()
    expected = f"lists of {column.dims} numbers" if column.storage == "list" else f"bytes ({column.storage})"
    try:
        # As objects: a column without rows, or of NaN alone, is one of floats.
        array = pa.array(np.asarray(cells, dtype=object), kind, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as exc:
        raise ColumnTypeError(
            f"Column {column.name!r}: expected {expected}, or None: {exc}. Give the storage that the feature declares."
        ) from exc
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    present = array.is_valid().to_numpy(zero_copy_only=False)
    matrix = np.full((len(array), column.dims), np.nan, dtype=np.float32)
    found = array.drop_null()
    if column.storage != "list":
        matrix[present] = unpack(found.to_pylist(), column.storage, column.dims, owner=column.name)
        return matrix
    lengths = pc.list_value_length(found).to_numpy(zero_copy_only=False)
    if (lengths != column.dims).any():
        row = int(np.flatnonzero(present)[np.argmax(lengths != column.dims)])
        raise ColumnTypeError(
            f"Column {column.name!r}: expected vectors of {column.dims} components, got one of "
            f"{int(lengths[np.argmax(lengths != column.dims)])} in row {row}. It was made under another declaration."
        )
    matrix[present] = found.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.dims)
    return matrix


def _categories(cells: pd.Series) -> pd.Series:
    import pandas as pd

    unknown = set(cells.dropna().unique()) - set(STATUSES)
    if unknown:
        raise ColumnTypeError(
            f"Column {cells.name!r}: expected statuses ({', '.join(STATUSES)}), got {min(map(repr, unknown))}."
        )
    return pd.Series(pd.Categorical(cells, categories=STATUSES), index=cells.index, name=cells.name)


def _vectors(frame: pd.DataFrame, column: Column) -> pd.Series:
    import pandas as pd

    matrix = frame[component_names(column)].to_numpy(dtype=np.float32)
    cells = np.empty(len(matrix), dtype=object)
    cells[:] = list(matrix)
    cells[np.isnan(matrix).all(axis=1)] = None
    return pd.Series(cells, index=frame.index, dtype=object)


def _check_there(frame: pd.DataFrame, owner: str, names: Sequence[str]) -> None:
    present = set(frame.columns)
    missing = [name for name in names if name not in present]
    if missing:
        raise MissingColumnError(owner, missing, map(str, frame.columns))
