"""What an exported model says of itself: the content of its ``manifest.json``, and the names of the files beside it.

A manifest's **artifact id** is a hash over the content that makes the numbers, so the same weights exported twice have
one id and a changed weight has another.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias, TypeVar

from llmrec_plugin.networks import Input, graph_names, input_from_spec
from llmrec_plugin.specs import GeneratorTask, Metric, Pooling, Precision, digest, to_spec

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
GOLDEN = "golden.npy"
GOLDEN_PROMPTS = "golden.json"
GOLDEN_ROWS = "golden.rows.json"
ENDPOINT = "endpoint.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an exported encoder is, and the proof that it equals its PyTorch original.

    Attributes:
        model: Name of the model.
        source: Where the weights came from: the declaration's source and the SHA-256 of the weights; also ``layers``
            and ``rotation`` where the declaration has them.
        pooling: Pooling inside the graph.
        normalize: Whether the graph's output has unit L2 norm.
        dims: Length of the output vector.
        max_tokens: Longest input in tokens, special tokens included.
        padding_side: Side on which a batch is padded.
        pad_token_id: Token id used for padding.
        inputs: Names of the graph's inputs, of ``input_ids``, ``attention_mask``, ``token_type_ids``
            and ``position_ids``, each (batch, length) int64.
        output: Name of the graph's output, (batch, dims) float32.
        precision: Number type of the large matrix products; with ``bf16`` the graph itself is float32.
        labels: What the components of the output are logits of, for a model that scores labels; else empty.
        thresholds: Least probability of each label, where there are labels.
        files: SHA-256 of every file, by its name in the folder.
        golden_texts: Texts whose reference vectors are in ``golden.npy``, (len, dims) float32; checked whenever the
            artifact is loaded. Computed by PyTorch for ``fp32``, else by this graph in ONNX Runtime on a CPU.
        versions: Versions of the packages that exported it.
        parity: The record of the comparison with PyTorch, made before the precision was reduced.
        quality: The record of what precision, layers and prefixes cost against the full fp32 model.
    """

    model: str
    source: dict[str, str]
    pooling: Pooling
    normalize: bool
    dims: int
    max_tokens: int
    padding_side: Literal["right", "left"]
    pad_token_id: int
    inputs: tuple[str, ...]
    output: str
    precision: Precision
    files: dict[str, str]
    golden_texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name in ("inputs", "golden_texts", "labels", "thresholds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists

    @property
    def artifact_id(self) -> str:
        """64 hex digits over graph, tokenizer and the settings that make the numbers."""
        numeric_files = {name: sha for name, sha in self.files.items() if name != GOLDEN}
        labels = [[self.labels, self.thresholds]] if self.labels else []
        return digest(
            [
                self.format,
                *labels,
                numeric_files,
                self.pooling,
                self.normalize,
                self.dims,
                self.max_tokens,
                self.padding_side,
                self.pad_token_id,
                self.output,
                self.precision,
            ]
        )

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "artifact_id": self.artifact_id}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What a chat model wants around the parts of a prompt, rendered from the tokenizer's own template at export.

    Attributes:
        with_system: Before the system text, between it and the user's, and after that, up to where the answer begins.
        without_system: Before and after the user's text.
    """

    with_system: tuple[str, str, str]
    without_system: tuple[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "with_system", tuple(self.with_system))  # JSON has lists
        object.__setattr__(self, "without_system", tuple(self.without_system))


@dataclass(frozen=True, kw_only=True)
class GeneratorManifest:
    """What an exported generator is, and the proof that it writes what its PyTorch original writes.

    The files of a ``causal`` model are ``model.onnx``, of ``seq2seq`` ``encoder.onnx``, ``decoder.onnx`` (first token)
    and ``decoder_with_past.onnx``; both have ``tokenizer.json`` and ``golden.json``. A model that only an endpoint has
    is one file, ``endpoint.json``: its served name and version; sizes and token ids are then 0 and mean nothing.

    Attributes:
        model: Name of the model.
        source: Where the weights came from: the declaration's source and the SHA-256 of the weights.
        task: ``causal`` or ``seq2seq``.
        max_tokens: Longest prompt and output together (``causal``), or longest of either (``seq2seq``), in tokens.
        vocab_size: Length of the logits.
        layers: Layers with a key-value cache.
        kv_heads: Heads of keys and values of each.
        head_dim: Size of each head.
        prefix_ids: Tokens before every prompt, e.g. the beginning of the sequence.
        suffix_ids: Tokens after every prompt, e.g. the end of the sequence for an encoder.
        eos_token_ids: Tokens that end the output.
        pad_token_id: Token id used for padding.
        decoder_start_token_id: First input of the decoder of a ``seq2seq`` model.
        chat: The chat template, for models that expect one.
        attention: ``fused``: the graph reads and writes the cache in place and its rows need not be at the same
            position; ``plain``: the graph as it was exported, which gives back a longer cache each step.
        precision: Number type of the matrix products.
        files: SHA-256 of every file, by its name in the folder.
        versions: Versions of the packages that exported it.
        parity: The record of the comparison with PyTorch, token by token.
        quality: Measured quality on texts that were not trained on, for models that the project trains.
    """

    model: str
    source: dict[str, str]
    task: GeneratorTask
    max_tokens: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    files: dict[str, str]
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    decoder_start_token_id: int | None = None
    chat: ChatTemplate | None = None
    attention: Literal["fused", "plain"] = "plain"
    precision: Precision = "fp32"
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    kind: Literal["generator"] = "generator"
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name in ("eos_token_ids", "prefix_ids", "suffix_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        if isinstance(self.chat, dict):
            object.__setattr__(self, "chat", ChatTemplate(**self.chat))

    @property
    def artifact_id(self) -> str:
        """64 hex digits over graphs, tokenizer and the settings that make the tokens."""
        said = {"model", "source", "files", "versions", "parity", "quality", "attention"}
        settings = {name: value for name, value in asdict(self).items() if name not in said}
        files = {name: sha for name, sha in self.files.items() if name != GOLDEN_PROMPTS}
        return digest([files, settings])

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "artifact_id": self.artifact_id}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class NetworkManifest:
    """What an exported network is, and the proof that it equals its PyTorch original.

    Its files are ``model.onnx``, a ``vocabulary.<name>.json`` for each vocabulary, ``tokenizer.json`` where an input is
    a text, ``golden.rows.json`` (rows by input, as columns give them; bytes as base64) and ``golden.npy`` (PyTorch's
    values of them, (rows, dims) or (rows,) float32), which are compared whenever the artifact is loaded.

    Attributes:
        model: Name of the model.
        source: Where the weights came from: the declaration's source and function, and what the network says of it.
        inputs: What a row consists of, in the order of the graph's inputs.
        dims: Length of the vector; None for a number.
        metric: The similarity its vectors are meant for; None for a number.
        normalized: Whether its vectors have unit L2 norm.
        space: See `llmrec_plugin.networks.Network`.
        tolerance: Largest absolute difference to PyTorch that was accepted.
        output: Name of the graph's output, (batch, dims) or (batch,) float32.
        files: SHA-256 of every file, by its name in the folder.
        versions: Versions of the packages that exported it.
        parity: The record of the comparison with PyTorch.
        quality: Measured quality, as training wrote it.
    """

    model: str
    source: dict[str, str]
    inputs: tuple[Input, ...]
    dims: int | None
    metric: Metric | None
    normalized: bool
    space: str
    tolerance: float
    files: dict[str, str]
    output: str = "output"
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    kind: Literal["network"] = "network"
    format: int = FORMAT

    def __post_init__(self) -> None:
        inputs = tuple(input_from_spec(item) if isinstance(item, dict) else item for item in self.inputs)
        object.__setattr__(self, "inputs", inputs)

    @property
    def graph_inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs, of which the graph may lack some that change nothing."""
        return graph_names(self.inputs)

    @property
    def artifact_id(self) -> str:
        """64 hex digits over graph, vocabularies, tokenizer and what is said of the values."""
        files = {name: sha for name, sha in self.files.items() if name not in (GOLDEN, GOLDEN_ROWS)}
        inputs = [to_spec(item) for item in self.inputs]
        said = [self.dims, self.metric, self.normalized, self.space, self.output]
        return digest([self.format, self.kind, files, inputs, said])

    def to_json(self) -> str:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {"inputs": [to_spec(item) for item in self.inputs], "artifact_id": self.artifact_id}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


AnyManifest: TypeAlias = Manifest | GeneratorManifest | NetworkManifest
ManifestT = TypeVar("ManifestT", Manifest, GeneratorManifest, NetworkManifest)
MANIFESTS: dict[Any, type[AnyManifest]] = {"generator": GeneratorManifest, "network": NetworkManifest}
