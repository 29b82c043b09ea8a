"""Pre-training of U-BERT in a domain with many reviews: ``llmrec train ubert-pretrain``.

masked opinion token prediction   hidden opinion words, guessed among all of them       cross-entropy
opinion rating prediction         the review's rating, standardized                     squared error
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer

from llmrec_plugin.errors import InputError, SourceError
from llmrec_plugin.interactions import ITEM, RATING, USER, Dataset, split_dataset
from llmrec_plugin.systems.bert import (
    base_folder,
    batches_by_length,
    load_weights,
    new_bert,
    open_bert,
    padded,
    save_weights,
    tokenize,
)
from llmrec_plugin.systems.past import PART, TEST, TRAIN, VALIDATION, timeline
from llmrec_plugin.systems.ubert.network import PretrainingNetwork, ReviewEncoder
from llmrec_plugin.systems.ubert.opinions import ids_by_rating, ids_of_words, opinion_places, whole_words
from llmrec_plugin.training.loop import Plan, fit

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """How the review encoder is pre-trained.

    Attributes:
        max_tokens: Longest review in tokens, special tokens included; longer ones are cut.
        layers: Layers of the BERT; None for all of the base.
        dims: Width of a new BERT with random weights; None for the base's weights.
        batch_size: Reviews of an update.
        hide: Share of opinion words that are hidden; one at least where there is one.
        anonymous: Share of the reviews that are read without their author, so that unknown users can be read too.
        rating_weight: Of the second task's loss.
        most_opinions: Opinion words at most, where they are chosen by rating.
        least_count: Reviews that such a word must be in.
    """

    max_tokens: int = 200
    layers: int | None = None
    dims: int | None = None
    batch_size: int = 32
    hide: float = 0.3
    anonymous: float = 0.1
    rating_weight: float = 1.0
    most_opinions: int = 500
    least_count: int = 5


@dataclass(frozen=True)
class _Reviews:
    """Reviews as the network reads them: tokens, authors, opinion words, standardized ratings."""

    tokens: Sequence[np.ndarray]
    users: np.ndarray
    opinions: Sequence[np.ndarray]
    ratings: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


def pretrain(
    dataset: Dataset,
    base: str,
    output: Path,
    plan: Plan,
    settings: PretrainingSettings,
    *,
    review: str = "review",
    words: Sequence[str] | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains the review encoder and the user encoder, and writes them to `output`.

    Args:
        dataset: Interactions with ratings and reviews; rows without a review are left out.
        base: Hugging Face folder of the BERT, or ``package:<package>/<folder>``.
        output: Folder to write; a run that was stopped goes on there.
        plan: How long and how fast.
        settings: Everything else.
        review: Column of the reviews.
        words: Opinion words; None chooses them from the training reviews.
        progress: Whether to show bars.
        report: Called with lines for people.

    Returns:
        ``quality.json``: what the tasks measure on test reviews, and trivial guesses beside it.

    Raises:
        InputError: A column is missing, there are too few reviews, or no opinion words.
        SourceError: `base` holds no BERT with a mask token.
    """
    folder = base_folder(base)
    table = review_rows(dataset, review, plan.seed)
    part = table[PART].to_numpy()
    learned = part == TRAIN
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    mask_id = tokenizer.token_to_id("[MASK]")
    if mask_id is None:
        raise SourceError(f"{folder}: its tokenizer has no [MASK], which pre-training needs.")
    tokens = tokenize(folder / "tokenizer.json", list(table[review]), settings.max_tokens)
    ratings = table[RATING].to_numpy(dtype=np.float64)
    mean, deviation = float(ratings[learned].mean()), max(float(ratings[learned].std()), 1e-6)
    vocabulary = tokenizer.get_vocab()
    if words is not None:
        opinions = ids_of_words(words, vocabulary)
    else:
        opinions = ids_by_rating(
            [row for row, is_learned in zip(tokens, learned, strict=True) if is_learned],
            ratings[learned],
            whole_words(vocabulary),
            most=settings.most_opinions,
            least_count=settings.least_count,
        )
    users = list(dict.fromkeys(table[USER][learned]))
    places = _places(tokens, opinions, vocabulary)
    standardized = (ratings - mean) / deviation
    ids = {user: row + 1 for row, user in enumerate(users)}
    authors = np.array([ids.get(user, 0) for user in table[USER]], dtype=np.int64)
    parts = [_Reviews(*_rows(part == number, tokens, authors, places, standardized)) for number in range(3)]
    report(f"{len(table)} reviews, {learned.sum()} to learn from, {len(users)} authors, {len(opinions)} opinion words")

    bert = open_bert(folder, layers=settings.layers, dims=settings.dims, seed=plan.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        encoder = ReviewEncoder(bert.config.to_dict(), len(users), bert)
        network = PretrainingNetwork(encoder, torch.from_numpy(opinions))
        task = _Task(network, mask_id, settings)
        output.mkdir(parents=True, exist_ok=True)
        history = fit(
            network,
            lambda seed: task.batches(parts[TRAIN], seed),
            lambda item: task.loss(parts[TRAIN], *item),
            lambda: task.mean_loss(parts[VALIDATION]),
            plan,
            checkpoint=output / "work" / "checkpoint.pt",
            identity=_identity(base, settings, table, review, opinions),
            progress=progress,
            report=report,
        )
    quality = {
        "reviews": {name: len(rows) for name, rows in zip(("train", "validation", "test"), parts, strict=True)},
        "authors": len(users),
        "opinion_words": len(opinions),
        "epochs": len(history),
        "test": task.measure(parts[TEST], parts[TRAIN], deviation),
    }
    _save(output, network, folder, settings, plan, users, opinions, tokenizer, quality, (mean, deviation))
    return quality


def review_rows(dataset: Dataset, review: str, seed: int) -> pd.DataFrame:
    """The interactions that have a review and a rating, in all parts, see `timeline`.

    Raises:
        InputError: A column is missing.
    """
    for column in (review, RATING):
        if column not in dataset.interactions.columns:
            raise InputError(
                f"data set {dataset.name!r}: interactions have no column {column!r}; expected {USER}, {ITEM}, {RATING} "
                "and a column of reviews (--review-column)."
            )
    table = timeline(split_dataset(dataset, seed=seed), seed=seed)
    table = table[has_text(table[review]) & table[RATING].notna()].reset_index(drop=True)
    for number, name in enumerate(("training", "validation", "test")):
        if (table[PART] == number).sum() < 2:
            raise InputError(f"data set {dataset.name!r}: expected two {name} reviews or more in column {review!r}.")
    return table


def has_text(values: pd.Series) -> np.ndarray:
    """Which cells hold text that is not blank, (n,) bool."""
    return np.array([isinstance(value, str) and bool(value.strip()) for value in values], dtype=bool)


def load_encoder(folder: Path) -> tuple[ReviewEncoder, dict[str, Any], list[str]]:
    """The review encoder that `pretrain` saved, its configuration, and the users it knows.

    Raises:
        SourceError: `folder` is none.
    """
    config = read_config(folder, "ubert-pretrained")
    users = json.loads((folder / "users.json").read_text(encoding="utf-8"))
    encoder = ReviewEncoder(config["bert"], len(users), new_bert(config["bert"]))
    load_weights(encoder, folder / "review_encoder.safetensors")
    return encoder, config, users


def read_config(folder: Path, kind: str) -> dict[str, Any]:
    """``config.json`` of a folder that training wrote.

    Raises:
        SourceError: It is not there, or of another kind.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("kind") != kind:
        raise SourceError(
            f"{folder}: expected a folder of `llmrec train` of the kind {kind!r}, got {config.get('kind')!r}."
        )
    return dict(config)


def encode_reviews(
    encoder: ReviewEncoder, tokens: Sequence[np.ndarray], users: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """Review vectors, (n, dims) float32, in order.

    Args:
        encoder: In evaluation mode.
        tokens: Token ids of each review.
        users: Ids of the authors, (n,) int64; 0 is unknown.
        batch_size: Reviews at a time.
    """
    vectors = np.empty((len(tokens), encoder.users.embedding_dim), dtype=np.float32)
    with torch.inference_mode():
        for rows in batches_by_length(np.array([len(row) for row in tokens]), batch_size, None):
            vectors[rows] = encoder(*padded([tokens[row] for row in rows]), torch.from_numpy(users[rows])).numpy()
    return vectors


class _Task:
    """Both tasks on batches of reviews."""

    def __init__(self, network: PretrainingNetwork, mask_id: int, settings: PretrainingSettings) -> None:
        self.network = network
        self.mask_id = mask_id
        self.settings = settings
        self.class_of = {int(row): number for number, row in enumerate(network.opinions)}

    def batches(self, reviews: _Reviews, seed: int | None) -> list[tuple[np.ndarray, int]]:
        """Rows of each batch and a seed of what is hidden there."""
        batches = batches_by_length(np.array([len(row) for row in reviews.tokens]), self.settings.batch_size, seed)
        return [(rows, (seed or 0) * 65_537 + number) for number, rows in enumerate(batches)]

    def loss(self, reviews: _Reviews, rows: np.ndarray, seed: int) -> Any:
        """Mean loss of both tasks."""
        words, rating, _ = self.losses(reviews, rows, seed, self.settings.anonymous)
        return words + self.settings.rating_weight * rating

    def losses(
        self, reviews: _Reviews, rows: np.ndarray, seed: int, anonymous: float, *, hide: bool = True
    ) -> tuple[Any, Any, Any]:
        """Losses of the two tasks, and which hidden words were guessed right, (hidden,) bool."""
        rng = np.random.default_rng(seed)
        ids, mask = padded([reviews.tokens[row] for row in rows])
        hidden = torch.zeros(ids.shape, dtype=torch.bool)
        for index, row in enumerate(rows):
            places = reviews.opinions[row]
            if hide and len(places):
                drawn = rng.random(len(places)) < self.settings.hide
                drawn[rng.integers(len(places))] = True
                hidden[index, torch.from_numpy(places[drawn])] = True
        targets = torch.tensor([self.class_of[int(token)] for token in ids[hidden]], dtype=torch.int64)
        users = np.where(rng.random(len(rows)) < anonymous, 0, reviews.users[rows])
        logits, ratings = self.network(ids.masked_fill(hidden, self.mask_id), mask, torch.from_numpy(users), hidden)
        rating = torch.nn.functional.mse_loss(ratings, torch.from_numpy(reviews.ratings[rows].astype(np.float32)))
        if not len(targets):
            return logits.sum(), rating, torch.zeros(0, dtype=torch.bool)
        return torch.nn.functional.cross_entropy(logits, targets), rating, logits.argmax(-1) == targets

    def mean_loss(self, reviews: _Reviews) -> float:
        """Mean loss of all reviews, with the same words hidden each time."""
        total = 0.0
        for rows, seed in self.batches(reviews, None):
            words, rating, _ = self.losses(reviews, rows, seed, 0.0)
            total += (words.item() + self.settings.rating_weight * rating.item()) * len(rows)
        return total / len(reviews)

    def measure(self, reviews: _Reviews, training: _Reviews, deviation: float) -> dict[str, float | None]:
        """Both tasks, ratings of whole reviews, beside the most frequent opinion word and the mean rating."""
        right: list[Any] = []
        squares = 0.0
        with torch.inference_mode():
            for rows, seed in self.batches(reviews, None):
                right.append(self.losses(reviews, rows, seed, 0.0)[2].numpy())
                rating = self.losses(reviews, rows, seed, 0.0, hide=False)[1]
                squares += rating.item() * len(rows)
        frequent = np.bincount(_opinion_tokens(training), minlength=1).argmax()
        tokens = _opinion_tokens(reviews)
        hits = np.concatenate(right)
        return {
            "opinion_accuracy": float(hits.mean()) if len(hits) else None,
            "opinion_accuracy_of_most_frequent": float((tokens == frequent).mean()) if len(tokens) else None,
            "rating_mse": squares / len(reviews) * deviation**2,
            "rating_mse_of_mean": float(np.mean(reviews.ratings**2)) * deviation**2,
        }


def _opinion_tokens(reviews: _Reviews) -> np.ndarray:
    found = [tokens[places] for tokens, places in zip(reviews.tokens, reviews.opinions, strict=True)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *found])


def _places(tokens: Sequence[np.ndarray], opinions: np.ndarray, vocabulary: dict[str, int]) -> list[np.ndarray]:
    size = max(vocabulary.values()) + 1
    is_opinion, continues = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    is_opinion[opinions] = True
    continues[[row for token, row in vocabulary.items() if token.startswith("##")]] = True
    return [opinion_places(row, is_opinion, continues) for row in tokens]


def _rows(
    chosen: np.ndarray, tokens: list[np.ndarray], users: np.ndarray, places: list[np.ndarray], ratings: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray], np.ndarray]:
    rows = np.flatnonzero(chosen)
    return [tokens[row] for row in rows], users[rows], [places[row] for row in rows], ratings[rows]


def _identity(base: str, settings: PretrainingSettings, table: pd.DataFrame, review: str, opinions: np.ndarray) -> str:
    import pandas as pd

    columns = table[[USER, ITEM, RATING, review, PART]]
    rows = int(pd.util.hash_pandas_object(columns, index=False).to_numpy().sum(dtype=np.uint64))
    return json.dumps([base, asdict(settings), rows, opinions.tolist()])


def _save(
    output: Path,
    network: PretrainingNetwork,
    base: Path,
    settings: PretrainingSettings,
    plan: Plan,
    users: list[str],
    opinions: np.ndarray,
    tokenizer: Any,
    quality: dict[str, Any],
    ratings: tuple[float, float],
) -> None:
    (output / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    weights = save_weights(network.encoder, output / "review_encoder.safetensors")
    save_weights(network.user_encoder, output / "user_encoder.safetensors")
    files: dict[str, Any] = {
        "users.json": users,
        "opinions.json": [tokenizer.id_to_token(int(row)) for row in opinions],
        "quality.json": quality,
        "config.json": {
            "kind": "ubert-pretrained",
            "bert": network.encoder.bert.config.to_dict(),
            "max_tokens": settings.max_tokens,
            "mean_rating": ratings[0],
            "rating_deviation": ratings[1],
            "weights": weights,
            "settings": asdict(settings),
            "plan": asdict(plan),
        },
    }
    for name, value in files.items():
        (output / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
