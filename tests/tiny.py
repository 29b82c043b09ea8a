"""A tiny encoder built in memory: word embeddings, masked mean, unit norm. Real ONNX, real tokenizer, no download.

Its reference vectors are computed with numpy, so the golden check compares two implementations.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from llmrec_plugin.artifacts import (
    GOLDEN,
    GRAPH,
    TOKENIZER,
    Artifact,
    ArtifactStore,
    GeneratorArtifact,
    GeneratorManifest,
    Manifest,
    sha256_file,
)

WORDS = tuple(
    """
    red green blue yellow black white big small old new fast slow web server client python java library tool game
    editor image sound video mail chat database kernel driver font math graph parser compiler shell text data
    """.split()
)
GOLDEN_TEXTS = ("red web server", "a fast python library", "unknown words only", "font " * 30)


def export_tiny(
    store: ArtifactStore,
    *,
    name: str = "tiny",
    dims: int = 8,
    seed: int = 0,
    normalize: bool = True,
    max_tokens: int = 16,
    labels: tuple[str, ...] = (),
    thresholds: tuple[float, ...] = (),
) -> Artifact:
    """Adds a tiny encoder with random weights to the store; another seed is another model of the same name.

    With `labels` its vectors are their logits.
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
        onnx.save(_graph(table, normalize), str(folder / GRAPH))
        tokenizer.enable_truncation(max_tokens)
        golden = np.stack([reference(table, tokenizer.encode(text).ids, normalize) for text in GOLDEN_TEXTS])
        np.save(folder / GOLDEN, golden)
        manifest = Manifest(
            model=name,
            source={"declared": f"random:{seed}"},
            pooling="mean",
            normalize=normalize,
            dims=dims,
            max_tokens=max_tokens,
            padding_side="right",
            pad_token_id=0,
            inputs=("input_ids", "attention_mask"),
            output="embedding",
            precision="fp32",
            files={file.name: sha256_file(file) for file in sorted(folder.iterdir())},
            golden_texts=GOLDEN_TEXTS,
            labels=labels,
            thresholds=thresholds,
        )
        (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
        added = store.add(folder)
    assert isinstance(added, Artifact)
    return added


def add_generator(store: ArtifactStore, *, name: str = "writer", version: str = "1") -> GeneratorArtifact:
    """Adds a generator without a graph, for engines that need none."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "artifact"
        folder.mkdir()
        manifest = GeneratorManifest(
            model=name,
            source={"declared": "test"},
            task="causal",
            max_tokens=64,
            vocab_size=2 + int(version),
            layers=1,
            kv_heads=1,
            head_dim=4,
            eos_token_ids=(1,),
            pad_token_id=0,
            files={},
        )
        (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
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
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def _graph(table: np.ndarray, normalize: bool) -> onnx.ModelProto:
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
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", table.shape[1]])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([-1], dtype=np.int64), "last"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model
