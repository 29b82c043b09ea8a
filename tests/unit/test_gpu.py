"""Batches on a GPU, as far as a CPU shows it: real graphs, real buffers and binding, a stand-in for CUDA graphs."""

import dataclasses
import functools
import threading

import numpy as np
import onnxruntime
import pytest
from samples import settings
from tiny import WORDS, export_tiny

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import ProviderError
from llmrec_plugin.inference import Batch
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.pipeline.batching import pad
from llmrec_plugin.runtime import encoder as encoder_module
from llmrec_plugin.runtime import gpu, runtimes
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.runtime.gpu import KEPT_AFTER, NO_GRAPH, GpuSession, on_device, open_gpu, pad_to
from llmrec_plugin.runtime.providers import CPU, CUDA, TENSORRT

TEXTS = [" ".join(WORDS[i % 30 : i % 30 + i % 12]) for i in range(120)]


class Cuda:
    """A session on the CPU that treats graph ids as CUDA does.

    The first run with an id captures: it needs the thread and the addresses of all later ones. A replay computes at the
    addresses of the capture, whatever is bound by then.
    """

    def __init__(self, artifact):
        self._session = onnxruntime.InferenceSession(str(artifact.path(GRAPH)), providers=[CPU])
        self.graphs = {}
        self.ids = []
        self.threads = set()

    def get_providers(self):
        return [CUDA, CPU]

    def io_binding(self):
        return self._session.io_binding()

    def run_with_iobinding(self, binding, options):
        graph = int(options.get_run_config_entry("gpu_graph_id"))
        self.ids.append(graph)
        self.threads.add(threading.current_thread().name)
        if graph != NO_GRAPH:
            binding = self.graphs.setdefault(graph, binding)
        self._session.run_with_iobinding(binding, onnxruntime.RunOptions())


@pytest.fixture
def on_cpu(tiny):
    """A session of `tiny`, and what stands in for CUDA in it."""

    def make(artifact=tiny, **options):
        cuda = Cuda(artifact)
        return GpuSession(lambda graphs: cuda, artifact, device="cpu", **options), cuda

    return make


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory):
    return Encoder(tiny, settings(tmp_path_factory.mktemp("unused"))).encode(TEXTS)[0]


def batch(rows, length, seed=0):
    """Rows of one to `length` tokens, the first of them of `length`."""
    rng = np.random.default_rng(seed)
    lengths = [length, *rng.integers(1, length + 1, rows - 1)]
    return Batch(*pad([rng.integers(4, len(WORDS), count).tolist() for count in lengths], 0))


def plain(artifact, batch):
    session = onnxruntime.InferenceSession(str(artifact.path(GRAPH)), providers=[CPU])
    return session.run(None, {"input_ids": batch.ids, "attention_mask": batch.mask})[0]


# --- padding


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_padded_on_its_models_side_and_rows_are_added_below(tiny, side):
    manifest = dataclasses.replace(tiny.manifest, padding_side=side, pad_token_id=1)
    ids, mask = pad_to(Batch(*pad([[7, 8, 9], [5]], 1, side)), (4, 5), manifest)
    if side == "right":
        assert ids.tolist() == [[7, 8, 9, 1, 1], [5, 1, 1, 1, 1], [1] * 5, [1] * 5]
        assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    else:
        assert ids.tolist() == [[1, 1, 7, 8, 9], [1, 1, 1, 1, 5], [1] * 5, [1] * 5]
        assert mask.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (3, 9), (8, 16), (13, 5), (70, 12)])
def test_padding_changes_no_vector(on_cpu, tiny, rows, length):
    session, _ = on_cpu()
    given = batch(rows, length)
    np.testing.assert_allclose(session.run(given), plain(tiny, given), atol=1e-6)


def test_a_batch_longer_than_the_model_is_not_cut(on_cpu, tiny):
    session, _ = on_cpu()
    given = batch(2, tiny.manifest.max_tokens + 3)
    np.testing.assert_allclose(session.run(given), plain(tiny, given), atol=1e-6)


# --- shapes and CUDA graphs


def test_a_shape_is_captured_once_it_has_come_often_and_replayed_from_then_on(on_cpu, tiny):
    session, cuda = on_cpu(graphs=True)
    for number in range(KEPT_AFTER + 2):
        given = batch(5, 10, seed=number)
        np.testing.assert_allclose(session.run(given), plain(tiny, given), atol=1e-6)
    assert cuda.ids == [NO_GRAPH] * KEPT_AFTER + [1] * 4  # captured, compared, then two batches


def test_every_shape_has_a_graph_of_its_own_and_results_survive_the_next_run(on_cpu, tiny):
    session, cuda = on_cpu(graphs=True)
    given = [batch(rows, length, seed=rows) for rows, length in ((2, 8), (4, 8), (4, 16))]
    for _ in range(KEPT_AFTER):
        results = [session.run(item) for item in given]
    results += [session.run(item) for item in given]
    for result, item in zip(results, given * 2, strict=True):
        np.testing.assert_allclose(result, plain(tiny, item), atol=1e-6)
    assert sorted(cuda.graphs) == [1, 2, 3]


def test_shapes_beyond_those_that_are_kept_run_without_a_graph(on_cpu, tiny, monkeypatch):
    monkeypatch.setattr(gpu, "SHAPES_KEPT", 2)
    session, cuda = on_cpu(graphs=True)
    for rows in (1, 2, 4, 8):
        for seed in range(KEPT_AFTER + 1):
            given = batch(rows, 8, seed)
            np.testing.assert_allclose(session.run(given), plain(tiny, given), atol=1e-6)
    assert sorted(cuda.graphs) == [1, 2]
    assert cuda.ids[-2 * (KEPT_AFTER + 1) :] == [NO_GRAPH] * 2 * (KEPT_AFTER + 1)


def test_the_buffers_of_a_captured_shape_stay_where_they_are(on_cpu):
    session, cuda = on_cpu(graphs=True)
    for seed in range(KEPT_AFTER):
        session.run(batch(4, 8, seed))
    captured = session._kept[4, 8]
    for rows in range(1, 60):
        session.run(batch(rows, 11, rows))
    assert session._kept[4, 8] is captured
    assert cuda.graphs[1] is captured._binding


def test_without_graphs_no_run_captures(on_cpu):
    session, cuda = on_cpu()
    for seed in range(KEPT_AFTER + 3):
        session.run(batch(4, 8, seed))
    assert set(cuda.ids) == {NO_GRAPH}


def test_all_threads_work_on_the_device_through_one_of_its_own(on_cpu, tiny):
    session, cuda = on_cpu(graphs=True)
    wrong = []

    def work(seed):
        for number in range(20):
            given = batch(1 + (seed + number) % 9, 8, seed)
            if not np.allclose(session.run(given), plain(tiny, given), atol=1e-6):
                wrong.append(given)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cuda.threads) == 1
    assert threading.current_thread().name not in cuda.threads


def test_the_thread_of_the_device_is_the_same_for_every_session():
    assert on_device(threading.current_thread) is on_device(threading.current_thread)


def test_onnxruntimes_refusal_of_graphs_is_told_and_the_model_runs_without(tiny, caplog):
    def open_session(graphs):
        if graphs:
            raise RuntimeError("not all nodes are on one provider")
        return Cuda(tiny)

    with caplog.at_level("INFO"):
        session = GpuSession(open_session, tiny, graphs=True, device="cpu")
    assert not session.graphs
    assert "tiny runs without CUDA graphs: ONNX Runtime says not all nodes are on one provider" in caplog.text
    assert session.run(batch(3, 4)).shape == (3, 8)


def test_a_fall_back_to_the_cpu_is_not_taken_for_a_refusal_of_graphs(tiny):
    def open_session(graphs):
        raise ProviderError("asked for CUDA and chose CPU")

    with pytest.raises(ProviderError, match="chose CPU"):
        GpuSession(open_session, tiny, graphs=True, device="cpu")


class Faulty(Cuda):
    """Captures with an error, or replays something else than it captured."""

    def __init__(self, artifact, fault):
        super().__init__(artifact)
        self._fault = fault

    def run_with_iobinding(self, binding, options):
        graph = int(options.get_run_config_entry("gpu_graph_id"))
        if graph != NO_GRAPH and self._fault == "error":
            raise RuntimeError("CUDA failure 900")
        super().run_with_iobinding(binding, options)
        if graph != NO_GRAPH and self._fault == "numbers":
            output = binding.get_outputs()[0]
            output.update_inplace(output.numpy() * np.float32(1.01))
        if graph != NO_GRAPH and self._fault == "nan":
            output = binding.get_outputs()[0]
            output.update_inplace(output.numpy() * np.float32("nan"))


@pytest.mark.parametrize("fault", ["error", "numbers", "nan"])
def test_a_capture_that_fails_or_computes_something_else_ends_graphs_and_loses_no_batch(tiny, caplog, fault):
    opened = []

    def open_session(graphs):
        opened.append(Faulty(tiny, fault) if graphs else Cuda(tiny))
        return opened[-1]

    session = GpuSession(open_session, tiny, graphs=True, device="cpu")
    for seed in range(KEPT_AFTER + 3):
        given = batch(4, 8, seed)
        np.testing.assert_allclose(session.run(given), plain(tiny, given), atol=1e-6)
    assert len(opened) == 2
    assert not session.graphs
    assert set(opened[1].ids) == {NO_GRAPH}
    assert "goes on without CUDA graphs: capturing shape (4, 8) failed" in caplog.text


# --- in the encoder


def as_on_a_gpu(monkeypatch, **options):
    """Has encoders open their models as on a GPU; gives the sessions."""
    opened = []

    def open_session(runtime, artifact, settings, placement):
        opened.append(GpuSession(lambda graphs: Cuda(artifact), artifact, device="cpu", graphs=True, **options))
        return opened[-1]

    monkeypatch.setattr(encoder_module, "open_session", open_session)
    return opened


@pytest.mark.parametrize("token_budget", [1, 64, 1000])
@pytest.mark.parametrize("texts_ahead", [7, 4096])
def test_an_encoder_gives_the_same_vectors_whatever_is_tokenized_ahead(
    tiny, tmp_path, expected, monkeypatch, token_budget, texts_ahead
):
    monkeypatch.setattr(encoder_module, "TEXTS_AHEAD", texts_ahead)
    as_on_a_gpu(monkeypatch, token_budget=token_budget)
    encoder = Encoder(tiny, settings(tmp_path))
    vectors, tokens = encoder.encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert tokens == encoder.count_tokens(TEXTS)
    assert encoder.provider == CUDA


def test_an_encoder_plans_full_batches_of_few_shapes(tiny, tmp_path, monkeypatch):
    opened = as_on_a_gpu(monkeypatch, token_budget=256)
    encoder = Encoder(tiny, settings(tmp_path))
    shapes = []
    run = opened[0].run
    monkeypatch.setattr(opened[0], "run", lambda batch: shapes.append(batch.ids.shape) or run(batch))
    encoder.encode(["red green blue " * 5] * 200)
    assert sorted(shapes, reverse=True) == [(16, 16)] * 12 + [(8, 16)]


def test_many_texts_are_handed_in_at_a_time_where_they_are_tokenized_ahead(tiny, tmp_path, monkeypatch):
    assert Encoder(tiny, settings(tmp_path)).texts_per_call == encoder_module.TEXTS_PER_CALL
    as_on_a_gpu(monkeypatch)
    assert Encoder(tiny, settings(tmp_path)).texts_per_call > encoder_module.TEXTS_AHEAD


# --- opening


@pytest.fixture
def sessions(monkeypatch):
    """The graphs and providers that sessions are opened with, instead of opening them."""
    asked = []

    def new_session(graph, providers):
        asked.append((graph, dict(item for item in providers if isinstance(item, tuple))))
        return Cuda(ArtifactStore([graph.parents[2]]).current("tiny"))

    monkeypatch.setattr(gpu, "new_session", new_session)
    return asked


def test_cuda_opens_the_exported_graph_with_cuda_graphs(tiny, tmp_path, sessions):
    session = open_gpu(tiny, CUDA, tmp_path)
    ((graph, providers),) = sessions
    assert graph == tiny.path(GRAPH)
    assert providers[CUDA]["enable_cuda_graph"] == "1"
    assert (session.graphs, session.fused, session.adjustable) == (True, False, False)


def test_tensorrt_writes_into_the_cache_folder_and_captures_nothing(tiny, tmp_path, sessions):
    session = open_gpu(tiny, TENSORRT, tmp_path)
    ((_, providers),) = sessions
    assert providers[TENSORRT]["trt_engine_cache_path"].startswith(str(tmp_path / "gpu"))
    assert f"input_ids:{gpu.TENSORRT_TOKEN_BUDGET // 8}x16" in providers[TENSORRT]["trt_profile_max_shapes"]
    assert (session.graphs, session.placement.token_budget) == (False, gpu.TENSORRT_TOKEN_BUDGET)


def test_a_model_whose_attention_cannot_be_fused_runs_as_it_was_exported(tmp_path, sessions, caplog):
    """The tiny encoder has none."""
    artifact = export_tiny(ArtifactStore([tmp_path / "artifacts"]))
    session = open_gpu(artifact, CUDA, tmp_path / "cache", fused=True)
    assert not session.fused
    assert sessions[0][0] == artifact.path(GRAPH)
    assert "tiny runs without fused attention: ValueError: no value of the graph is named" in caplog.text


@pytest.mark.parametrize(("precision", "wanted"), [("fp16", True), ("fp32", False)])
def test_float16_is_fused_and_float32_is_what_was_compared_with_pytorch(
    tiny, tmp_path, sessions, monkeypatch, precision, wanted
):
    asked = []
    monkeypatch.setattr(gpu, "GpuSession", functools.partial(GpuSession, device="cpu"))
    monkeypatch.setattr(gpu, "fused_graph", lambda artifact, folder: asked.append(folder) or artifact.path(GRAPH))
    session = open_gpu(
        dataclasses.replace(tiny, manifest=dataclasses.replace(tiny.manifest, precision=precision)), CUDA, tmp_path
    )
    assert session.fused == bool(asked) == wanted
    assert all(folder.is_relative_to(tmp_path) for folder in asked)


@pytest.mark.parametrize("fault", ["refused", "numbers"])
def test_a_fused_graph_that_does_not_work_on_this_gpu_gives_way_to_the_exported_one(
    tiny, tmp_path, monkeypatch, caplog, fault
):
    other = export_tiny(ArtifactStore([tmp_path / "other"]), seed=1)  # a graph of other numbers
    opened = []

    def new_session(graph, providers):
        opened.append(graph)
        if graph == other.path(GRAPH) and fault == "refused":
            raise RuntimeError("no kernel for Attention")
        return Cuda(other if graph == other.path(GRAPH) else tiny)

    monkeypatch.setattr(gpu, "GpuSession", functools.partial(GpuSession, device="cpu"))
    monkeypatch.setattr(gpu, "new_session", new_session)
    monkeypatch.setattr(gpu, "fused_graph", lambda artifact, folder: other.path(GRAPH))
    session = open_gpu(tiny, CUDA, tmp_path, graphs=False, fused=True)
    assert opened == [other.path(GRAPH), tiny.path(GRAPH)]
    assert not session.fused
    reason = {"refused": "RuntimeError: no kernel for Attention", "numbers": "fused, a golden text has cosine"}[fault]
    assert f"tiny runs without fused attention: {reason}" in caplog.text


def test_the_built_in_runtime_is_opened_through_here():
    assert runtimes.ONNXRUNTIME.opener == "llmrec_plugin.runtime.session:open_model"
