"""Models that ``llmrec export`` can turn into ONNX artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs.checks import (
    check_choice,
    check_flag,
    check_model_name,
    check_positive,
    check_source,
    is_number,
)

Pooling: TypeAlias = Literal["mean", "cls", "last_token", "max"]
Metric: TypeAlias = Literal["cosine", "dot", "euclidean"]
Precision: TypeAlias = Literal["fp32", "int8", "fp16", "bf16"]
Rotation: TypeAlias = Literal["pca"]


def _layers(owner: str, value: object) -> tuple[int, ...]:
    """Layer indices as a tuple; recipes and JSON give lists."""
    layers = tuple(value) if isinstance(value, (list, tuple)) else ()
    wrong = any(not isinstance(layer, int) or isinstance(layer, bool) or layer < 0 for layer in layers)
    if not layers or wrong or list(layers) != sorted(set(layers)):
        raise DeclarationError(
            f"{owner}: layers must be increasing indices from 0, e.g. (0, 2, 4), or None for all; got {value!r}."
        )
    return layers


@dataclass(frozen=True, kw_only=True)
class EncoderModel:
    """A text encoder that `llmrec export` can turn into an ONNX artifact.

    Attributes:
        name: The name features refer to.
        source: Where the PyTorch weights are: ``package:<module>/<folder>`` (inside an installed Python
            package), ``path:<folder>`` (a Hugging Face folder) or ``hub:<org>/<name>@<revision>`` (a hub
            repository at a full 40-digit commit).
        pooling: How token vectors become one vector: attention-masked ``mean`` or ``max``, the first token
            (``cls``) or the last real token (``last_token``).
        normalize: Whether the vector is scaled to unit L2 norm.
        dims: Length of the vector.
        max_tokens: Longest input in tokens, special tokens included; longer texts are truncated.
        metric: The similarity the model was trained for.
        padding_side: The side on which shorter texts of a batch are padded.
        tolerance: Largest absolute difference to PyTorch that export accepts.
        precision: Number type of the large matrix products. ``fp32`` gives PyTorch's numbers. The others are faster
            and coarser: ``int8`` on every CPU, ``fp16`` on GPUs, ``bf16`` where a runtime computes in it.
        layers: Indices of the transformer layers that are kept, increasing; None keeps all. Fewer layers are faster
            and give other vectors.
        rotation: ``pca`` turns the vectors so that the first components vary most, which suits features that keep a
            prefix of them. Similarities of whole vectors stay as they are.
        min_overlap: The share of the ten nearest neighbors by the full fp32 model that this one must find too, in
            [0, 1]; export refuses a model below it.
    """

    name: str
    source: str
    pooling: Pooling
    normalize: bool
    dims: int
    max_tokens: int
    metric: Metric
    padding_side: Literal["right", "left"] = "right"
    tolerance: float = 1e-5
    precision: Precision = "fp32"
    layers: tuple[int, ...] | None = None
    rotation: Rotation | None = None
    min_overlap: float = 0.95

    def __post_init__(self) -> None:
        owner = f"model {self.name!r}"
        check_model_name(self.name)
        check_source(owner, self.source)
        check_choice(owner, "pooling", self.pooling, get_args(Pooling))
        check_choice(owner, "metric", self.metric, get_args(Metric))
        check_choice(owner, "padding_side", self.padding_side, ("right", "left"))
        check_flag(owner, "normalize", self.normalize)
        check_positive(owner, "dims", self.dims)
        check_positive(owner, "max_tokens", self.max_tokens)
        if not is_number(self.tolerance) or not 0 < self.tolerance <= 1e-2:
            raise DeclarationError(f"{owner}: tolerance must be in (0, 0.01], got {self.tolerance!r}.")
        check_choice(owner, "precision", self.precision, get_args(Precision))
        check_choice(owner, "rotation", self.rotation, (None, *get_args(Rotation)))
        if self.layers is not None:
            object.__setattr__(self, "layers", _layers(owner, self.layers))
        if not is_number(self.min_overlap) or not 0 <= self.min_overlap <= 1:
            raise DeclarationError(f"{owner}: min_overlap must be in [0, 1], got {self.min_overlap!r}.")


GeneratorTask: TypeAlias = Literal["causal", "seq2seq"]


@dataclass(frozen=True, kw_only=True)
class GeneratorModel:
    """A model that writes text, which ``llmrec export`` can turn into ONNX.

    Attributes:
        name: The name features refer to.
        source: Where the PyTorch weights are, as in `EncoderModel`; or ``endpoint:<served model>@<version>`` for one
            that only an endpoint has. The version is part of the fingerprint of what the model writes: change it when
            what is served changes.
        task: ``causal``: continues the prompt (GPT-2, Llama, Qwen2, ...); ``seq2seq``: reads the prompt with an encoder
            and writes with a decoder (T5, BART).
        max_tokens: Longest prompt and output together (``causal``), or longest of either (``seq2seq``), in tokens.
        chat: Whether prompts are put into the tokenizer's chat template, as instruction-tuned models expect; behind an
            endpoint, whether it is asked for chat completions.
        precision: ``fp32`` gives PyTorch's tokens.
    """

    name: str
    source: str
    task: GeneratorTask
    max_tokens: int
    chat: bool = False
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_model_name(self.name)
        owner = f"model {self.name!r}"
        check_source(owner, self.source, endpoint=True)
        check_choice(owner, "task", self.task, get_args(GeneratorTask))
        if self.source.startswith("endpoint:") and self.task != "causal":
            raise DeclarationError(f"{owner}: a model behind an endpoint has task 'causal', got {self.task!r}.")
        check_positive(owner, "max_tokens", self.max_tokens)
        check_flag(owner, "chat", self.chat)
        check_choice(owner, "precision", self.precision, ("fp32",))


@dataclass(frozen=True, kw_only=True)
class LabelModel:
    """A text encoder with a linear head: the probability of each of a closed set of labels.

    Attributes:
        name: The name features refer to.
        encoder: Name of the registered `EncoderModel` whose pooled vector the head reads.
        head: Where the head is: ``package:<module>/<file>`` or ``path:<file>``, a safetensors file with ``weight``
            (labels, dims), ``bias`` (labels) and ``thresholds`` (labels), float16 or float32, and the labels as a JSON
            list under ``labels`` in its metadata. With ``hidden_weight`` (hidden, dims) and ``hidden_bias`` (hidden) a
            layer with ReLU comes first, and ``weight`` is (labels, hidden). A label is given where its probability, the
            logistic function of its logit, is at least its threshold.
    """

    name: str
    encoder: str
    head: str

    def __post_init__(self) -> None:
        check_model_name(self.name)
        owner = f"model {self.name!r}"
        check_model_name(self.encoder)
        check_source(owner, self.head)
