"""Whole exports of tiny encoders through Optimum and ONNX Runtime."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from llmrec_plugin.artifacts import ArtifactStore, read_artifact
from llmrec_plugin.errors import ArtifactCorruptError, DeclarationError, MissingExtraError, ParityError
from llmrec_plugin.export import SourceError, export_model, exporter
from llmrec_plugin.export.parity import corpus, graph_runner
from llmrec_plugin.export.reference import Reference

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
optimum_onnx = pytest.importorskip("optimum.exporters.onnx", reason="the export extra is not installed")


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Holds `exported`; read only."""
    return ArtifactStore([tmp_path_factory.mktemp("store")])


@pytest.fixture(scope="session")
def messages():
    return []


@pytest.fixture(scope="session")
def exported(bert_folder, declare, store, messages):
    """A tiny BERT, mean pooled and normalized."""
    return export_model(declare(bert_folder), store, report=messages.append)


def content(store):
    """Every file and folder of a store."""
    return sorted(str(path.relative_to(store.folders[0])) for path in store.folders[0].rglob("*"))


def test_an_export_is_a_verified_artifact_that_is_current(exported, store, messages):
    exported.verify()
    assert store.current("tiny").id == exported.id
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        "golden.npy", "manifest.json", "model.onnx", "tokenizer.json",
    ]  # fmt: skip
    assert not list(store.folders[0].glob(".export-*"))
    assert any(exported.id[:16] in message for message in messages)


def test_the_manifest_records_what_was_exported(exported, bert_folder):
    manifest = exported.manifest
    assert read_artifact(exported.folder).manifest == manifest
    assert manifest.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert (manifest.output, manifest.precision, manifest.pad_token_id) == ("embedding", "fp32", 0)
    assert manifest.source["source"] == f"path:{bert_folder}"
    assert len(manifest.source["weights_sha256"]) == 64
    assert {"torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime"} <= set(manifest.versions)
    assert manifest.parity["passed"]
    assert manifest.parity["texts"] == len(corpus()) + 1
    assert manifest.parity["longest_tokens"] == manifest.max_tokens


def test_the_graph_has_one_output_and_no_trace_of_where_it_was_made(exported):
    graph = onnx.load(exported.path("model.onnx"))
    (output,) = graph.graph.output
    shape = [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
    assert (output.name, shape) == ("embedding", ["batch_size", 32])
    assert not graph.doc_string
    assert not graph.metadata_props
    assert not graph.producer_version


def test_the_golden_vectors_are_pytorchs(exported, bert_folder, declare):
    golden = np.load(exported.path("golden.npy"), allow_pickle=False)
    assert golden.shape == (8, 32)
    assert golden.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(golden, axis=1), 1, rtol=1e-5)
    assert exported.manifest.golden_texts == tuple(corpus()[:8])


def test_the_exported_tokenizer_neither_truncates_nor_pads(exported):
    tokenizer = json.loads(exported.path("tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["truncation"] is None
    assert tokenizer["padding"] is None


def test_a_second_export_gives_the_same_bytes_and_the_same_id(exported, bert_folder, declare, tmp_path):
    again = export_model(declare(bert_folder), ArtifactStore([tmp_path]))
    assert again.id == exported.id
    for name in ("model.onnx", "tokenizer.json"):
        assert again.manifest.files[name] == exported.manifest.files[name]
    # PyTorch's last bits depend on CPU and thread count, which is why the id leaves the golden vectors out.
    np.testing.assert_allclose(np.load(again.path("golden.npy")), np.load(exported.path("golden.npy")), atol=1e-6)


def test_a_flipped_byte_is_found(exported, bert_folder, tmp_path):
    copy = read_artifact(shutil.copytree(exported.folder, tmp_path / "copy"))
    graph = bytearray(copy.path("model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    copy.path("model.onnx").write_bytes(graph)
    with pytest.raises(ArtifactCorruptError, match=r"model\.onnx"):
        copy.verify()


@pytest.mark.parametrize(
    ("pooling", "normalize"),
    [*itertools.product(["cls", "max", "last_token"], [True, False]), ("mean", False)],  # (mean, True) is `exported`
)
def test_every_pooling_passes_with_and_without_normalization(bert_folder, declare, tmp_path, pooling, normalize):
    artifact = export_model(declare(bert_folder, pooling=pooling, normalize=normalize), ArtifactStore([tmp_path]))
    assert artifact.manifest.parity["worst_abs_diff"] < 1e-5
    norms = np.linalg.norm(np.load(artifact.path("golden.npy")), axis=1)
    assert np.allclose(norms, 1, rtol=1e-5) == normalize


@pytest.mark.parametrize(
    ("architecture", "pooling", "padding_side", "inputs"),
    [
        ("distilbert", "cls", "right", ("input_ids", "attention_mask")),
        ("roberta", "last_token", "left", ("input_ids", "attention_mask")),
        ("qwen3", "last_token", "left", ("input_ids", "attention_mask", "position_ids")),
    ],
)
def test_other_architectures_pass(save_encoder, declare, tmp_path, architecture, pooling, padding_side, inputs):
    folder = save_encoder(tmp_path / "model", architecture)
    model = declare(folder, pooling=pooling, padding_side=padding_side)
    artifact = export_model(model, ArtifactStore([tmp_path / "store"]))
    assert artifact.manifest.inputs == inputs
    assert artifact.manifest.padding_side == padding_side


def test_bert_with_padding_on_the_left_is_refused_because_texts_would_move(bert_folder, declare, tmp_path):
    with pytest.raises(ParityError, match=r"depends on the batch it is in: .* padding on the left"):
        export_model(declare(bert_folder, padding_side="left"), ArtifactStore([tmp_path]))


def test_a_graph_that_pools_otherwise_is_refused_and_nothing_is_stored(bert_folder, declare, tmp_path, monkeypatch):
    store = ArtifactStore([tmp_path])
    export_model(declare(bert_folder), store)
    before = content(store)
    right = exporter.build_graph
    monkeypatch.setattr(exporter, "build_graph", lambda model, *folders: right(replace(model, pooling="cls"), *folders))
    with pytest.raises(ParityError, match=r"the tolerance is 1e-05; worst text: .*Nothing was stored"):
        export_model(declare(bert_folder, pooling="mean"), store)
    assert content(store) == before


def test_other_weights_than_the_references_are_refused(bert_folder, save_encoder, declare, tmp_path, monkeypatch):
    other = save_encoder(tmp_path / "other", seed=1)
    monkeypatch.setattr(exporter, "Reference", lambda model, folder: Reference(model, other))
    with pytest.raises(ParityError, match="Against PyTorch"):
        export_model(declare(bert_folder), ArtifactStore([tmp_path / "store"]))
    assert content(ArtifactStore([tmp_path / "store"])) == []


def test_weights_in_a_file_of_their_own_belong_to_the_artifact(bert_folder, declare, tmp_path, monkeypatch):
    """Optimum writes graphs above 2 GB that way; here a small one is rewritten so."""
    right = optimum_onnx.main_export

    def split(source, output, **options):
        right(source, output=output, **options)
        graph = onnx.load(output / "model.onnx")
        (output / "model.onnx").unlink()
        onnx.save_model(graph, output / "model.onnx", save_as_external_data=True, location="model.onnx_data")

    monkeypatch.setattr(optimum_onnx, "main_export", split)
    artifact = export_model(declare(bert_folder), ArtifactStore([tmp_path]))
    assert set(artifact.manifest.files) == {"golden.npy", "model.onnx", "model.onnx_data", "tokenizer.json"}
    assert artifact.path("model.onnx_data").stat().st_size > artifact.path("model.onnx").stat().st_size / 10


def test_a_contradiction_is_found_before_anything_is_exported(bert_folder, declare, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "build_graph", None)
    store = ArtifactStore([tmp_path / "store"])
    with pytest.raises(DeclarationError, match=r"dims=16.*32"):
        export_model(declare(bert_folder, dims=16), store)
    with pytest.raises(SourceError):
        export_model(declare(tmp_path / "absent"), store)
    assert not store.folders[0].exists()


def test_code_that_comes_with_a_model_is_not_run(bert_folder, declare, tmp_path):
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "brand-new", "auto_map": {"AutoModel": "modeling.Custom", "AutoConfig": "modeling.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(SourceError, match="never run"):
        export_model(declare(folder), ArtifactStore([tmp_path / "store"]))


def test_without_the_export_extra_the_error_gives_the_pip_command(bert_folder, declare, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"'transformers', which is not installed.*llmrec-plugin\[export\]"):
        export_model(declare(bert_folder), ArtifactStore([tmp_path]))


def test_importing_the_export_loads_nothing_heavy():
    heavy = {"torch", "transformers", "optimum", "onnx", "onnxruntime", "tokenizers", "feast", "huggingface_hub"}
    code = f"import sys, llmrec_plugin.export; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"


def test_a_batch_gives_the_rows_of_single_texts(exported):
    run = graph_runner(exported.path("model.onnx"))
    ids = np.array([[2, 10, 11, 3], [2, 12, 3, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64), "token_type_ids": np.zeros_like(ids)}
    together = run(inputs)
    alone = run({name: values[1:, :3] for name, values in inputs.items()})
    np.testing.assert_allclose(together[1], alone[0], atol=1e-6)
