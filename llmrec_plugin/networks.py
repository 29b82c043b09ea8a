"""What `llmrec export` needs of a trained network, and what it may read of a row.

    row -> inputs (this module) -> arrays -> ONNX graph -> vector or number

A `NetworkModel` names a folder and a function; the function loads what training wrote there and returns a `Network`:
the PyTorch module, the inputs it reads, and example rows on which the exported graph must give the same numbers. Graph
inputs are padded: ids with 0, vectors with zeros, so real ids begin at 1, and a module must give a row the same value
whatever padding follows it.

    input            a row's value                               graph inputs
    Id               one key                                     name (batch,) int64
    IdSequence       a list of keys, newest first                name (batch, length) int64, oldest first
    Number           a number                                    name (batch,) float32
    Vector           a list of `dims` numbers, or packed bytes   name (batch, dims) float32
    VectorSequence   n x `dims` numbers: a list, or float32      name (batch, n, dims) float32,
                     bytes                                       name_mask (batch, n) int64
    Tokens           a text                                      name_ids, name_mask (batch, length) int64
    Image            the bytes of a PNG or JPEG file             name (batch, 3, size, size) float32
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from llmrec_plugin.specs import Metric

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Id:
    """A key of a vocabulary.

    Attributes:
        name: Of the input.
        vocabulary: Which of the network's vocabularies; a key that is not in it makes the row empty.
    """

    name: str
    vocabulary: str


@dataclass(frozen=True, kw_only=True)
class IdSequence:
    """The keys of the last events.

    Keys that the vocabulary lacks, such as items that are newer than the network, are left out.

    Attributes:
        name: Of the input.
        vocabulary: Which of the network's vocabularies.
        max_length: How many of the newest known keys are read.
    """

    name: str
    vocabulary: str
    max_length: int


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A vector, from a column or from an embedding feature.

    Attributes:
        name: Of the input.
        dims: Its length.
    """

    name: str
    dims: int


@dataclass(frozen=True, kw_only=True)
class VectorSequence:
    """Vectors in a row's order, such as one for each review.

    Attributes:
        name: Of the input; a second one, ``<name>_mask``, is 1 for vectors and 0 for padding.
        dims: Length of each.
        max_length: How many of the first are read.
    """

    name: str
    dims: int
    max_length: int


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A text as token ids of the network's tokenizer.

    Attributes:
        name: Of the input.
        max_tokens: Longest text in tokens, special tokens included; longer ones are cut.
    """

    name: str
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture, scaled so that the shorter side has `size` pixels, cropped to the middle, and standardized.

    Attributes:
        name: Of the input.
        size: Height and width in pixels.
        mean: Subtracted from each channel (red, green, blue), whose values are in [0, 1].
        std: What each channel is divided by afterwards.
    """

    name: str
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


Input: TypeAlias = Id | IdSequence | Number | Vector | VectorSequence | Tokens | Image


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network that can be exported.

    Attributes:
        module: A ``torch.nn.Module``; ``forward`` takes the graph inputs by position, in the order of `inputs`, and
            returns (batch, dims) float32, or (batch,) where `dims` is None.
        inputs: What a row consists of.
        dims: Length of the output vector; None for a number.
        examples: Eight rows or more, by input name, as columns give them: short, long and longest sequences, keys that
            are not in a vocabulary. The exported graph must give PyTorch's values for them, alone and in a batch.
        metric: The similarity its vectors are meant for.
        normalized: Whether its vectors have unit L2 norm.
        space: Networks with equal spaces give vectors that may be compared, such as those of users and of items.
            Everything that trained them together, as a hash; empty for vectors that are compared with their own only.
        vocabularies: Key lists by name; the key at position p has the id p + 1.
        tokenizer: ``tokenizer.json`` of `Tokens` inputs.
        candidates: Vectors (n, dims) float32 whose ten nearest, by `metric`, must be the same for the graph's vector as
            for PyTorch's.
        source: What it was trained from, for people, e.g. hashes of data and configuration.
        quality: Measured quality, for the manifest.
    """

    module: Any
    inputs: tuple[Input, ...]
    dims: int | None
    examples: Sequence[Mapping[str, Any]]
    metric: Metric = "dot"
    normalized: bool = False
    space: str = ""
    vocabularies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tokenizer: Path | None = None
    candidates: np.ndarray | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
