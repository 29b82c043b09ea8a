"""The network of the DeepFM ranker. Imports torch, which only this ranker needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from llmrec_plugin.evaluation.rankers import Table

_ROWS = 32_768  # scored at a time


@dataclass(frozen=True)
class Scaler:
    """Standardizes columns by the training rows, and marks what is missing."""

    mean: np.ndarray
    scale: np.ndarray
    gaps: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Scaler:
        """The scaler of (R, k) training values."""
        known = ~np.isnan(values)
        counts = np.maximum(known.sum(axis=0), 1)
        filled = np.where(known, values, 0.0)
        mean = filled.sum(axis=0, dtype=np.float64) / counts
        spread = np.sqrt((np.where(known, values - mean, 0.0) ** 2).sum(axis=0) / counts)
        return cls(
            mean.astype(np.float32), np.maximum(spread, 1e-6).astype(np.float32), np.flatnonzero(~known.all(axis=0))
        )

    @property
    def width(self) -> int:
        """Fields that come out."""
        return len(self.mean) + len(self.gaps)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(R, width) float32 within [-5, 5]."""
        scaled = np.clip((values - self.mean) / self.scale, -5, 5)
        missing = np.isnan(scaled)
        return np.concatenate([np.where(missing, 0, scaled), missing[:, self.gaps]], axis=1).astype(np.float32)


class Network(torch.nn.Module):
    """Linear part, factorization machine and a network over ids, columns and projected vectors.

    Args:
        sizes: Users and items with an id, that of the unknown included.
        columns: Numeric fields.
        vectors: Dimensions of each pair of vectors.
        width: Numbers of a field in the factorization machine.
        hidden: Widths of the network's layers.
    """

    def __init__(
        self, sizes: tuple[int, int], columns: int, vectors: Sequence[int], width: int, hidden: Sequence[int]
    ) -> None:
        super().__init__()
        self.ids = torch.nn.ModuleList(torch.nn.Embedding(size, width) for size in sizes)
        self.biases = torch.nn.ModuleList(torch.nn.Embedding(size, 1) for size in sizes)
        for table in (*self.ids, *self.biases):
            torch.nn.init.normal_(table.weight, std=0.01)
        self.linear = torch.nn.Linear(columns, 1)
        self.factors = torch.nn.Parameter(torch.randn(columns, width) * 0.01)
        self.projections = torch.nn.ModuleList(torch.nn.Linear(dims, width) for dims in vectors for _ in range(2))
        layers: list[torch.nn.Module] = []
        inputs = columns + width * (2 + 2 * len(vectors))
        for size in hidden:
            layers += [torch.nn.Linear(inputs, size), torch.nn.ReLU(), torch.nn.Dropout(0.1)]
            inputs = size
        self.deep = torch.nn.Sequential(*layers, torch.nn.Linear(inputs, 1))

    def forward(self, user: Any, item: Any, values: Any, *sides: Any) -> Any:
        """(R,) logits of ids (R,), columns (R, k), and vectors (R, d), which are items' and lists' in turn."""
        fields = [table(ids) for table, ids in zip(self.ids, (user, item), strict=True)]
        fields += [layer(side) for layer, side in zip(self.projections, sides, strict=True)]
        return self.head(user, item, values, fields)

    def head(self, user: Any, item: Any, values: Any, fields: list[Any]) -> Any:
        """(R,) logits from fields (R, width) that are projected already."""
        first = self.biases[0](user) + self.biases[1](item) + self.linear(values)
        total = sum(fields) + values @ self.factors
        squares = sum(field**2 for field in fields) + values**2 @ self.factors**2
        pairs = 0.5 * (total**2 - squares).sum(dim=1)
        return first[:, 0] + pairs + self.deep(torch.cat([values, *fields], dim=1))[:, 0]

    def tensors(self, table: Table, scaler: Scaler) -> list[Any]:
        """Users, items and columns of a table."""
        return [*self.known(table.user, table.item), torch.from_numpy(scaler(table.values))]

    def known(self, user: np.ndarray, item: np.ndarray) -> list[Any]:
        """Ids as tensors; one that training did not see is unknown."""
        sizes = [table.num_embeddings for table in self.ids]
        return [torch.from_numpy(np.where(ids < size, ids, 0)) for ids, size in zip((user, item), sizes, strict=True)]

    def sides(self, table: Table, rows: Any) -> list[Any]:
        """The vectors of some rows."""
        place, query = table.place[rows.numpy()], table.query[rows.numpy()]
        return [
            torch.from_numpy(np.nan_to_num(vectors))
            for sides in table.vectors
            for vectors in (sides.item[place], sides.query[query])
        ]


def scores(network: Network, scaler: Scaler, table: Table) -> np.ndarray:
    """(R,) float64 scores of a table; vectors are projected once, not once a row."""
    network.eval()
    found = np.empty(len(table.values))
    with torch.no_grad():
        projected = [
            layer(torch.from_numpy(np.nan_to_num(vectors)))
            for layer, vectors in zip(
                network.projections,
                (each for sides in table.vectors for each in (sides.item, sides.query)),
                strict=True,
            )
        ]
        for first in range(0, len(found), _ROWS):
            rows = slice(first, first + _ROWS)
            user, item = network.known(table.user[rows], table.item[rows])
            places = (table.place[rows], table.query[rows])
            fields = [network.ids[0](user), network.ids[1](item)]
            fields += [side[torch.from_numpy(places[number % 2])] for number, side in enumerate(projected)]
            found[rows] = network.head(user, item, torch.from_numpy(scaler(table.values[rows])), fields).numpy()
    return found
