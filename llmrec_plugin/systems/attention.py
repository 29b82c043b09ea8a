"""The Transformer layer of the sequence models, written so that training, PyTorch and ONNX compute one thing.

`torch.nn.TransformerEncoderLayer` computes the same, but in evaluation it takes a fused path that no exporter knows.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Self-attention and a feed-forward network, each with a residual and a LayerNorm after it.

    Vaswani et al., "Attention Is All You Need" (2017), section 3.1; GELU instead of ReLU.
    """

    def __init__(self, hidden: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout_share = dropout
        self.reading = nn.Linear(hidden, 3 * hidden)  # queries, keys and values
        self.writing = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=1e-12)
        self.widening = nn.Linear(hidden, inner)
        self.narrowing = nn.Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, readable: Tensor) -> Tensor:
        """The next states.

        Args:
            states: (batch, length, hidden) float32.
            readable: What each position may read, bool, that broadcasts to (batch, heads, length, length); every
                position may read at least one.
        """
        parts = self.reading(states).unflatten(-1, (3, self.heads, -1))  # (batch, length, 3, heads, size)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        share = self.dropout_share if self.training else 0.0
        read = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=readable, dropout_p=share)
        states = self.attention_norm(states + self.dropout(self.writing(read.transpose(1, 2).flatten(-2))))
        return self.norm(states + self.dropout(self.narrowing(functional.gelu(self.widening(states)))))


def initialize(network: nn.Module) -> None:
    """New weights as BERT has them: normal with deviation 0.02, biases 0, norms 1; padding stays 0."""
    for part in network.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.trunc_normal_(part.weight, std=0.02, a=-0.04, b=0.04)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx])
