"""The network: one encoder for both texts, and a head that compares them. Needs PyTorch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llmrec_plugin.systems.bert import masked_mean


class RatingHead(nn.Module):
    """Two text vectors -> rating.

    [u, i, u * i, |u - i|] -> hidden layer -> rating. Vectors of unit norm are scaled by sqrt(dims) first, so that their
    components are about 1.

    Args:
        dims: Length of a text's vector.
        hidden: Width of the hidden layer.
        mean: Mean rating of the training rows; the head learns the difference.
        dropout: Of the hidden layer.
    """

    def __init__(self, dims: int, *, hidden: int, mean: float = 0.0, dropout: float = 0.1) -> None:
        super().__init__()
        self.scale = math.sqrt(dims)
        self.layers = nn.Sequential(nn.Linear(4 * dims, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1))
        self.register_buffer("mean", torch.tensor(float(mean)))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """(batch, dims) of unit norm each -> (batch,)."""
        u, i = user * self.scale, item * self.scale
        joined = torch.cat([u, i, u * i, (u - i).abs()], dim=-1)
        return self.layers(joined).squeeze(-1) + self.mean


class TextRating(nn.Module):
    """Both texts through one encoder, and the head.

    Args:
        bert: A ``transformers.BertModel``.
        head: Of vectors as wide as the encoder's.
    """

    def __init__(self, bert: Any, head: RatingHead) -> None:
        super().__init__()
        self.bert, self.head = bert, head

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """A text's vector: masked mean of its token states, unit norm, (batch, dims)."""
        states = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return nn.functional.normalize(masked_mean(states, mask), dim=-1)

    def forward(self, user_ids: Tensor, user_mask: Tensor, item_ids: Tensor, item_mask: Tensor) -> Tensor:
        """Ratings, (batch,), of (batch, length) tokens of the user's and of the item's text."""
        return self.head(self.encode(user_ids, user_mask), self.encode(item_ids, item_mask))
