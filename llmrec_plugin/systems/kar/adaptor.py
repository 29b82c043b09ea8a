"""KAR's hybrid-expert adaptor, for rankers in PyTorch that train it together with themselves.

The features of this plugin do without it: they serve a short vector that was reduced once and for all. Use it on whole
vectors (``knowledge_embedding(..., dims=encoder.dims)``) where the ranker may change. Needs PyTorch.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class HybridExpertAdaptor(nn.Module):
    """Condenses knowledge vectors for a ranker: a mixture of experts, some shared by all streams, some of one stream.

    A **stream** is one kind of knowledge: of the user, of the item. An **expert** is a small network from a knowledge
    vector to a short one. Shared experts learn what the streams have in common, dedicated ones what is a stream's own.
    A stream's **gate** gives each of its experts a weight, from the vector itself, by a softmax over both groups. The
    short vectors of all streams, side by side, are further inputs of the ranker.

        x (batch, dims) -> gate: softmax(W x + c)      (batch, shared + dedicated)     weights, sum 1
                        -> each expert                 (batch, shared + dedicated, out_dims)
                        -> weighted sum                (batch, out_dims) per stream
        streams side by side                           (batch, streams * out_dims)

    Args:
        dims: Length of a knowledge vector.
        streams: Kinds of knowledge.
        shared: Experts that all streams use.
        dedicated: Experts that each stream has for itself.
        hidden_dims: Sizes of an expert's hidden layers.
        out_dims: Length of a stream's short vector.
    """

    def __init__(
        self,
        dims: int,
        *,
        streams: int = 2,
        shared: int = 2,
        dedicated: int = 2,
        hidden_dims: tuple[int, ...] = (128,),
        out_dims: int = 32,
    ) -> None:
        super().__init__()
        if min(dims, streams, out_dims, shared + dedicated, *hidden_dims) < 1 or min(shared, dedicated) < 0:
            raise ValueError(
                "expected positive sizes, one stream and one expert or more, got "
                f"dims={dims}, streams={streams}, shared={shared}, dedicated={dedicated}, hidden_dims={hidden_dims}, "
                f"out_dims={out_dims}."
            )
        self.dims = dims
        self.out_dims = out_dims
        sizes = (dims, *hidden_dims, out_dims)
        self.shared = _experts(shared, sizes)
        self.dedicated = nn.ModuleList(_experts(dedicated, sizes) for _ in range(streams))
        self.gates = nn.ModuleList(nn.Linear(dims, shared + dedicated) for _ in range(streams))

    @property
    def width(self) -> int:
        """Length of what comes out."""
        return len(self.gates) * self.out_dims

    def forward(self, *knowledge: Tensor) -> Tensor:
        """The streams' short vectors side by side, (batch, streams * out_dims).

        Args:
            *knowledge: One (batch, dims) tensor per stream, in the order of training. A row without knowledge is zeros.

        Raises:
            ValueError: There are more or fewer tensors than streams, or one has another shape.
        """
        self._check(knowledge)
        return torch.cat(
            [
                torch.einsum("be,beo->bo", weights, self._expertise(stream, vectors))
                for stream, (vectors, weights) in enumerate(zip(knowledge, self.weights(*knowledge), strict=True))
            ],
            dim=-1,
        )

    def weights(self, *knowledge: Tensor) -> list[Tensor]:
        """The gates' weights, per stream (batch, shared + dedicated), shared experts first; each row sums to 1."""
        self._check(knowledge)
        return [torch.softmax(gate(vectors), dim=-1) for gate, vectors in zip(self.gates, knowledge, strict=True)]

    def _expertise(self, stream: int, vectors: Tensor) -> Tensor:
        """(batch, shared + dedicated, out_dims)"""
        return torch.stack([expert(vectors) for expert in (*self.shared, *self.dedicated[stream])], dim=1)

    def _check(self, knowledge: tuple[Tensor, ...]) -> None:
        shapes = [tuple(vectors.shape) for vectors in knowledge]
        wrong = [shape for shape in shapes if len(shape) != 2 or shape[1] != self.dims or shape[0] != shapes[0][0]]
        if len(shapes) != len(self.gates) or wrong:
            raise ValueError(f"expected {len(self.gates)} tensors of one shape (batch, {self.dims}), got {shapes}.")


def _experts(count: int, sizes: tuple[int, ...]) -> nn.ModuleList:
    """`count` networks with layers of these sizes, with a ReLU between two."""

    def expert() -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return nn.ModuleList(expert() for _ in range(count))
