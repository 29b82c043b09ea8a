"""UniSRec's network, the whitening without training, and the graphs that are exported of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from llmrec_plugin.systems.attention import Block, initialize


@dataclass(frozen=True, kw_only=True)
class Size:
    """What fixes the shapes of all weights.

    Attributes:
        dims: Length of a text vector.
        items: Items with a vector of their own beside their text (transductive); 0: none (inductive).
        hidden: Width of a state and of an item's vector.
        layers: Transformer layers.
        heads: Attention heads of each; they divide `hidden`.
        inner: Width inside the feed-forward networks.
        experts: Whitening experts of the adaptor.
        max_length: Events of a history that are read.
        dropout: Share of states and attention weights that are dropped in training.
        adaptor_dropout: Share of the components of text vectors that are dropped in training.
    """

    dims: int
    items: int = 0
    hidden: int = 64
    layers: int = 2
    heads: int = 2
    inner: int = 256
    experts: int = 4
    max_length: int = 50
    dropout: float = 0.2
    adaptor_dropout: float = 0.2


class Adaptor(nn.Module):
    """A mixture of parametric whitenings, from a text vector to an item's vector.

    Hou et al. 2022, section 2.1: expert k gives ``(x - b_k) W_k``, and a gate weighs the experts by a softmax of
    ``x G``; in training, noise of a learned size is added to the gate's logits.
    """

    def __init__(self, dims: int, hidden: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, dims, hidden))
        self.bias = nn.Parameter(torch.zeros(experts, dims))
        self.gate = nn.Parameter(torch.zeros(dims, experts))
        self.noise = nn.Parameter(torch.zeros(dims, experts))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, texts: Tensor) -> Tensor:
        """(n, dims) to (n, hidden)."""
        logits = texts @ self.gate
        if self.training:
            spread = functional.softplus(texts @ self.noise) + 1e-2
            logits = logits + torch.randn_like(logits) * spread
        gates = logits.softmax(-1)[:, :, None]
        shifts = (self.bias[:, None] @ self.weight)[:, 0]  # (experts, hidden)
        white = torch.einsum("nd,edh->neh", self.dropout(texts), self.weight) - shifts
        return (gates * white).sum(1)


class UniSRec(nn.Module):
    """Item vectors from text vectors, and user vectors from the item vectors of a history."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.positions = nn.Embedding(size.max_length, size.hidden)
        self.ids = nn.Embedding(size.items + 1, size.hidden, padding_idx=0) if size.items else None
        self.norm = nn.LayerNorm(size.hidden, eps=1e-12)
        self.dropout = nn.Dropout(size.dropout)
        self.blocks = nn.ModuleList(
            [Block(size.hidden, size.heads, size.inner, size.dropout) for _ in range(size.layers)]
        )
        initialize(self)
        self.adaptor = Adaptor(size.dims, size.hidden, size.experts, size.adaptor_dropout)

    def item_vectors(self, texts: Tensor, ids: Tensor | None = None) -> Tensor:
        """(n, dims) and, transductive, ids (n,) int64, to (n, hidden); not normalized."""
        vectors = self.adaptor(texts)
        return vectors if self.ids is None or ids is None else vectors + self.ids(ids)

    def states(self, vectors: Tensor) -> Tensor:
        """Item vectors, oldest first, (batch, length, hidden), to states that read what is before them, same shape."""
        places = torch.arange(vectors.shape[1], device=vectors.device)
        # Padding may go on behind the last place; nobody reads it.
        states = self.dropout(self.norm(vectors + self.positions(places.clamp(max=self.size.max_length - 1))))
        readable = (places[None, :] <= places[:, None])[None, None]
        for block in self.blocks:
            states = block(states, readable)
        return states

    def user(self, vectors: Tensor, count: Tensor) -> Tensor:
        """The state of the last of `count` items, (batch,) int64, with unit norm, (batch, hidden)."""
        place = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.size.hidden)
        return functional.normalize(self.states(vectors).gather(1, place)[:, 0], dim=-1)


class ItemVector(nn.Module):
    """Text vectors, (batch, dims) float32, to item vectors, (batch, hidden) float32, not normalized.

    Their length is part of what a history's encoder reads, so it is kept; they are compared by cosine.
    """

    def __init__(self, network: UniSRec) -> None:
        super().__init__()
        self.network = network

    def forward(self, text: Tensor) -> Tensor:
        return self.network.item_vectors(text)


class ItemVectorWithId(nn.Module):
    """Text vectors and ids, (batch,) int64, to item vectors."""

    def __init__(self, network: UniSRec) -> None:
        super().__init__()
        self.network = network

    def forward(self, text: Tensor, item: Tensor) -> Tensor:
        return self.network.item_vectors(text, item)


class UserOfIds(nn.Module):
    """History ids, (batch, length) int64, oldest first, to user vectors; the item vectors are in the graph."""

    def __init__(self, network: UniSRec | Mean, table: Tensor) -> None:
        super().__init__()
        self.network = network
        self.table = nn.Parameter(functional.pad(table, (0, 0, 1, 0)), requires_grad=False)

    def forward(self, history: Tensor) -> Tensor:
        return self.network.user(functional.embedding(history, self.table), (history > 0).sum(1))


class UserOfVectors(nn.Module):
    """Item vectors, (batch, length, hidden) float32, newest first, and their mask, to user vectors."""

    def __init__(self, network: UniSRec | Mean) -> None:
        super().__init__()
        self.network = network

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(1)
        places = torch.arange(vectors.shape[1], device=vectors.device)
        # Oldest first, padding behind: what stands there is read by nobody, for states read backwards only.
        turned = (count[:, None] - 1 - places).clamp(min=0)
        return self.network.user(vectors.gather(1, turned[:, :, None].expand_as(vectors)), count)


class Whitening(nn.Module):
    """Text vectors, (batch, dims) float32, to ``(x - mean) W`` with unit norm, (batch, hidden) float32."""

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean, requires_grad=False)
        self.matrix = nn.Parameter(matrix, requires_grad=False)

    def forward(self, text: Tensor) -> Tensor:
        return functional.normalize((text - self.mean) @ self.matrix, dim=-1)


class Mean(nn.Module):
    """A user's vector as the mean of the item vectors, with unit norm."""

    def user(self, vectors: Tensor, count: Tensor) -> Tensor:
        """As `UniSRec.user`."""
        real = torch.arange(vectors.shape[1], device=vectors.device) < count[:, None]
        return functional.normalize((vectors * real[:, :, None].to(vectors.dtype)).sum(1), dim=-1)
