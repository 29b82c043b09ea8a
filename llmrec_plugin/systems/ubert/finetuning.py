"""Fine-tuning of U-BERT in the domain whose ratings are wanted: ``llmrec train ubert``.

reviews -> review encoder (pre-trained, frozen) -> review vectors, once
(user, item, moment) -> newest reviews of both that are strictly earlier -> co-matching -> rating, squared error
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import ITEM, RATING, USER, Dataset, split_dataset
from llmrec_plugin.systems.bert import load_weights, save_weights, tokenize
from llmrec_plugin.systems.means import Means, rating_scores
from llmrec_plugin.systems.past import MOMENT, PART, TEST, TRAIN, VALIDATION, newest_before, timeline
from llmrec_plugin.systems.ubert.network import PairNetwork
from llmrec_plugin.systems.ubert.pretraining import encode_reviews, has_text, load_encoder, read_config
from llmrec_plugin.training.loop import Plan, fit

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class FinetuningSettings:
    """How the pair network is trained.

    Attributes:
        user_reviews: Newest reviews of a user that are read.
        item_reviews: Newest reviews of an item that are read.
        hidden: Length of the pair's vector.
        dropout: Of the pair's vector.
        anonymous: Share of users, and of items, whose id is hidden in training, so that new ones can be read too.
        batch_size: Pairs of an update.
    """

    user_reviews: int = 10
    item_reviews: int = 10
    hidden: int = 64
    dropout: float = 0.1
    anonymous: float = 0.2
    batch_size: int = 256


@dataclass(frozen=True)
class Pairs:
    """Labels and what may be read for them.

    Attributes:
        users: Ids, (n,) int64; 0 is unknown.
        items: Ids, (n,) int64; 0 is unknown.
        of_user: Positions of the user's reviews, the newest first, (n, user_reviews) int64; -1 is none.
        of_item: Positions of the item's reviews, (n, item_reviews) int64.
        ratings: (n,) float32.
    """

    users: np.ndarray
    items: np.ndarray
    of_user: np.ndarray
    of_item: np.ndarray
    ratings: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def only(self, rows: np.ndarray) -> Pairs:
        """Some of the rows."""
        return Pairs(*(values[rows] for values in vars(self).values()))


def finetune(
    dataset: Dataset,
    pretrained: Path,
    output: Path,
    plan: Plan,
    settings: FinetuningSettings,
    *,
    review: str = "review",
    most_rows: int | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains the pair network and writes it to `output`.

    A label is read with reviews of strictly earlier moments only: never its own, and none that is later.

    Args:
        dataset: Interactions with ratings; those with a review are read for later labels.
        pretrained: What `pretrain` wrote; users of both domains are known by equal keys.
        output: Folder to write; a run that was stopped goes on there.
        plan: How long and how fast.
        settings: Everything else.
        review: Column of the reviews.
        most_rows: Labels to learn from at most, the newest; None for all.
        progress: Whether to show bars.
        report: Called with lines for people.

    Returns:
        ``quality.json``: errors on test labels, of the network, of the network without reviews, and of means.

    Raises:
        InputError: A column is missing.
        SourceError: `pretrained` is no such folder.
    """
    encoder, config, authors = load_encoder(pretrained)
    table = rated_rows(dataset, review, plan.seed)
    reviews = table[has_text(table[review])].reset_index(drop=True)
    author_ids = {user: row + 1 for row, user in enumerate(authors)}
    tokens = tokenize(pretrained / "tokenizer.json", list(reviews[review]), config["max_tokens"])
    writers = np.array([author_ids.get(user, 0) for user in reviews[USER]], dtype=np.int64)
    vectors = np.concatenate([encode_reviews(encoder, tokens, writers), np.zeros((1, encoder.users.embedding_dim))])
    vectors = torch.from_numpy(vectors.astype(np.float32))  # the last row stands for no review

    learned = table[PART].to_numpy() == TRAIN
    users = list(dict.fromkeys([*authors, *table[USER][learned]]))
    items = list(dict.fromkeys(table[ITEM][learned]))
    pairs = read_pairs(table, reviews, users, items, settings)
    parts = [pairs.only(np.flatnonzero(table[PART].to_numpy() == number)) for number in range(3)]
    if most_rows is not None:
        newest = np.argsort(-table[MOMENT].to_numpy()[learned], kind="stable")[:most_rows]
        parts[TRAIN] = parts[TRAIN].only(np.sort(newest))
    known = sum(user in author_ids for user in dict.fromkeys(table[USER]))
    report(
        f"{len(parts[TRAIN])} labels to learn from, {len(reviews)} reviews; "
        f"{known} of {table[USER].nunique()} users are known from pre-training"
    )

    mean = float(parts[TRAIN].ratings.mean())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        network = PairNetwork(
            vectors.shape[1], len(users), len(items), hidden=settings.hidden, mean=mean, dropout=settings.dropout
        )
        _take_over(network, encoder.users.weight, pretrained)
        output.mkdir(parents=True, exist_ok=True)
        history = fit(
            network,
            lambda seed: _batches(len(parts[TRAIN]), settings.batch_size, seed),
            lambda rows: _loss(network, parts[TRAIN].only(rows), vectors, settings.anonymous),
            lambda: float(np.mean((predict(network, parts[VALIDATION], vectors) - parts[VALIDATION].ratings) ** 2)),
            plan,
            checkpoint=output / "work" / "checkpoint.pt",
            identity=json.dumps([asdict(settings), config["weights"], _hash(table, review), most_rows]),
            progress=progress,
            report=report,
        )
    quality = _measure(network, table, parts, vectors) | {"epochs": len(history), "reviews": len(reviews)}
    weights = save_weights(network, output / "pair.safetensors")
    files: dict[str, Any] = {
        "users.json": users,
        "items.json": items,
        "quality.json": quality,
        "config.json": {
            "kind": "ubert",
            "dims": vectors.shape[1],
            "weights": weights,
            "review_encoder": config["weights"],
            "scale": float(vectors[:-1].std()) if len(reviews) else 1.0,
            "settings": asdict(settings),
            "plan": asdict(plan),
        },
    }
    for name, value in files.items():
        (output / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return quality


def rated_rows(dataset: Dataset, review: str, seed: int) -> pd.DataFrame:
    """The interactions that have a rating, in all parts, see `timeline`.

    Raises:
        InputError: A column is missing.
    """
    for column in (review, RATING):
        if column not in dataset.interactions.columns:
            raise InputError(f"data set {dataset.name!r}: interactions have no column {column!r} (--review-column).")
    table = timeline(split_dataset(dataset, seed=seed), seed=seed)
    return table[table[RATING].notna()].reset_index(drop=True)


def read_pairs(
    table: pd.DataFrame, reviews: pd.DataFrame, users: list[str], items: list[str], settings: FinetuningSettings
) -> Pairs:
    """The labels of `table`, with the positions in `reviews` of what each may read.

    Args:
        table: Labels, from `timeline`.
        reviews: Rows with a review, from the same timeline, in any order.
        users: Known users.
        items: Known items.
        settings: How many reviews are read.
    """

    def ids(key: str, keys: list[str]) -> np.ndarray:
        known = {value: row + 1 for row, value in enumerate(keys)}
        return np.array([known.get(value, 0) for value in table[key]], dtype=np.int64)

    def earlier(key: str, last_n: int) -> np.ndarray:
        return newest_before(
            table[key].to_numpy(), table[MOMENT].to_numpy(), reviews[key].to_numpy(), reviews[MOMENT].to_numpy(), last_n
        )

    return Pairs(
        users=ids(USER, users),
        items=ids(ITEM, items),
        of_user=earlier(USER, settings.user_reviews),
        of_item=earlier(ITEM, settings.item_reviews),
        ratings=table[RATING].to_numpy(dtype=np.float32),
    )


def predict(network: PairNetwork, pairs: Pairs, vectors: Tensor, *, batch_size: int = 1024) -> np.ndarray:
    """Ratings of pairs, (n,) float32.

    Args:
        network: In evaluation mode.
        pairs: What to rate.
        vectors: Review vectors, (reviews + 1, dims); the last row stands for no review.
        batch_size: Pairs at a time.
    """
    with torch.inference_mode():
        parts = [
            network(*_inputs(pairs.only(rows), vectors)).numpy()
            for rows in np.array_split(np.arange(len(pairs)), max(1, -(-len(pairs) // batch_size)))
        ]
    return np.concatenate(parts)


def load_pair_network(folder: Path) -> tuple[PairNetwork, dict[str, Any]]:
    """The network that `finetune` saved, and its configuration.

    Raises:
        SourceError: `folder` is none.
    """
    config = read_config(folder, "ubert")
    sizes = [len(json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))) for name in ("users", "items")]
    network = PairNetwork(config["dims"], *sizes, hidden=config["settings"]["hidden"])
    load_weights(network, folder / "pair.safetensors")
    return network, config


def _take_over(network: PairNetwork, users: Tensor, pretrained: Path) -> None:
    """User embeddings and user encoder begin as pre-training left them; a new user as somebody unknown."""
    load_weights(network.user_encoder, pretrained / "user_encoder.safetensors")
    with torch.no_grad():
        network.users.weight[:] = users[0]
        network.users.weight[: len(users)] = users


def _inputs(pairs: Pairs, vectors: Tensor) -> tuple[Tensor, ...]:
    of_user, of_item = (torch.from_numpy(found) for found in (pairs.of_user, pairs.of_item))
    users, items = (torch.from_numpy(ids) for ids in (pairs.users, pairs.items))
    return (vectors[of_user], (of_user >= 0).long(), vectors[of_item], (of_item >= 0).long(), users, items)


def _loss(network: PairNetwork, pairs: Pairs, vectors: Tensor, anonymous: float) -> Tensor:
    *sides, users, items = _inputs(pairs, vectors)
    users, items = (ids.masked_fill(torch.rand(ids.shape) < anonymous, 0) for ids in (users, items))
    return torch.nn.functional.mse_loss(network(*sides, users, items), torch.from_numpy(pairs.ratings))


def _batches(rows: int, size: int, seed: int) -> list[np.ndarray]:
    return np.array_split(np.random.default_rng(seed).permutation(rows), max(1, -(-rows // size)))


def _measure(network: PairNetwork, table: pd.DataFrame, parts: list[Pairs], vectors: Tensor) -> dict[str, Any]:
    test = parts[TEST]
    learned, tested = (table[table[PART] == number] for number in (TRAIN, TEST))
    means = Means.fit(list(learned[USER]), list(learned[ITEM]), learned[RATING].to_numpy())
    none = Pairs(test.users, test.items, np.full_like(test.of_user, -1), np.full_like(test.of_item, -1), test.ratings)
    both = (test.of_user[:, 0] >= 0) & (test.of_item[:, 0] >= 0)
    predicted = predict(network, test, vectors)
    baseline = means.predict(list(tested[USER]), list(tested[ITEM]))
    quality: dict[str, Any] = {
        "labels": {name: len(part) for name, part in zip(("train", "validation", "test"), parts, strict=True)},
        "test": rating_scores(predicted, test.ratings),
        "test_without_reviews": rating_scores(predict(network, none, vectors), test.ratings),
        "test_of_user_and_item_means": rating_scores(baseline, test.ratings),
        "test_of_means_at_the_moment": rating_scores(
            means.predict_at(tested[USER].to_numpy(), tested[ITEM].to_numpy(), tested[MOMENT].to_numpy(), table),
            test.ratings,
        ),
        "test_of_mean": rating_scores(np.full(len(test), means.overall), test.ratings),
        "test_labels_with_reviews_of_both": int(both.sum()),
    }
    if both.any():
        quality["test_with_reviews_of_both"] = rating_scores(predicted[both], test.ratings[both])
        quality["test_with_reviews_of_both_of_user_and_item_means"] = rating_scores(baseline[both], test.ratings[both])
    return quality


def _hash(table: pd.DataFrame, review: str) -> int:
    import pandas as pd

    columns = table[[USER, ITEM, RATING, review, PART, MOMENT]]
    return int(pd.util.hash_pandas_object(columns, index=False).to_numpy().sum(dtype=np.uint64))
