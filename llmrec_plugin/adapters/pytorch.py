"""A training frame as a PyTorch dataset, and the batches that a ranker reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_plugin.adapters.columns import Vector, column_of, vector_matrix
from llmrec_plugin.errors import ColumnTypeError, DeclarationError, MissingColumnError, MissingExtraError

try:
    import torch
    from torch.utils.data import Dataset
except ModuleNotFoundError as exc:
    raise MissingExtraError("torch", "export", "RankerDataset") from exc

if TYPE_CHECKING:
    import pandas as pd

PADDING = 0
"""The id that fills up lists of tags; with it ``torch.nn.Embedding(ids, dims, padding_idx=PADDING)``."""
UNKNOWN = 1
"""The id of a value that is not in the vocabulary, and of a category that is missing."""
FIRST = 2
"""The id of the vocabulary's first entry: a vocabulary of n needs n + 2 ids."""


class RankerDataset(Dataset[dict[str, torch.Tensor]]):
    """The rows of a historical read as tensors; to be loaded with ``collate_fn=collate_rows``.

    Everything is converted once, when the dataset is made. A row has:

    * ``numbers``: (k,) float32, the columns of `numbers` in their order, 0 where there is none;
      ``numbers_present``: (k,) bool;
    * ``<name>`` of each vector: (dims,) float32, zeros where there is none; ``<name>_present``: () bool;
    * ``<name>`` of each category: () int64, see `UNKNOWN` and `FIRST`;
    * ``<name>`` of each list of tags: (length,) int64, the same ids; no tags and no list are both of length 0;
    * ``label``: () float32, if there is one.

    Args:
        frame: From ``get_historical_features(...).to_df()``.
        numbers: Columns of numbers or bools.
        vectors: Features whose columns are vectors, or columns of a `Layout`.
        categories: Column of strings -> its vocabulary, e.g. a `Choice`'s options or the statuses.
        tags: Column of lists of strings -> its vocabulary, that of the `Tags`.
        label: Column of the label.

    Raises:
        MissingColumnError: The frame lacks a column.
        ColumnTypeError: A column holds something else, or a label is missing.
        DeclarationError: Two columns would have one name, or a vocabulary has an entry twice.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        *,
        numbers: Sequence[str] = (),
        vectors: Iterable[Vector] = (),
        categories: Mapping[str, Sequence[str]] | None = None,
        tags: Mapping[str, Sequence[str]] | None = None,
        label: str | None = None,
    ) -> None:
        columns = [column_of(vector) for vector in vectors]
        categories, tags = categories or {}, tags or {}
        own = [column.name for column in columns] + [*categories, *tags]
        _check_names(frame, [*numbers, *own, *([label] if label else [])], own)
        self._length = len(frame)
        self._tensors: dict[str, torch.Tensor] = {}
        if numbers:
            matrix = np.column_stack([_numbers(frame[name]) for name in numbers])
            self._add("numbers", matrix, ~np.isnan(matrix))
        for column in columns:
            matrix = vector_matrix(frame[column.name], column)
            self._add(column.name, matrix, ~np.isnan(matrix).all(axis=1))
        for name, vocabulary in categories.items():
            self._tensors[name] = torch.from_numpy(_ids(frame[name], name, vocabulary))
        if label:
            self._tensors["label"] = torch.from_numpy(_label(frame[label]))
        self._tags = {name: _lists(frame[name], name, vocabulary) for name, vocabulary in tags.items()}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        if not -self._length <= row < self._length:
            raise IndexError(f"row {row} of {self._length}")
        row %= self._length
        found = {name: tensor[row] for name, tensor in self._tensors.items()}
        return found | {name: ids[starts[row] : starts[row + 1]] for name, (ids, starts) in self._tags.items()}

    def _add(self, name: str, matrix: np.ndarray, present: np.ndarray) -> None:
        self._tensors[name] = torch.from_numpy(np.where(np.isnan(matrix), np.float32(0), matrix))
        self._tensors[f"{name}_present"] = torch.from_numpy(present)


def collate_rows(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of b rows of a `RankerDataset`: each tensor stacked, (b, ...).

    Lists of tags become (b, longest) int64, padded with `PADDING`, and ``<name>_mask``, (b, longest) bool, is True
    where there is a tag. The longest list has length 1 at least, so that no batch is without columns.
    """
    batch: dict[str, torch.Tensor] = {}
    for name, first in rows[0].items():
        tensors = [row[name] for row in rows]
        if first.dtype == torch.int64 and first.dim() == 1:  # the only such rows are lists of tags
            lengths = torch.tensor([len(ids) for ids in tensors])
            longest = max(int(lengths.max()), 1)
            padded = torch.full((len(rows), longest), PADDING, dtype=torch.int64)
            mask = torch.arange(longest) < lengths[:, None]
            padded[mask] = torch.cat(tensors)
            batch[name], batch[f"{name}_mask"] = padded, mask
        else:
            batch[name] = torch.stack(tensors)
    return batch


def _check_names(frame: pd.DataFrame, read: Sequence[str], own: Sequence[str]) -> None:
    missing = sorted(set(read) - set(frame.columns))
    if missing:
        raise MissingColumnError("RankerDataset", missing, map(str, frame.columns))
    repeated = {name for name in own if own.count(name) > 1} | (set(own) & {"numbers", "numbers_present", "label"})
    if repeated:
        raise DeclarationError(
            f"RankerDataset: {min(repeated)!r} is named twice, or is a name that batches use themselves. Name each "
            "column once, and rename the column otherwise."
        )


def _numbers(cells: pd.Series) -> np.ndarray:
    import pandas as pd

    try:
        return pd.to_numeric(cells).to_numpy(dtype=np.float32, na_value=np.nan, copy=True)
    except (ValueError, TypeError) as exc:
        raise ColumnTypeError(f"Column {cells.name!r}: expected numbers, got {exc}.") from exc


def _label(cells: pd.Series) -> np.ndarray:
    values = _numbers(cells)
    if np.isnan(values).any():
        raise ColumnTypeError(
            f"Column {cells.name!r}: {int(np.isnan(values).sum())} of {len(values)} rows have no label. Leave them out."
        )
    return values


def _ids(cells: Any, name: str, vocabulary: Sequence[str]) -> np.ndarray:
    """(n,) int64."""
    import pandas as pd

    index = pd.Index(vocabulary, dtype=object)
    if not index.is_unique:
        entry = index[index.duplicated()][0]
        raise DeclarationError(f"RankerDataset: the vocabulary of {name!r} has {entry!r} twice.")
    found = index.get_indexer(pd.Index(cells, dtype=object))
    return np.where(found < 0, UNKNOWN, found + FIRST).astype(np.int64)


def _lists(cells: pd.Series, name: str, vocabulary: Sequence[str]) -> tuple[torch.Tensor, list[int]]:
    """The ids of all rows, one after another, and where each row begins; one more at the end."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        array = pa.array(np.asarray(cells, dtype=object), pa.list_(pa.string()), from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as exc:
        raise ColumnTypeError(f"Column {name!r}: expected lists of strings, or None: {exc}.") from exc
    ids = _ids(array.flatten().to_numpy(zero_copy_only=False), name, vocabulary)
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return torch.from_numpy(ids), [0, *np.cumsum(lengths).tolist()]
