"""An encoder and a head as one graph that passes the gate, and faults that do not."""

import json
from dataclasses import replace

import numpy as np
import pytest
from samples import settings

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("optimum.exporters.onnx", reason="the export extra is not installed")

from llmrec_plugin.artifacts import ArtifactStore, sha256_file  # noqa: E402
from llmrec_plugin.errors import DeclarationError, ParityError, SourceError  # noqa: E402
from llmrec_plugin.export import export_labels, labels  # noqa: E402
from llmrec_plugin.export.heads import Head, read_head, write_head  # noqa: E402
from llmrec_plugin.export.reference import Reference  # noqa: E402
from llmrec_plugin.runtime.encoder import Encoder  # noqa: E402
from llmrec_plugin.specs import LabelModel  # noqa: E402

DIMS, LABELS, HIDDEN = 32, 5, 7


def random_head(hidden: int = 0, dims: int = DIMS) -> Head:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float16).astype(np.float32)

    below = {"hidden_weight": draw(hidden, dims), "hidden_bias": draw(hidden)} if hidden else {}
    return Head(
        labels=tuple(f"facet::{number}" for number in range(LABELS)),
        thresholds=np.full(LABELS, 0.5, dtype=np.float32),
        weight=draw(LABELS, hidden or dims),
        bias=draw(LABELS),
        **below,
    )


@pytest.fixture
def model(tmp_path):
    def store_head(head: Head) -> LabelModel:
        write_head(head, tmp_path / "head.safetensors")
        quality = {"test": {"micro_f1": 0.5}, "sha256": sha256_file(tmp_path / "head.safetensors"), "plan": {}}
        (tmp_path / "quality.json").write_text(json.dumps(quality))
        return LabelModel(name="tagger", encoder="tiny", head=f"path:{tmp_path / 'head.safetensors'}")

    return store_head


@pytest.mark.parametrize("hidden", [0, HIDDEN])
def test_the_runtime_gives_the_logits_of_pytorch_and_the_head(bert_folder, declare, model, tmp_path, hidden):
    head, encoder = random_head(hidden), declare(bert_folder)
    artifact = export_labels(model(head), ArtifactStore([tmp_path / "store"]), encoder)
    manifest = artifact.manifest
    assert (manifest.labels, manifest.dims, manifest.normalize) == (head.labels, LABELS, False)
    assert manifest.thresholds == (0.5,) * LABELS
    assert manifest.parity["passed"]
    assert manifest.quality == {"test": {"micro_f1": 0.5}}
    logits, _ = Encoder(artifact, settings(tmp_path, generator="auto")).encode(["the film", "python for java!", "x"])
    tokenizer = labels.load_tokenizer(bert_folder, encoder)
    inputs = dict(tokenizer(["the film", "python for java!", "x"], padding="longest", return_tensors="np"))
    expected = head.logits(Reference(encoder, bert_folder)(inputs))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_another_threshold_or_weight_is_another_artifact(bert_folder, declare, model, tmp_path):
    store, encoder, head = ArtifactStore([tmp_path / "store"]), declare(bert_folder), random_head()
    first = export_labels(model(head), store, encoder).id
    assert export_labels(model(head), store, encoder).id == first
    assert export_labels(model(replace(head, thresholds=head.thresholds + 0.1)), store, encoder).id != first
    assert export_labels(model(replace(head, bias=head.bias + 1)), store, encoder).id != first


@pytest.mark.parametrize("fault", ["transposed labels", "no normalization"])
def test_a_graph_with_a_planted_fault_is_refused(bert_folder, declare, model, tmp_path, monkeypatch, fault):
    if fault == "transposed labels":
        right = labels.append_head
        monkeypatch.setattr(
            labels, "append_head", lambda path, head: right(path, replace(head, weight=head.weight[::-1].copy()))
        )
    else:
        build = labels.build_graph
        monkeypatch.setattr(labels, "build_graph", lambda model, *rest: build(replace(model, normalize=False), *rest))
    store = ArtifactStore([tmp_path / "store"])
    with pytest.raises(ParityError, match="Nothing was stored"):
        export_labels(model(random_head()), store, declare(bert_folder))
    assert list(store) == []


def test_a_head_for_other_vectors_or_another_encoder_is_refused(bert_folder, declare, model, tmp_path):
    store = ArtifactStore([tmp_path / "store"])
    with pytest.raises(SourceError, match="expected 5 distinct labels"):
        export_labels(model(random_head(dims=16)), store, declare(bert_folder))
    with pytest.raises(DeclarationError, match="names the encoder 'tiny', got 'other'"):
        export_labels(model(random_head()), store, declare(bert_folder, name="other"))
    with pytest.raises(DeclarationError, match="is reduced"):
        export_labels(model(random_head()), store, declare(bert_folder, precision="int8"))


def test_what_is_no_head_is_refused(tmp_path):
    with pytest.raises(SourceError, match="is no head"):
        read_head(tmp_path / "absent.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(SourceError, match="is no head"):
        read_head(tmp_path / "broken.safetensors")


def test_equal_heads_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_head(random_head(HIDDEN), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = read_head(tmp_path / "one")
    np.testing.assert_array_equal(again.weight, random_head(HIDDEN).weight)
