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
    VectorSequence   n x `dims` numbers: a flat list, a list of  name (batch, n, dims) float32,
                     lists, or float32 bytes                     name_mask (batch, n) int64
    Tokens           a text                                      name_ids, name_mask (batch, length) int64
    Image            the bytes of a PNG or JPEG file             name (batch, 3, size, size) float32

Padding is on the right. A row in which an input is missing is empty as a whole and does not reach the graph: so no
sequence is of padding alone. Where JSON carries a request, bytes are base64 text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, get_args

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs import Metric
from llmrec_plugin.specs.checks import check_positive, is_number

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

    kind: ClassVar[str] = "id"

    def __post_init__(self) -> None:
        _check_input(self)


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

    kind: ClassVar[str] = "id_sequence"

    def __post_init__(self) -> None:
        _check_input(self, "max_length")


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number."""

    name: str

    kind: ClassVar[str] = "number"

    def __post_init__(self) -> None:
        _check_input(self)


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A vector, from a column or from an embedding feature.

    Attributes:
        name: Of the input.
        dims: Its length.
    """

    name: str
    dims: int

    kind: ClassVar[str] = "vector"

    def __post_init__(self) -> None:
        _check_input(self, "dims")


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

    kind: ClassVar[str] = "vector_sequence"

    def __post_init__(self) -> None:
        _check_input(self, "max_length", "dims")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A text as token ids of the network's tokenizer.

    Attributes:
        name: Of the input.
        max_tokens: Longest text in tokens, special tokens included; longer ones are cut.
    """

    name: str
    max_tokens: int

    kind: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        _check_input(self, "max_tokens")


@dataclass(frozen=True, kw_only=True)
class Image:
    """A picture, of which the middle square is scaled to `size` pixels and standardized.

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

    kind: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        _check_input(self, "size")
        for field_name in ("mean", "std"):
            values = tuple(getattr(self, field_name))  # JSON has lists
            if len(values) != 3 or not all(map(is_number, values)) or (field_name == "std" and min(values) <= 0):
                raise DeclarationError(f"input {self.name!r}: {field_name} must be three numbers, got {values!r}.")
            object.__setattr__(self, field_name, tuple(map(float, values)))

    def pixels(self, data: bytes) -> np.ndarray:
        """The picture in a PNG or JPEG file, (3, size, size) float32; what training must feed, too.

        Raises:
            InputError: The file is damaged, of another format, or too large.
            MissingExtraError: Pillow is not installed.
        """
        from llmrec_plugin.pictures import pixels  # numpy, which a declaration does not need

        return pixels(data, self.size, self.mean, self.std)


Input: TypeAlias = Id | IdSequence | Number | Vector | VectorSequence | Tokens | Image

_KINDS: dict[str, type] = {cls.kind: cls for cls in get_args(Input)}


def input_from_spec(spec: Mapping[str, Any]) -> Input:
    """The input that `to_spec` wrote.

    Raises:
        DeclarationError: The kind or a field is unknown, e.g. written by a newer version.
    """
    values = dict(spec)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise DeclarationError(f"Expected an input of kind {', '.join(map(repr, _KINDS))}, got {kind!r}.")
    try:
        made: Input = _KINDS[kind](**values)
    except TypeError as exc:
        raise DeclarationError(f"The stored input does not fit {_KINDS[kind].__name__}: {exc}.") from exc
    return made


def graph_names(inputs: Sequence[Input]) -> tuple[str, ...]:
    """Names of the graph's inputs, in the order in which ``forward`` takes them."""
    suffixes = {"tokens": ("_ids", "_mask"), "vector_sequence": ("", "_mask")}
    return tuple(item.name + suffix for item in inputs for suffix in suffixes.get(item.kind, ("",)))


def _check_input(item: Any, *positive: str) -> None:
    if not isinstance(item.name, str) or not item.name.isidentifier():
        raise DeclarationError(f"{type(item).__name__}: expected a name such as 'history', got {item.name!r}.")
    for field_name in positive:
        check_positive(f"input {item.name!r}", field_name, getattr(item, field_name))


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network that can be exported.

    Attributes:
        module: A ``torch.nn.Module``; ``forward`` takes the graph inputs by position, in the order of `inputs`, and
            returns (batch, dims) float32, or (batch,) where `dims` is None.
        inputs: What a row consists of.
        dims: Length of the output vector; None for a number.
        examples: Eight rows or more, by input name, as columns give them (an embedding feature's as a vector): short,
            long and longest sequences, keys that are not in a vocabulary. The exported graph must give PyTorch's values
            for them, alone and in a batch. At least four must not be empty.
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
