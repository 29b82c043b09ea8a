"""Exports of tiny encoders with fewer bits, fewer layers and turned vectors."""

from dataclasses import replace

import numpy as np
import pytest
from samples import settings

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import DeclarationError, InputError, ParityError, ProviderError, QualityError
from llmrec_plugin.export import export_model, ladder, reduce
from llmrec_plugin.export.parity import graph_runner
from llmrec_plugin.export.rotation import principal_axes
from llmrec_plugin.export.texts import split
from llmrec_plugin.runtime.encoder import Encoder

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
pytest.importorskip("optimum.exporters.onnx", reason="the export extra is not installed")

WORDS = "the and library package film for java python quick brown fox jumps over lazy dog zero one two".split()


@pytest.fixture(scope="session")
def texts():
    """120 texts of 3 to 12 words."""
    random = np.random.default_rng(0)
    return split([" ".join(random.choice(WORDS, random.integers(3, 12))) for _ in range(120)], "a test")


@pytest.fixture(scope="session")
def export(bert_folder, declare, texts, tmp_path_factory):
    """Exports the tiny BERT with changes to its declaration, once for each set of them."""
    done = {}

    def export(**changes):
        key = repr(sorted(changes.items()))
        if key not in done:
            store = ArtifactStore([tmp_path_factory.mktemp("store")])
            model = declare(bert_folder, **{"min_overlap": 0.5, **changes})
            done[key] = export_model(model, store, texts=texts)
        return done[key]

    return export


def vectors(artifact, texts):
    return Encoder(artifact, settings(artifact.folder)).encode(texts.measurement)[0]


def operators(artifact):
    return [node.op_type for node in onnx.load(artifact.path("model.onnx")).graph.node]


def test_int8_computes_its_products_in_integers_and_stays_close(export, texts):
    artifact = export(precision="int8")
    assert operators(artifact).count("MatMulIntegerToFloat") == 12  # two layers of six
    assert artifact.manifest.precision == "int8"
    assert artifact.manifest.parity["passed"]
    quality = artifact.manifest.quality
    assert quality["texts"] == len(texts.measurement)
    assert quality["texts_sha256"] == texts.sha256
    assert 0.99 < quality["cosine_min"] < 1
    assert quality["kept_in_fp32"] == []


def test_the_record_is_what_the_served_artifact_does(export, texts):
    exact, reduced = vectors(export(), texts), vectors(export(precision="int8"), texts)
    cosines = np.einsum("nd,nd->n", exact, reduced)
    quality = export(precision="int8").manifest.quality
    assert quality["cosine_mean"] == pytest.approx(cosines.mean(), abs=1e-5)
    assert quality["cosine_min"] == pytest.approx(cosines.min(), abs=1e-5)


def test_a_text_has_one_vector_in_int8_alone_or_in_a_batch(export):
    assert export(precision="int8").manifest.quality["batching_max_abs_diff"] < 1e-6


def test_golden_vectors_of_a_reduced_graph_are_its_own(export):
    artifact = export(precision="int8")
    golden = np.load(artifact.path("golden.npy"))
    found, _ = Encoder(artifact, settings(artifact.folder)).encode(artifact.manifest.golden_texts)
    np.testing.assert_allclose(golden, found, atol=1e-6)


def test_the_same_weights_and_texts_give_the_same_int8_artifact(export, bert_folder, declare, texts, tmp_path):
    model = declare(bert_folder, precision="int8", min_overlap=0.5)
    assert export_model(model, ArtifactStore([tmp_path]), texts=texts).id == export(precision="int8").id


def test_products_stay_in_float32_until_the_floor_is_met(bert_folder, declare, texts, tmp_path, monkeypatch, export):
    right = reduce.measure
    shares = []

    def strict(*arguments, kept_in_fp32, **options):
        record = right(*arguments, kept_in_fp32=kept_in_fp32, **options)
        shares.append(len(kept_in_fp32))
        return replace(record, overlap_at_10=0.9 if len(kept_in_fp32) > 1 else 0.1)

    monkeypatch.setattr(reduce, "measure", strict)
    artifact = export_model(
        declare(bert_folder, precision="int8", min_overlap=0.9), ArtifactStore([tmp_path]), texts=texts
    )
    kept = artifact.manifest.quality["kept_in_fp32"]
    assert shares[0] == 0
    assert len(kept) == shares[-1] == min(share for share in shares if share > 1)
    assert operators(artifact).count("MatMulIntegerToFloat") == 12 - len(kept)
    assert artifact.id != export(precision="int8").id


def test_a_reduction_below_the_floor_is_refused_and_nothing_is_stored(bert_folder, declare, texts, tmp_path):
    store = ArtifactStore([tmp_path / "store"])
    with pytest.raises(QualityError, match=r"expected at least min_overlap=0\.9.*Nothing was stored"):
        export_model(declare(bert_folder, layers=(1,), min_overlap=0.9), store, texts=texts)
    assert list(store) == []
    assert [path.name for path in store.folders[0].iterdir()] == []


def test_a_reduced_graph_whose_vectors_depend_on_the_batch_is_refused(
    bert_folder, declare, texts, tmp_path, monkeypatch
):
    def leaking(path):
        run = graph_runner(path)
        return lambda inputs: run(inputs) + np.float32(1e-3) * len(inputs["input_ids"])

    monkeypatch.setattr(ladder, "graph_runner", leaking)
    with pytest.raises(ParityError, match="in int8: a text's vector depends on its batch"):
        export_model(declare(bert_folder, precision="int8", min_overlap=0), ArtifactStore([tmp_path]), texts=texts)


def test_fp16_halves_the_file_and_takes_and_gives_what_fp32_does(export, texts):
    half, full = export(precision="fp16"), export()
    assert half.path("model.onnx").stat().st_size < 0.8 * full.path("model.onnx").stat().st_size
    graph = onnx.load(half.path("model.onnx")).graph
    assert {item.type.tensor_type.elem_type for item in graph.input} == {onnx.TensorProto.INT64}
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert half.manifest.quality["cosine_min"] > 0.999
    assert half.manifest.quality["batching_max_abs_diff"] <= reduce.BATCHING_BOUNDS["fp16"]


def test_bf16_is_measured_in_the_runtime_that_serves_it_or_refused(bert_folder, declare, texts, tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino, which computes bf16, is not installed")
    model, store = declare(bert_folder, precision="bf16", min_overlap=0.5), ArtifactStore([tmp_path])
    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert 0.99 < export_model(model, store, texts=texts).manifest.quality["cosine_min"] < 1
    else:
        with pytest.raises(ProviderError, match=r"'bf16', but this CPU does not compute it.*AMX"):
            export_model(model, store, texts=texts)
        assert not list(store)


def test_bf16_is_the_float32_graph_measured_by_the_runner_it_is_given(bert_folder, declare, texts, tmp_path, export):
    def coarse(path):
        run = graph_runner(path)
        return lambda inputs: np.round(run(inputs) * 256) / 256

    model = declare(bert_folder, precision="bf16", min_overlap=0.5)
    artifact = export_model(model, ArtifactStore([tmp_path]), texts=texts, runner=coarse)
    assert artifact.manifest.files["model.onnx"] == export().manifest.files["model.onnx"]
    assert artifact.id != export().id
    assert artifact.manifest.quality["cosine_mean"] < 0.99999


def test_fewer_layers_are_another_model_that_equals_its_own_pytorch(export):
    pruned = export(layers=(0,), min_overlap=0)
    assert operators(pruned).count("Softmax") == 1
    assert operators(export()).count("Softmax") == 2
    assert pruned.manifest.parity["passed"]
    assert pruned.manifest.source["layers"] == "0"
    assert pruned.manifest.quality["overlap_at_10"] < 1


def test_keeping_every_layer_changes_nothing(export, texts):
    np.testing.assert_allclose(vectors(export(layers=(0, 1)), texts), vectors(export(), texts), atol=1e-6)
    assert export(layers=(0, 1)).manifest.quality["overlap_at_10"] == 1


@pytest.mark.parametrize("architecture", ["roberta", "distilbert", "qwen3"])
def test_layers_of_other_architectures_can_be_dropped(save_encoder, declare, texts, tmp_path, architecture):
    folder = save_encoder(tmp_path / "model", architecture)
    side = "left" if architecture == "qwen3" else "right"
    pooling = "last_token" if architecture == "qwen3" else "mean"
    model = declare(folder, layers=(1,), min_overlap=0, padding_side=side, pooling=pooling)
    artifact = export_model(model, ArtifactStore([tmp_path / "store"]), texts=texts)
    assert operators(artifact).count("Softmax") == 1


def test_a_layer_that_is_not_there_is_refused(bert_folder, declare, texts, tmp_path):
    with pytest.raises(DeclarationError, match="keeps layer 5, but it has 2 layers, 0 to 1"):
        export_model(declare(bert_folder, layers=(0, 5)), ArtifactStore([tmp_path]), texts=texts)


def test_a_rotation_changes_components_and_no_similarity(export, texts):
    plain, turned = vectors(export(), texts), vectors(export(rotation="pca"), texts)
    assert np.abs(plain - turned).max() > 0.01
    np.testing.assert_allclose(turned @ turned.T, plain @ plain.T, atol=1e-5)
    assert export(rotation="pca").manifest.quality["overlap_at_10"] > 0.99
    assert export(rotation="pca").manifest.source["rotation"] == "pca"


def test_a_rotated_prefix_finds_more_neighbors(export):
    plain, turned = export().manifest.quality["prefix"], export(rotation="pca").manifest.quality["prefix"]
    assert turned["16"] > plain["16"]


def test_rotation_and_int8_go_together(export):
    both = export(rotation="pca", precision="int8")
    assert operators(both).count("MatMulIntegerToFloat") == 12
    assert both.manifest.quality["cosine_min"] > 0.99


def test_axes_are_orthogonal_longest_first_and_signed_the_same_every_time():
    random = np.random.default_rng(0)
    vectors = (random.standard_normal((300, 16)) * np.arange(1, 17)).astype(np.float32)
    axes = principal_axes(vectors)
    np.testing.assert_allclose(axes.T @ axes, np.eye(16), atol=1e-6)
    lengths = np.square(vectors @ axes).sum(0)
    assert (np.diff(lengths) < 0).all()
    np.testing.assert_allclose(principal_axes(-vectors), axes, atol=1e-6)


def test_fewer_texts_than_dims_give_no_axes():
    with pytest.raises(InputError, match=r"expected 16, got 15\. Give more texts"):
        principal_axes(np.ones((15, 16), np.float32))
