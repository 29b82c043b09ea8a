"""U-BERT's networks. Needs PyTorch.

    review encoder      tokens + user -> token states -> their mean, the review vector        `ReviewEncoder`
    user, item encoder  embedding attends to rows, fused with what it finds -> one vector     `Fusion`
    co-matching         user reviews x item reviews, each side reads the other               `CoMatching`
    prediction          [user, item, user side, item side] -> rating                         `PairNetwork`

Id 0 is somebody unknown: its embedding is trained by hiding a share of the ids. Rows are padded anywhere behind, with a
mask; padding never changes a value, and a side without rows is read as one row that is learned.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llmrec_plugin.systems.bert import masked_mean, new_bert


class ReviewEncoder(nn.Module):
    """A BERT that knows who writes: the author's embedding is added to each token's.

    Args:
        config: Of the BERT.
        users: Known users; their ids are 1 to `users`.
        bert: The BERT itself, where it has weights already.
    """

    def __init__(self, config: dict[str, Any], users: int, bert: nn.Module | None = None) -> None:
        super().__init__()
        self.bert = bert if bert is not None else new_bert(config)
        self.users = _embedding(users + 1, config["hidden_size"])

    def states(self, ids: Tensor, mask: Tensor, user: Tensor) -> Tensor:
        """Token states, (batch, length, dims)."""
        embedded = self.bert.embeddings.word_embeddings(ids) + self.users(user).unsqueeze(1)
        return self.bert(inputs_embeds=embedded, attention_mask=mask).last_hidden_state

    def forward(self, ids: Tensor, mask: Tensor, user: Tensor) -> Tensor:
        """Review vectors, (batch, dims)."""
        return masked_mean(self.states(ids, mask, user), mask)


class Fusion(nn.Module):
    """An embedding and what it finds among rows: U-BERT's user encoder and item encoder.

    weights = softmax over rows of (Q e)(K row) / sqrt(dims); result = LayerNorm(e + MLP([e, sum of weights V row])).
    In pre-training the rows are token states of a review, in fine-tuning review vectors.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dims, dims) for _ in range(3))
        self.absent = nn.Parameter(torch.zeros(dims))
        self.fuse = nn.Sequential(nn.Linear(2 * dims, dims), nn.GELU(), nn.Linear(dims, dims))
        self.norm = nn.LayerNorm(dims)

    def forward(self, embedding: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        """(batch, dims), (batch, n, dims), (batch, n) -> (batch, dims)."""
        rows, mask = _with_row(rows, mask, self.absent)
        scores = (self.key(rows) @ self.query(embedding).unsqueeze(-1)).squeeze(-1) / math.sqrt(rows.shape[-1])
        weights = torch.softmax(_masked(scores, mask), dim=-1)
        found = (weights.unsqueeze(-1) * self.value(rows)).sum(dim=1)
        return self.norm(embedding + self.fuse(torch.cat([embedding, found], dim=-1)))


class CoMatching(nn.Module):
    """The review co-matching layer: each review of one side reads the other side's reviews by their similarity.

    S = A M B^T / sqrt(dims); A' = softmax over B of S, times B; B' = softmax over A of S^T, times A; a row and what it
    read are joined as [row, read, row * read].
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.similarity = nn.Linear(dims, dims, bias=False)
        self.user_absent, self.item_absent = (nn.Parameter(torch.randn(dims) * 0.02) for _ in range(2))
        self.join = nn.Sequential(nn.Linear(3 * dims, dims), nn.GELU())
        self.user_weight, self.item_weight = (nn.Linear(2 * dims, 1) for _ in range(2))

    def forward(self, a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor, user: Tensor, item: Tensor) -> Any:
        """User side and item side, (batch, dims) each.

        Args:
            a: Review vectors of the user, (batch, n, dims).
            a_mask: 1 for vectors, 0 for padding, (batch, n).
            b: Review vectors of the item, (batch, m, dims).
            b_mask: As `a_mask`.
            user: What weighs the user's rows, (batch, dims).
            item: What weighs the item's rows, (batch, dims).
        """
        a, a_mask = _with_row(a, a_mask, self.user_absent)
        b, b_mask = _with_row(b, b_mask, self.item_absent)
        scores = self.similarity(a) @ b.transpose(1, 2) / math.sqrt(a.shape[-1])  # (batch, 1 + n, 1 + m)
        of_b = torch.softmax(_masked(scores, b_mask.unsqueeze(1)), dim=2) @ b
        of_a = torch.softmax(_masked(scores, a_mask.unsqueeze(2)), dim=1).transpose(1, 2) @ a
        user_rows = self.join(torch.cat([a, of_b, a * of_b], dim=-1))
        item_rows = self.join(torch.cat([b, of_a, b * of_a], dim=-1))
        return _weighted(user_rows, a_mask, user, self.user_weight), _weighted(
            item_rows, b_mask, item, self.item_weight
        )


class PairNetwork(nn.Module):
    """What is trained in the target domain: encoders of user and item, co-matching, prediction.

    Args:
        dims: Length of review vectors and embeddings.
        users: Known users.
        items: Known items.
        hidden: Length of the pair's vector, the layer before the rating.
        mean: Mean rating of the training rows; the network learns the difference.
        dropout: Of the pair's vector.
    """

    def __init__(
        self, dims: int, users: int, items: int, *, hidden: int, mean: float = 0.0, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.users, self.items = _embedding(users + 1, dims), _embedding(items + 1, dims)
        self.user_encoder, self.item_encoder = Fusion(dims), Fusion(dims)
        self.matching = CoMatching(dims)
        self.hidden = nn.Sequential(nn.Linear(4 * dims, hidden), nn.GELU())
        self.dropout = nn.Dropout(dropout)
        self.rating = nn.Linear(hidden, 1)
        self.register_buffer("mean", torch.tensor(float(mean)))

    def user(self, reviews: Tensor, mask: Tensor, user: Tensor) -> Tensor:
        """U: the user from own reviews, (batch, dims)."""
        return self.user_encoder(self.users(user), reviews, mask)

    def item(self, reviews: Tensor, mask: Tensor, item: Tensor) -> Tensor:
        """The item from its reviews, (batch, dims)."""
        return self.item_encoder(self.items(item), reviews, mask)

    def vector(self, a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor, user: Tensor, item: Tensor) -> Tensor:
        """The pair's vector, (batch, hidden); arguments as in `forward`."""
        who, what = self.user(a, a_mask, user), self.item(b, b_mask, item)
        sides = self.matching(a, a_mask, b, b_mask, who, what)
        return self.hidden(torch.cat([who, what, *sides], dim=-1))

    def forward(self, a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor, user: Tensor, item: Tensor) -> Tensor:
        """Ratings, (batch,).

        Args:
            a: Review vectors of the user, (batch, n, dims).
            a_mask: 1 for vectors, 0 for padding, (batch, n).
            b: Review vectors of the item, (batch, m, dims).
            b_mask: As `a_mask`, (batch, m).
            user: Ids, (batch,); 0 is unknown.
            item: Ids, (batch,); 0 is unknown.
        """
        return self.rating(self.dropout(self.vector(a, a_mask, b, b_mask, user, item))).squeeze(-1) + self.mean


class PretrainingNetwork(nn.Module):
    """Review encoder and user encoder with the heads of both tasks.

    Args:
        encoder: Of reviews.
        opinions: Token ids of the opinion words, (opinions,) int64.
    """

    def __init__(self, encoder: ReviewEncoder, opinions: Tensor) -> None:
        super().__init__()
        dims = encoder.users.embedding_dim
        self.encoder = encoder
        self.user_encoder = Fusion(dims)
        self.register_buffer("opinions", opinions)
        self.token = nn.Sequential(nn.Linear(2 * dims, dims), nn.GELU(), nn.LayerNorm(dims))
        self.token_bias = nn.Parameter(torch.zeros(len(opinions)))
        self.rating = nn.Sequential(nn.Linear(2 * dims, dims), nn.GELU(), nn.Linear(dims, 1))

    def forward(self, ids: Tensor, mask: Tensor, user: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the hidden tokens and standardized ratings.

        Args:
            ids: Tokens, those to guess replaced by the mask token, (batch, length).
            mask: 1 for tokens, 0 for padding, (batch, length).
            user: Ids of the authors, (batch,).
            hidden: Which tokens to guess, (batch, length) bool.

        Returns:
            (hidden tokens, opinions) in the order of rows, and (batch,).
        """
        states = self.encoder.states(ids, mask, user)
        writer = self.user_encoder(self.encoder.users(user), states, mask)  # (batch, dims)
        rows, _ = hidden.nonzero(as_tuple=True)
        guessed = self.token(torch.cat([states[hidden], writer[rows]], dim=-1))
        words = self.encoder.bert.embeddings.word_embeddings.weight[self.opinions]
        ratings = self.rating(torch.cat([masked_mean(states, mask), writer], dim=-1)).squeeze(-1)
        return guessed @ words.T + self.token_bias, ratings


def _embedding(rows: int, dims: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, dims)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


def _with_row(rows: Tensor, mask: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and mask with one more row in front, which is always there."""
    first = row.expand(rows.shape[0], 1, -1)
    return torch.cat([first, rows], dim=1), torch.cat([mask.new_ones(mask.shape[0], 1), mask], dim=1)


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)


def _weighted(rows: Tensor, mask: Tensor, context: Tensor, layer: nn.Linear) -> Tensor:
    """Mean of rows, (batch, dims), by weights from each row and the context."""
    joined = torch.cat([rows, context.unsqueeze(1).expand_as(rows)], dim=-1)
    weights = torch.softmax(_masked(layer(joined).squeeze(-1), mask), dim=-1)
    return (weights.unsqueeze(-1) * rows).sum(dim=1)
