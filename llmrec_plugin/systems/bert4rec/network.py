"""BERT4Rec's network, and the graphs that are exported of it."""

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
        items: Items of the vocabulary.
        hidden: Width of a state.
        layers: Transformer layers.
        heads: Attention heads of each; they divide `hidden`.
        inner: Width inside the feed-forward networks.
        max_length: Events of a history that are read; the mask token comes on top.
        dropout: Share of states and attention weights that are dropped in training.
    """

    items: int
    hidden: int = 64
    layers: int = 2
    heads: int = 2
    inner: int = 256
    max_length: int = 50
    dropout: float = 0.2


class Bert4Rec(nn.Module):
    """A bidirectional Transformer over item ids that guesses the item behind a mask token.

    Ids: 0 padding, 1 to `items` the items, `items` + 1 the mask. Positions count from the oldest event that is read.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.mask_id = size.items + 1
        self.items = nn.Embedding(size.items + 2, size.hidden, padding_idx=0)
        self.positions = nn.Embedding(size.max_length + 1, size.hidden)
        self.norm = nn.LayerNorm(size.hidden, eps=1e-12)
        self.dropout = nn.Dropout(size.dropout)
        self.blocks = nn.ModuleList(
            [Block(size.hidden, size.heads, size.inner, size.dropout) for _ in range(size.layers)]
        )
        self.dense = nn.Linear(size.hidden, size.hidden)
        self.dense_norm = nn.LayerNorm(size.hidden, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(size.items))
        initialize(self)

    def states(self, ids: Tensor) -> Tensor:
        """From ids, (batch, length) int64, to the last layer's states, (batch, length, hidden)."""
        # Padding may go on behind the last place; nobody reads it.
        places = torch.arange(ids.shape[1], device=ids.device).clamp(max=self.size.max_length)
        states = self.dropout(self.norm(self.items(ids) + self.positions(places)))
        readable = (ids > 0)[:, None, None, :]
        for block in self.blocks:
            states = block(states, readable)
        return states

    def head(self, states: Tensor) -> Tensor:
        """What is compared with the items: dense layer, GELU, LayerNorm; shapes stay."""
        return self.dense_norm(functional.gelu(self.dense(states)))

    def logits(self, states: Tensor) -> Tensor:
        """From head states, (n, hidden), to a logit of every item, (n, items); the table is that of the input."""
        return states @ self.items.weight[1:-1].T + self.bias

    def user(self, history: Tensor) -> Tensor:
        """The head's state at a mask token behind the last event, (batch, hidden)."""
        count = (history > 0).sum(1, keepdim=True)
        longer = functional.pad(history, (0, 1))
        ids = torch.where(torch.arange(longer.shape[1], device=longer.device) == count, self.mask_id, longer)
        states = self.states(ids)
        place = count[:, :, None].expand(-1, 1, self.size.hidden)
        return self.head(states.gather(1, place)[:, 0])

    def table(self) -> Tensor:
        """A vector of each item with its bias as last component, (items, hidden + 1)."""
        return torch.cat([self.items.weight[1:-1], self.bias[:, None]], 1)


class UserVector(nn.Module):
    """History ids, (batch, length) int64, to (batch, hidden + 1) float32; the last component is 1.

    The dot product with an item's vector, whose last component is the item's bias, is the item's logit.
    """

    def __init__(self, network: Bert4Rec) -> None:
        super().__init__()
        self.network = network

    def forward(self, history: Tensor) -> Tensor:
        return functional.pad(self.network.user(history), (0, 1), value=1.0)


class ItemVector(nn.Module):
    """Item ids, (batch,) int64, to their rows of the table, (batch, hidden + 1) float32."""

    def __init__(self, network: Bert4Rec) -> None:
        super().__init__()
        self.table = nn.Parameter(functional.pad(network.table().detach(), (0, 0, 1, 0)), requires_grad=False)

    def forward(self, item: Tensor) -> Tensor:
        return functional.embedding(item, self.table)


class CandidateScore(nn.Module):
    """History ids, (batch, length) int64, and a candidate's id, (batch,) int64, to its logit, (batch,) float32."""

    def __init__(self, network: Bert4Rec) -> None:
        super().__init__()
        self.user = UserVector(network)
        self.item = ItemVector(network)

    def forward(self, history: Tensor, candidate: Tensor) -> Tensor:
        return (self.user(history) * self.item(candidate)).sum(1)
