"""Tiny models built in memory: real ONNX, real tokenizers, random weights, no download. Needs the package onnx.

Their golden values are computed with numpy, so that loading one compares two implementations.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from llmrec_plugin.artifacts import Artifact, ArtifactStore, GeneratorArtifact, sha256_file
from llmrec_plugin.manifests import GOLDEN, GOLDEN_PROMPTS, GRAPH, MANIFEST, TOKENIZER, GeneratorManifest, Manifest
from llmrec_plugin.specs import Pooling

WORDS = tuple(
    """
    red green blue yellow black white big small old new fast slow web server client python java library tool game
    editor image sound video mail chat database kernel driver font math graph parser compiler shell text data
    """.split()
)
GOLDEN_TEXTS = ("red web server", "a fast python library", "unknown words only", "font " * 30)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


def add_tiny_encoder(
    store: ArtifactStore,
    *,
    name: str = "tiny",
    dims: int = 8,
    seed: int = 0,
    normalize: bool = True,
    max_tokens: int = 16,
    pooling: Pooling = "mean",
    labels: tuple[str, ...] = (),
    thresholds: tuple[float, ...] = (),
) -> Artifact:
    """Adds a tiny encoder to the store, under a real model's name to stand in for it: the mean of word vectors.

    Args:
        store: Where it goes.
        name: Of the model.
        dims: Length of its vectors.
        seed: Of the weights; another seed is another model of the same name.
        normalize: Whether its vectors have unit L2 norm.
        max_tokens: Longest text.
        pooling: What the manifest says; the mean is computed in any case.
        labels: What its vectors are logits of; it then is a model that scores labels.
        thresholds: Least probability of each label; default: 0.5.
    """
    if labels:
        dims, normalize = len(labels), False
        thresholds = thresholds or (0.5,) * dims
    table = np.random.default_rng(seed).standard_normal((len(WORDS) + 4, dims)).astype(np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artifact"
        folder.mkdir()
        tokenizer = tiny_tokenizer()
        tokenizer.save(str(folder / TOKENIZER))
        onnx.save(_encoder_graph(table, normalize), str(folder / GRAPH))
        tokenizer.enable_truncation(max_tokens)
        golden = np.stack([reference(table, tokenizer.encode(text).ids, normalize) for text in GOLDEN_TEXTS])
        np.save(folder / GOLDEN, golden)
        manifest = Manifest(
            model=name,
            source={"declared": f"random:{seed}"},
            pooling=pooling,
            normalize=normalize,
            dims=dims,
            max_tokens=max_tokens,
            padding_side="right",
            pad_token_id=0,
            inputs=("input_ids", "attention_mask"),
            output="embedding",
            precision="fp32",
            files=_hashes(folder),
            golden_texts=GOLDEN_TEXTS,
            labels=labels,
            thresholds=thresholds,
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        added = store.add(folder)
    assert isinstance(added, Artifact)
    return added


def add_tiny_generator(
    store: ArtifactStore, *, name: str = "tiny-writer", seed: int = 0, max_tokens: int = 2_048
) -> GeneratorArtifact:
    """Adds a tiny generator to the store: the next token follows from the last and from the mean of all before it.

    It writes nonsense, but another text for another prompt, and can be kept to tags, options or JSON.

    Args:
        store: Where it goes.
        name: Of the model.
        seed: Of the weights.
        max_tokens: Longest prompt and output together.
    """
    tokenizer = _byte_tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    source = np.random.default_rng(seed)
    weights = {
        "embeddings": source.standard_normal((vocabulary, _WIDTH)).astype(np.float32),
        "bigrams": 2 * source.standard_normal((vocabulary, vocabulary)).astype(np.float32),
        "out": 4 * source.standard_normal((_WIDTH, vocabulary)).astype(np.float32),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artifact"
        folder.mkdir()
        tokenizer.save(str(folder / TOKENIZER))
        onnx.save(_generator_graph(weights), str(folder / GRAPH))
        prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in GOLDEN_TEXTS]
        golden = [{"ids": ids, "tokens": _continued(weights, ids)} for ids in prompts]
        content = {"max_new_tokens": _GOLDEN_TOKENS, "prompts": golden}
        (folder / GOLDEN_PROMPTS).write_text(json.dumps(content), encoding="utf-8")
        manifest = GeneratorManifest(
            model=name,
            source={"declared": f"random:{seed}"},
            task="causal",
            max_tokens=max_tokens,
            vocab_size=vocabulary,
            layers=1,
            kv_heads=1,
            head_dim=_WIDTH,
            eos_token_ids=(SPECIAL_TOKENS.index("</s>"),),
            pad_token_id=0,
            files=_hashes(folder),
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        added = store.add(folder)
    assert isinstance(added, GeneratorArtifact)
    return added


def reference(table: np.ndarray, ids: list[int], normalize: bool = True) -> np.ndarray:
    """The vector of one token sequence, (dims,) float32."""
    vector = table[ids].astype(np.float64).mean(axis=0)
    return (vector / np.linalg.norm(vector) if normalize else vector).astype(np.float32)


def tiny_tokenizer() -> Tokenizer:
    """Splits at spaces; every other word is unknown."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def _byte_tokenizer() -> Tokenizer:
    """Bytes and some merges, so that every text can be encoded and decoded; special tokens first."""
    return Tokenizer.from_str(_byte_tokenizer_text())


@functools.cache
def _byte_tokenizer_text() -> str:
    return str(train_byte_tokenizer([" ".join(WORDS)] * 3, SPECIAL_TOKENS, 300).to_str())


def train_byte_tokenizer(texts: Sequence[str], special_tokens: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level tokenizer with the merges of some texts; special tokens have the first ids, in their order."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


_WIDTH = 8
_GOLDEN_TOKENS = 12


def _continued(weights: dict[str, np.ndarray], ids: list[int]) -> list[int]:
    """The tokens that follow `ids`, greedily, up to the end."""
    known, written = list(ids), []
    for _ in range(_GOLDEN_TOKENS):
        mean = weights["embeddings"][known].astype(np.float64).mean(axis=0)
        token = int(np.argmax(mean @ weights["out"] + weights["bigrams"][known[-1]]))
        if token == SPECIAL_TOKENS.index("</s>"):
            break
        known.append(token)
        written.append(token)
    return written


def _hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in sorted(folder.iterdir())}


def _encoder_graph(table: np.ndarray, normalize: bool) -> onnx.ModelProto:
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["tokens"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["mask3"]),
        node("Mul", ["tokens", "mask3"], ["masked"]),
        node("ReduceSum", ["masked", "one"], ["sums"], keepdims=0),
        node("ReduceSum", ["mask3", "one"], ["counts"], keepdims=0),
        node("Div", ["sums", "counts"], ["mean" if normalize else "embedding"]),
    ]
    if normalize:
        nodes += [node("ReduceL2", ["mean", "one"], ["norm"], keepdims=1), node("Div", ["mean", "norm"], ["embedding"])]
    inputs = {name: ["batch", "length"] for name in ("input_ids", "attention_mask")}
    constants = {"table": table, "last": np.array([-1]), "one": np.array([1])}
    return _model(nodes, inputs, {"embedding": ["batch", table.shape[1]]}, constants)


def _generator_graph(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Keeps the embeddings of all tokens as keys; the values of the cache are keys, too, and are not read."""
    node = helper.make_node
    nodes = [
        node("Gather", ["embeddings", "input_ids"], ["new"]),  # (batch, length, width)
        node("Unsqueeze", ["new", "one"], ["new4"]),
        node("Concat", ["past_key_values.0.key", "new4"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "new4"], ["present.0.value"], axis=2),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["mask3"]),  # (batch, known + length, 1)
        node("Squeeze", ["present.0.key", "one"], ["all"]),
        node("Mul", ["all", "mask3"], ["masked"]),
        node("CumSum", ["masked", "axis"], ["sums"]),
        node("CumSum", ["mask3", "axis"], ["counts"]),
        node("Max", ["counts", "unit"], ["least"]),
        node("Div", ["sums", "least"], ["means"]),
        node("Shape", ["input_ids"], ["length"], start=1, end=2),
        node("Neg", ["length"], ["start"]),
        node("Slice", ["means", "start", "far", "one"], ["recent"]),
        node("MatMul", ["recent", "out"], ["far_logits"]),
        node("Gather", ["bigrams", "input_ids"], ["near_logits"]),
        node("Add", ["far_logits", "near_logits"], ["logits"]),
    ]
    cache: list[str | int] = ["batch", 1, "known", _WIDTH]
    inputs: dict[str, list[Any]] = {"input_ids": ["batch", "length"], "attention_mask": ["batch", "all"]}
    outputs: dict[str, list[Any]] = {"logits": ["batch", "length", weights["out"].shape[1]]}
    for part in ("key", "value"):
        inputs[f"past_key_values.0.{part}"] = cache
        outputs[f"present.0.{part}"] = ["batch", 1, "all", _WIDTH]
    constants = {
        **weights,
        "one": np.array([1]),
        "last": np.array([-1]),
        "axis": np.array(1),
        "unit": np.ones(1, dtype=np.float32),
        "far": np.array([2**31 - 1]),
    }
    return _model(nodes, inputs, outputs, constants)


def _model(
    nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], constants: dict[str, np.ndarray]
) -> onnx.ModelProto:
    def described(name: str, shape: list[Any]) -> Any:
        whole = name in ("input_ids", "attention_mask")
        return helper.make_tensor_value_info(name, TensorProto.INT64 if whole else TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        "tiny",
        [described(name, shape) for name, shape in inputs.items()],
        [described(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model
