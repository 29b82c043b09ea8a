"""Trains and exports U-BERT and the text rating model, tiny. Apart from `steps.py`, because it needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tiny import WORDS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.export import export_model, export_network
from llmrec_plugin.interactions import Dataset
from llmrec_plugin.systems import text_rating, ubert
from llmrec_plugin.systems.bert import tokenize
from llmrec_plugin.systems.text_rating.texts import user_texts
from llmrec_plugin.systems.text_rating.training import TextRatingSettings, score, train_text_rating
from llmrec_plugin.systems.ubert.finetuning import FinetuningSettings, finetune, load_pair_network
from llmrec_plugin.systems.ubert.pretraining import PretrainingSettings, encode_reviews, load_encoder, pretrain
from llmrec_plugin.training.loop import Plan

PLAN = Plan(epochs=1, patience=1, learning_rate=1e-3)
QUIET: dict[str, Any] = {"progress": False, "report": lambda line: None}


def dataset() -> Dataset:
    """Four users review five items, an hour apart."""
    rng = np.random.default_rng(0)
    rows = 60
    words = rng.choice(WORDS, (rows, 3))
    interactions = pd.DataFrame(
        {
            "user_id": [f"u{n % 4}" for n in range(rows)],
            "item_id": [f"i{n % 5}" for n in range(rows)],
            "rating": rng.choice([1.0, 5.0], rows),
            "timestamp": pd.date_range("2026-01-01", periods=rows, freq="h", tz="UTC").astype("datetime64[us, UTC]"),
            "review": [" ".join(row) for row in words],
        }
    )
    items = pd.DataFrame(
        {"item_id": [f"i{n}" for n in range(5)], "title": [f"{WORDS[n]} {WORDS[n + 9]}" for n in range(5)]}
    )
    return Dataset(
        name="tiny", interactions=interactions, items=items, users=interactions[["user_id"]].drop_duplicates()
    )


def save_base(folder: Path) -> str:
    """A vocabulary of the tiny words and a configuration; no weights."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: row for row, word in enumerate([*special, "liked", "disliked", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask", "token_type_ids"], **names
    ).save_pretrained(folder)
    BertConfig(vocab_size=len(words), max_position_embeddings=32, num_hidden_layers=1).save_pretrained(folder)
    return str(folder)


def train(where: str, artifacts: str) -> dict[str, Any]:
    """Trains, exports, and returns what PyTorch computes: review vectors, ratings of pairs, ratings of texts."""
    torch.set_num_threads(1)
    root, store, data = Path(where), ArtifactStore([Path(artifacts)]), dataset()
    base = save_base(root / "base")
    small = PretrainingSettings(max_tokens=16, dims=16, layers=1)
    pretrain(data, base, root / "pretrained", PLAN, small, words=list(WORDS), **QUIET)
    sizes = FinetuningSettings(user_reviews=3, item_reviews=4, hidden=8)
    finetune(data, root / "pretrained", root / "tuned", PLAN, sizes, **QUIET)
    settings = TextRatingSettings(item_text="{title}", max_tokens=24, dims=16, layers=1, last_n=3)
    train_text_rating(data, base, root / "text-rating", PLAN, settings, **QUIET)

    folder = root / "text-rating"
    networks = (
        ubert.review_encoder(root / "pretrained"),
        *ubert.pair_networks(root / "tuned"),
        *ubert.pair_networks(root / "tuned", ids=True, prefix="known"),
        text_rating.rating_network(folder),
        text_rating.head_network(folder),
    )
    for network in networks:
        export_network(network, store)
    export_model(text_rating.text_encoder(folder, dims=16, max_tokens=24), store)
    return _reviews(root, data) | _texts(folder, data)


def _reviews(root: Path, data: Dataset) -> dict[str, Any]:
    encoder, _, users = load_encoder(root / "pretrained")
    log = data.interactions
    ids = np.array([users.index(user) + 1 for user in log["user_id"]])
    vectors = encode_reviews(encoder, tokenize(root / "pretrained" / "tokenizer.json", list(log["review"]), 16), ids)
    network, _ = load_pair_network(root / "tuned")
    pairs = {}
    for user in ("u0", "u1"):
        for item in ("i0", "i3"):
            sides = [
                vectors[np.flatnonzero(log[key] == value)[::-1][:last_n].copy()]
                for key, value, last_n in (("user_id", user, 3), ("item_id", item, 4))
            ]
            tensors = [
                part for side in sides for part in (torch.from_numpy(side)[None], torch.ones(1, len(side)).long())
            ]
            with torch.inference_mode():
                pairs[f"{user} {item}"] = network(*tensors, *torch.zeros(2, 1).long()).item()
    return {"vectors": vectors.tolist(), "pairs": pairs}


def _texts(folder: Path, data: Dataset) -> dict[str, Any]:
    texts = user_texts(data.interactions, data.item_texts("{title}"), last_n=3)
    last = texts.drop_duplicates("user_id", keep="last").set_index("user_id")["user_text"]
    items = data.items.set_index("item_id")["title"]
    pairs = [(user, item) for user in ("u0", "u1") for item in ("i0", "i3")]
    rows = {"user_text": [last[user] for user, _ in pairs], "item_text": [items[item] for _, item in pairs]}
    ratings = score(folder, rows).tolist()
    return {"texts": {f"{user} {item}": rating for (user, item), rating in zip(pairs, ratings, strict=True)}}
