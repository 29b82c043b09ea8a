"""Tiny PyTorch networks with random weights, one of each kind of input. Needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny import WORDS, tiny_tokenizer
from torch import Tensor, nn

from llmrec_plugin import NetworkModel
from llmrec_plugin.networks import Id, IdSequence, Image, Network, Number, Tokens, Vector, VectorSequence

ITEMS = tuple(f"i{number}" for number in range(1, 21))
DIMS = 8
SPACE = "one training"


def declare_network(folder: Path, kind: str, *, seed: int = 0, name: str | None = None, **more: object) -> NetworkModel:
    """Writes what training would write, and declares it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"kind": kind, "seed": seed}))
    if kind == "text":
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return NetworkModel(name=name or kind, source=f"path:{folder}", network="tiny_networks:load_network", **more)


def load_network(folder: Path) -> Network:
    config = json.loads((folder / "config.json").read_text())
    torch.manual_seed(config["seed"])
    return _MAKERS[config["kind"]](folder)


class History(nn.Module):
    """Of the last state of a transformer over items, as in BERT4Rec."""

    def __init__(self, items: int = len(ITEMS)) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, 16)
        self.positions = nn.Embedding(64, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, DIMS)

    def forward(self, history: Tensor) -> Tensor:
        padding = history == 0
        positions = torch.arange(history.shape[1], device=history.device)
        states = self.encoder(self.items(history) + self.positions(positions)[None], src_key_padding_mask=padding)
        last = (~padding).sum(1) - 1
        state = states[torch.arange(history.shape[0]), last]
        return nn.functional.normalize(self.out(state), dim=-1)


def _history(folder: Path) -> Network:
    keys = [
        [f"i{1 + (start + step) % 20}" for step in range(length)]
        for start, length in enumerate((1, 2, 3, 7, 8, 9, 16, 20))
    ]
    return Network(
        module=History(),
        inputs=(IdSequence(name="history", vocabulary="items", max_length=12),),
        dims=DIMS,
        metric="cosine",
        normalized=True,
        space=SPACE,
        vocabularies={"items": ITEMS},
        examples=[{"history": row} for row in (*keys, ["unknown", "i3"], ["unknown"], None)],
        candidates=nn.functional.normalize(torch.randn(30, DIMS), dim=-1).numpy(),
        source={"data": "random"},
        quality={"ndcg_at_10": 0.5},
    )


class Adaptor(nn.Module):
    """A stored vector into another space, as UniSRec's adaptor."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dims, 16)
        self.out = nn.Linear(16, DIMS)

    def forward(self, vector: Tensor) -> Tensor:
        return nn.functional.normalize(self.out(torch.relu(self.hidden(vector))), dim=-1)


def _adaptor(folder: Path) -> Network:
    return Network(
        module=Adaptor(8),
        inputs=(Vector(name="vector", dims=8),),
        dims=DIMS,
        metric="cosine",
        normalized=True,
        space=SPACE,
        examples=[{"vector": row} for row in torch.randn(9, 8).tolist()],
    )


class Score(nn.Module):
    """A rating of a pair: a user's key, reviews as vectors, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(4, 8)
        self.out = nn.Linear(8 + 4 + 1, 1)

    def forward(self, user: Tensor, reviews: Tensor, reviews_mask: Tensor, price: Tensor) -> Tensor:
        weights = reviews_mask.float()[:, :, None]
        mean = (reviews * weights).sum(1) / weights.sum(1).clamp(min=1)
        return self.out(torch.cat([self.users(user), mean, price[:, None]], dim=1))[:, 0]


def _score(folder: Path) -> Network:
    def example(number: int) -> dict[str, object]:
        reviews = torch.randn(1 + number % 5, 4).tolist()
        return {"user": f"u{1 + number % 3}", "reviews": reviews, "price": number / 3}

    return Network(
        module=Score(),
        inputs=(
            Id(name="user", vocabulary="users"),
            VectorSequence(name="reviews", dims=4, max_length=3),
            Number(name="price"),
        ),
        dims=None,
        vocabularies={"users": ("u1", "u2", "u3")},
        examples=[example(number) for number in range(10)],
    )


class Text(nn.Module):
    """The mean of word vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 4, DIMS)

    def forward(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        weights = text_mask.float()[:, :, None]
        return (self.words(text_ids) * weights).sum(1) / weights.sum(1)


def _text(folder: Path) -> Network:
    texts = [" ".join(WORDS[number : number + length]) for number, length in enumerate((1, 2, 3, 5, 8, 9, 14, 30))]
    return Network(
        module=Text(),
        inputs=(Tokens(name="text", max_tokens=12),),
        dims=DIMS,
        examples=[{"text": text} for text in texts],
        tokenizer=folder / "tokenizer.json",
    )


class Picture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, DIMS, 8, 8)

    def forward(self, picture: Tensor) -> Tensor:
        return self.patches(picture).flatten(2).mean(2)


def _picture(folder: Path) -> Network:
    half = (0.5, 0.5, 0.5)
    return Network(
        module=Picture(),
        inputs=(Image(name="picture", size=16, mean=half, std=half),),
        dims=DIMS,
        examples=[{"picture": png(20 + number, 30 - number)} for number in range(8)],
    )


def png(width: int, height: int, mode: str = "RGB") -> bytes:
    """A picture with a gradient."""
    import io

    from PIL import Image as Pillow

    picture = Pillow.linear_gradient("L").resize((width, height)).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


_MAKERS = {"history": _history, "adaptor": _adaptor, "score": _score, "text": _text, "picture": _picture}
