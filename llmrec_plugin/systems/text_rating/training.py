"""Training: ``llmrec train text-rating``. Encoder and head learn together, by squared error, unless frozen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmrec_plugin.errors import InputError, MissingColumnError, SourceError
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
from llmrec_plugin.systems.means import Means, rating_scores
from llmrec_plugin.systems.past import MOMENT, PART, TEST, TRAIN, VALIDATION, timeline
from llmrec_plugin.systems.text_rating.network import RatingHead, TextRating
from llmrec_plugin.systems.text_rating.texts import history_texts
from llmrec_plugin.training.loop import Plan, fit

if TYPE_CHECKING:
    import pandas as pd

ENCODER = "encoder"
"""The folder of the trained encoder, inside the output."""
_PAIRS = 65_536
"""Pairs that the head reads at a time."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True, kw_only=True)
class TextRatingSettings:
    """How the model is trained.

    Attributes:
        item_text: Template over the item's columns.
        user_text: Template over the user's columns; empty for the titles of the user's last items.
        title: Template over the item's columns, what histories say of an item.
        last_n: Items of a history at most.
        liked: Ratings from here on count as liked, in histories and for the AUC.
        max_tokens: Longest text in tokens, special tokens included; longer ones are cut.
        layers: Layers of the BERT; None for all of the base.
        dims: Width of a new BERT with random weights; None for the base's weights.
        hidden: Width of the head.
        dropout: Of the head.
        freeze: Whether only the head learns.
        batch_size: Rows of an update.
    """

    item_text: str
    user_text: str = ""
    title: str = "{title}"
    last_n: int = 8
    liked: float = 4.0
    max_tokens: int = 64
    layers: int | None = None
    dims: int | None = None
    hidden: int = 64
    dropout: float = 0.1
    freeze: bool = False
    batch_size: int = 64


@dataclass(frozen=True)
class _Rows:
    """Tokens of both texts and the ratings."""

    users: Sequence[np.ndarray]
    items: Sequence[np.ndarray]
    ratings: np.ndarray

    def __len__(self) -> int:
        return len(self.ratings)

    def lengths(self) -> np.ndarray:
        return np.array([len(user) + len(item) for user, item in zip(self.users, self.items, strict=True)])


def train_text_rating(
    dataset: Dataset,
    base: str,
    output: Path,
    plan: Plan,
    settings: TextRatingSettings,
    *,
    most_rows: int | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains encoder and head, and writes them to `output`.

    Histories hold what is strictly earlier than their label.

    Args:
        dataset: Interactions with ratings, and texts of items and, with `TextRatingSettings.user_text`, of users.
        base: Hugging Face folder of the BERT, or ``package:<package>/<folder>``.
        output: Folder to write; a run that was stopped goes on there.
        plan: How long and how fast.
        settings: Everything else.
        most_rows: Rows to learn from at most, the newest; None for all.
        progress: Whether to show bars.
        report: Called with lines for people.

    Returns:
        ``quality.json``: errors on test rows, beside those of means.

    Raises:
        InputError: There are no ratings, or a template's column is missing.
        SourceError: `base` holds no BERT.
    """
    folder = base_folder(base)
    table = labelled_texts(dataset, settings, plan.seed)
    tokens = [
        tokenize(folder / "tokenizer.json", list(table[column]), settings.max_tokens)
        for column in ("user_text", "item_text")
    ]
    ratings = table[RATING].to_numpy(dtype=np.float32)
    numbers = [np.flatnonzero(table[PART].to_numpy() == part) for part in range(3)]
    if most_rows is not None:
        newest = np.argsort(-table[MOMENT].to_numpy()[numbers[TRAIN]], kind="stable")[:most_rows]
        numbers[TRAIN] = numbers[TRAIN][np.sort(newest)]
    users, items = tokens
    parts = [_Rows([users[row] for row in rows], [items[row] for row in rows], ratings[rows]) for rows in numbers]
    report(f"{len(parts[TRAIN])} rows to learn from, {parts[TRAIN].lengths().sum()} tokens")

    bert = open_bert(folder, layers=settings.layers, dims=settings.dims, seed=plan.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        head = RatingHead(
            bert.config.hidden_size,
            hidden=settings.hidden,
            mean=float(parts[TRAIN].ratings.mean()),
            dropout=settings.dropout,
        )
        network = TextRating(bert, head)
        if settings.freeze:
            bert.requires_grad_(False)
        output.mkdir(parents=True, exist_ok=True)
        history = fit(
            network,
            lambda seed: batches_by_length(parts[TRAIN].lengths(), settings.batch_size, seed),
            lambda rows: _loss(network, parts[TRAIN], rows),
            lambda: _mean_loss(network, parts[VALIDATION]),
            plan,
            checkpoint=output / "work" / "checkpoint.pt",
            identity=json.dumps([base, asdict(settings), _hash(table), most_rows]),
            progress=progress,
            report=report,
        )
    quality = _measure(network, table, parts, settings) | {"epochs": len(history)}
    _save(output, network, folder, settings, plan, quality)
    return quality


def labelled_texts(dataset: Dataset, settings: TextRatingSettings, seed: int) -> pd.DataFrame:
    """The rated interactions in all parts, see `timeline`, with ``user_text`` and ``item_text``.

    Raises:
        InputError: There are no ratings.
        MissingColumnError: A template's column is not there.
    """
    if RATING not in dataset.interactions.columns:
        raise InputError(
            f"data set {dataset.name!r}: interactions have no column {RATING!r}, which is what is learned."
        )
    table = timeline(split_dataset(dataset, seed=seed), seed=seed)
    table = table[table[RATING].notna()].reset_index(drop=True)
    items = _texts(dataset.items, ITEM, settings.item_text)
    if settings.user_text:
        known = _texts(dataset.users, USER, settings.user_text)
        users = [known[user] for user in table[USER]]
    else:
        users = history_texts(
            table[USER].to_numpy(),
            table[MOMENT].to_numpy(),
            table,
            _texts(dataset.items, ITEM, settings.title),
            last_n=settings.last_n,
            liked=settings.liked,
            moment=MOMENT,
        )
    return table.assign(user_text=users, item_text=[items[item] for item in table[ITEM]])


def load_text_rating(folder: Path) -> tuple[TextRating, dict[str, Any]]:
    """The model that `train_text_rating` saved, in evaluation mode, and its configuration.

    Raises:
        SourceError: `folder` is none.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("kind") != "text-rating":
        raise SourceError(f"{folder}: expected what `llmrec train text-rating` wrote.")
    settings = config["settings"]
    network = TextRating(new_bert(config["bert"]), RatingHead(config["bert"]["hidden_size"], hidden=settings["hidden"]))
    load_weights(network.bert, folder / ENCODER / "model.safetensors")
    load_weights(network.head, folder / "head.safetensors")
    return network.eval(), config


def score(folder: Path, rows: Mapping[str, Sequence[str]], *, batch_size: int = 256) -> np.ndarray:
    """What the exported features give for these rows, computed in PyTorch, (n,) float32.

    Args:
        folder: What training wrote.
        rows: ``user_text`` and ``item_text``, n texts each; a table with these columns will do.
        batch_size: Rows at a time.
    """
    network, config = load_text_rating(folder)
    users, items = (
        _tokenized(folder / ENCODER / "tokenizer.json", rows[column], config["settings"]["max_tokens"])
        for column in ("user_text", "item_text")
    )
    return _predict(network, _Rows(users, items, np.zeros(len(users), dtype=np.float32)), batch_size)


def _tokenized(tokenizer: Path, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
    """Token ids of each text; each distinct one is read once."""
    distinct = list(dict.fromkeys(texts))
    ids = dict(zip(distinct, tokenize(tokenizer, distinct, max_tokens), strict=True))
    return [ids[text] for text in texts]


def _texts(table: pd.DataFrame, key: str, template: str) -> dict[str, str]:
    rows = table.fillna("").to_dict("records")
    try:
        return {row[key]: template.format(**row).strip() for row in rows}
    except KeyError as exc:
        raise MissingColumnError(f"text-rating, template {template!r}", [exc.args[0]], table.columns) from exc


def _inputs(rows: _Rows, chosen: np.ndarray) -> tuple[Any, ...]:
    return (*padded([rows.users[row] for row in chosen]), *padded([rows.items[row] for row in chosen]))


def _loss(network: TextRating, rows: _Rows, chosen: np.ndarray) -> Any:
    return torch.nn.functional.mse_loss(network(*_inputs(rows, chosen)), torch.from_numpy(rows.ratings[chosen]))


def _mean_loss(network: TextRating, rows: _Rows) -> float:
    return float(np.mean((_predict(network, rows) - rows.ratings) ** 2))


def _predict(network: TextRating, rows: _Rows, batch_size: int = 256) -> np.ndarray:
    """Ratings, (n,) float32. Each distinct text is encoded once."""
    vectors = []
    with torch.inference_mode():
        for side in (rows.users, rows.items):
            places: dict[bytes, int] = {}
            place = [places.setdefault(row.tobytes(), len(places)) for row in side]
            texts = [np.frombuffer(data, dtype=np.int64) for data in places]
            found = torch.empty(len(texts), network.bert.config.hidden_size)
            for chosen in batches_by_length(np.array([len(text) for text in texts]), batch_size, None):
                found[chosen] = network.encode(*padded([texts[row] for row in chosen]))
            vectors.append((found, torch.tensor(place)))
        (users, of_user), (items, of_item) = vectors
        pairs = zip(of_user.split(_PAIRS), of_item.split(_PAIRS), strict=True)
        return np.concatenate([network.head(users[user], items[item]).numpy() for user, item in pairs])


def _measure(
    network: TextRating, table: pd.DataFrame, parts: list[_Rows], settings: TextRatingSettings
) -> dict[str, Any]:
    learned, tested = (table[table[PART] == number] for number in (TRAIN, TEST))
    means = Means.fit(list(learned[USER]), list(learned[ITEM]), learned[RATING].to_numpy())
    test = parts[TEST].ratings
    return {
        "rows": {name: len(part) for name, part in zip(("train", "validation", "test"), parts, strict=True)},
        "test_users_not_in_training": int((~tested[USER].drop_duplicates().isin(set(learned[USER]))).sum()),
        "test": rating_scores(_predict(network, parts[TEST]), test, settings.liked),
        "test_of_user_and_item_means": rating_scores(
            means.predict(list(tested[USER]), list(tested[ITEM])), test, settings.liked
        ),
        "test_of_means_at_the_moment": rating_scores(
            means.predict_at(tested[USER].to_numpy(), tested[ITEM].to_numpy(), tested[MOMENT].to_numpy(), table),
            test,
            settings.liked,
        ),
        "test_of_mean": rating_scores(np.full(len(test), means.overall), test, settings.liked),
    }


def _save(
    output: Path, network: TextRating, base: Path, settings: TextRatingSettings, plan: Plan, quality: dict[str, Any]
) -> None:
    """Head and configuration; the encoder in a folder of its own, as `llmrec export` reads one."""
    encoder = output / ENCODER
    (encoder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            (encoder / name).write_bytes((base / name).read_bytes())
    dims = network.bert.config.hidden_size
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    weights = [
        save_weights(network.bert, encoder / "model.safetensors"),
        save_weights(network.head, output / "head.safetensors"),
    ]
    files: dict[Path, Any] = {
        encoder / "config.json": {**network.bert.config.to_dict(), "architectures": ["BertModel"]},
        encoder / "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(steps)
        ],
        encoder / "1_Pooling" / "config.json": {
            "word_embedding_dimension": dims,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        encoder / "sentence_bert_config.json": {"max_seq_length": settings.max_tokens, "do_lower_case": False},
        encoder / "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        output / "quality.json": quality,
        output / "config.json": {
            "kind": "text-rating",
            "bert": network.bert.config.to_dict(),
            "weights": weights,
            "settings": asdict(settings),
            "plan": asdict(plan),
        },
    }
    for path, value in files.items():
        path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _hash(table: pd.DataFrame) -> int:
    import pandas as pd

    columns = table[["user_text", "item_text", RATING, PART, MOMENT]]
    return int(pd.util.hash_pandas_object(columns, index=False).to_numpy().sum(dtype=np.uint64))
