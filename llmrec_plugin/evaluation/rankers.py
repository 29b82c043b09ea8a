"""The rankers that read feature columns: LightGBM's LambdaMART, and a DeepFM in PyTorch.

Both take whatever columns come and know nothing of where they are from. Each is trained on lists of relevant items and
drawn negatives, stops early on the lists of validation, and has a small grid of hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from llmrec_plugin.errors import UnknownNameError
from llmrec_plugin.evaluation.extras import need
from llmrec_plugin.evaluation.metrics import ndcg, positions


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Vectors of items (M, d) and of lists (Q, d) float32 for the networks that read some."""

    item: np.ndarray
    query: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of lists as a ranker reads them.

    Attributes:
        values: (R, k) float32 columns; NaN is missing.
        query: (R,) int64 list of each row; rows of a list stand together.
        item: (R,) int64 id, 0 for an item without events.
        user: (R,) int64 id, 0 for a user without events.
        place: (R,) int64 index of the item among all, for vectors.
        label: (R,) float32, 1 for relevant; empty when ranking.
        vectors: One pair for each feature set that has vectors.
    """

    values: np.ndarray
    query: np.ndarray
    item: np.ndarray
    user: np.ndarray
    place: np.ndarray
    label: np.ndarray
    vectors: tuple[Sides, ...] = ()

    def mean_ndcg(self, scores: np.ndarray, k: int = 10) -> float:
        """Mean NDCG@k over the lists, each ranked among its own rows."""
        bounds = np.flatnonzero(np.diff(self.query, prepend=-1, append=-1))
        found = [ndcg(positions(scores[first:last], self.label[first:last] > 0), k) for first, last in pairwise(bounds)]
        return float(np.nanmean(found))


Model = Callable[[Table], np.ndarray]
"""A trained ranker: (R,) float64 scores of a table's rows."""


class Ranker(Protocol):
    """How a ranker is trained."""

    @property
    def name(self) -> str:
        """Its name in results."""
        ...

    @property
    def grid(self) -> tuple[Mapping[str, Any], ...]:
        """The hyper-parameters among which validation chooses, the same for every arm."""
        ...

    def fit(self, train: Table, validation: Table, params: Mapping[str, Any], seed: int) -> Model:
        """The ranker trained with these hyper-parameters."""
        ...


@dataclass(frozen=True, kw_only=True)
class LambdaMart:
    """LambdaMART of LightGBM; at most `trees` trees, fewer where validation NDCG@10 has not risen for 20."""

    name: str = "lightgbm"
    trees: int = 150
    threads: int = 1
    grid: tuple[Mapping[str, Any], ...] = (
        {"num_leaves": 15, "min_data_in_leaf": 50},
        {"num_leaves": 31, "min_data_in_leaf": 20},
    )

    def fit(self, train: Table, validation: Table, params: Mapping[str, Any], seed: int) -> Model:
        lightgbm = need("lightgbm")
        settings = {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [10],
            "learning_rate": 0.08,
            "lambda_l2": 1.0,
            "feature_fraction": 0.8,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.threads,
            "verbosity": -1,
            **params,
        }
        data = lightgbm.Dataset(train.values, train.label, group=_sizes(train.query), free_raw_data=True)
        held_out = lightgbm.Dataset(validation.values, validation.label, group=_sizes(validation.query), reference=data)
        stop = lightgbm.early_stopping(20, verbose=False)
        booster = lightgbm.train(settings, data, self.trees, valid_sets=[held_out], callbacks=[stop])
        return lambda table: np.asarray(booster.predict(table.values, num_threads=self.threads), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class DeepFm:
    """DeepFM (Guo et al. 2017): a linear part, a factorization machine and a network over the same fields.

    Fields are the user's and the item's id, each column, and each vector, projected to `width` numbers. Columns are
    standardized, and a missing value is the mean with a field of its own that says so. Loss is the cross entropy of
    relevant or not; the epoch with the best validation NDCG@10 counts.
    """

    name: str = "deepfm"
    width: int = 8
    hidden: tuple[int, ...] = (64, 32)
    epochs: int = 12
    patience: int = 3
    batch: int = 2048
    grid: tuple[Mapping[str, Any], ...] = (
        {"learning_rate": 2e-3, "weight_decay": 1e-4},
        {"learning_rate": 2e-3, "weight_decay": 1e-2},
    )

    def fit(self, train: Table, validation: Table, params: Mapping[str, Any], seed: int) -> Model:
        torch = need("torch")
        from llmrec_plugin.evaluation.deepfm import Network, Scaler, scores

        scaler = Scaler.of(train.values)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = (
                int(max(train.user.max(), validation.user.max())) + 1,
                int(max(train.item.max(), validation.item.max())) + 1,
            )
            network = Network(
                sizes, scaler.width, [sides.item.shape[1] for sides in train.vectors], self.width, self.hidden
            )
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=params["learning_rate"], weight_decay=params["weight_decay"]
            )
            inputs, label = network.tensors(train, scaler), torch.from_numpy(train.label)
            positive = torch.tensor(float((train.label == 0).sum() / max((train.label > 0).sum(), 1)))
            loss = torch.nn.BCEWithLogitsLoss(pos_weight=positive.sqrt())
            best, kept, since = -1.0, None, 0
            for _ in range(self.epochs):
                network.train()
                order = torch.randperm(len(label))
                for part in order.split(self.batch):
                    value = loss(network(*(each[part] for each in inputs), *network.sides(train, part)), label[part])
                    optimizer.zero_grad()
                    value.backward()
                    optimizer.step()
                reached = validation.mean_ndcg(scores(network, scaler, validation))
                if reached > best:
                    best, since = reached, 0
                    kept = {name: weight.clone() for name, weight in network.state_dict().items()}
                else:
                    since += 1
                    if since >= self.patience:
                        break
            assert kept is not None
            network.load_state_dict(kept)
        return lambda table: scores(network, scaler, table)


RANKERS = ("lightgbm", "deepfm")


def ranker_named(name: str, threads: int) -> Ranker:
    """A ranker by its name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in RANKERS:
        raise UnknownNameError("ranker", name, RANKERS)
    return LambdaMart(threads=threads) if name == "lightgbm" else DeepFm()


def _sizes(query: np.ndarray) -> np.ndarray:
    return np.diff(np.flatnonzero(np.diff(query, prepend=-1, append=-1)))
