"""OpenVINO gives the numbers of ONNX Runtime, or nothing."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from encoding import TEXTS, check_same, rehash
from samples import settings
from tiny import export_tiny

from llmrec_plugin import Batch, Placement
from llmrec_plugin.artifacts import ArtifactStore, read_artifact, sha256_file
from llmrec_plugin.errors import MissingExtraError, ParityError, ProviderError
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.pipeline.batching import pad
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.systems import openvino as system

PLACEMENT = Placement(threads=1, callers=2, spinning=False, token_budget=512)


def test_a_machine_without_openvino_is_told_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r'pip install "llmrec-plugin\[openvino\]"'):
        system.open_model(tiny, device="cpu", placement=PLACEMENT)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_is_refused_rather_than_ignored(tiny, device):
    with pytest.raises(ProviderError, match=rf"LLMREC_DEVICE={device} .* Set LLMREC_DEVICE=cpu"):
        system.open_model(tiny, device=device, placement=PLACEMENT)


def test_bfloat16_needs_a_cpu_that_computes_it():
    system.check_bfloat16("tiny", ["FP32", "BF16", "INT8"])
    with pytest.raises(ProviderError, match=r"'tiny' has precision 'bf16'.*lists FP32, INT8; expected BF16.*Use anoth"):
        system.check_bfloat16("tiny", ["FP32", "INT8"])


def test_a_model_is_compiled_in_its_own_precision_with_a_stream_for_each_caller():
    placement = Placement(threads=3, callers=2, spinning=False, token_budget=512)
    got = system.properties("fp32", placement)
    assert (got["NUM_STREAMS"], got["INFERENCE_NUM_THREADS"]) == ("2", 6)
    assert (got["INFERENCE_PRECISION_HINT"], got["EXECUTION_MODE_HINT"]) == ("f32", "ACCURACY")
    assert system.properties("bf16", placement)["INFERENCE_PRECISION_HINT"] == "bf16"


# --- with the engine


@pytest.fixture(scope="module")
def capabilities():
    if importlib.util.find_spec("openvino") is None:  # importing it in the plain way would report to Google
        pytest.skip("needs the extra 'openvino'")
    with system.signal_stack_kept():
        return system.import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture
def engine(capabilities, tmp_path):
    return settings(tmp_path, runtime="openvino")


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory):
    """What ONNX Runtime gives."""
    return Encoder(tiny, settings(tmp_path_factory.mktemp("unused"))).encode(TEXTS)[0]


@pytest.mark.parametrize("profile", ["batch", "online"])
def test_it_gives_the_vectors_of_onnxruntime(tiny, engine, expected, profile):
    encoder = Encoder(tiny, engine, profile)
    assert (encoder.runtime.name, encoder.provider) == ("openvino", "OpenVINO on the CPU in f32")
    check_same(encoder.encode(TEXTS)[0], expected)


@pytest.mark.parametrize("token_budget", [1, 33, 100_000])
def test_neighbours_do_not_change_a_vector(tiny, engine, token_budget):
    encoder = Encoder(tiny, engine)
    alone = np.concatenate([encoder.encode([text])[0] for text in TEXTS[:60]])
    check_same(encoder.encode(TEXTS[:60], token_budget=token_budget)[0], alone)


@pytest.mark.parametrize(("threads", "callers"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_callers_at_once_get_their_own_vectors(tiny, capabilities, expected, threads, callers):
    placement = Placement(threads=threads, callers=callers, spinning=False, token_budget=512)
    session = system.open_model(tiny, device="auto", placement=placement)
    words = [3 + number % 30 for number in range(200)]
    batches = [Batch(*pad([[2, word, 3], [2, word + 1, word, 3]], 0)) for word in words]
    want = [session.run(batch) for batch in batches]
    with ThreadPoolExecutor(5) as pool:  # more than have a request of their own
        got = list(pool.map(session.run, batches))
    np.testing.assert_array_equal(got, want)


def test_a_result_outlives_the_next_run(tiny, capabilities):
    session = system.open_model(
        tiny, device="cpu", placement=Placement(threads=1, callers=1, spinning=False, token_budget=512)
    )
    first = session.run(Batch(*pad([[2, 4, 3]], 0)))
    kept = first.copy()
    session.run(Batch(*pad([[2, 9, 3]], 0)))
    np.testing.assert_array_equal(first, kept)


@pytest.fixture
def copy(tiny, tmp_path):
    """A folder with a copy of `tiny` that a test may change."""
    return shutil.copytree(tiny.folder, tmp_path / "copy")


def test_weights_beside_the_graph_are_read(copy, engine, expected):
    model = onnx.load(copy / GRAPH)
    onnx.save(
        model,
        copy / GRAPH,
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
        convert_attribute=False,
    )
    values = json.loads((copy / "manifest.json").read_text())
    values["files"]["model.onnx_data"] = sha256_file(copy / "model.onnx_data")
    (copy / "manifest.json").write_text(json.dumps(values))
    rehash(copy)
    assert (copy / GRAPH).stat().st_size < (copy / "model.onnx_data").stat().st_size + 2000
    check_same(Encoder(read_artifact(copy), engine).encode(TEXTS)[0], expected)


def test_another_graph_is_found_by_its_golden_texts(copy, engine, tmp_path):
    shutil.copy(export_tiny(ArtifactStore([tmp_path / "other"]), seed=1).path(GRAPH), copy / GRAPH)
    rehash(copy)
    with pytest.raises(ParityError, match="in openvino on OpenVINO on the CPU in f32"):
        Encoder(read_artifact(copy), engine)


def test_a_graph_it_cannot_read_is_an_error_that_names_the_runtime(copy, engine):
    (copy / GRAPH).write_bytes(b"no graph")
    rehash(copy)
    with pytest.raises(ProviderError, match=r"(?s)Runtime 'openvino' .* cannot open model 'tiny'.*Set LLMREC_RUNTIME"):
        Encoder(read_artifact(copy), engine)


def test_a_batch_it_cannot_run_is_an_error_that_names_the_model(tiny, capabilities):
    session = system.open_model(tiny, device="cpu", placement=PLACEMENT)
    ids, mask = pad([[2, 4, 3]], 0)
    with pytest.raises(ProviderError, match=r"OpenVINO cannot run model 'tiny' on a batch of shape \(1, 3\)"):
        session.run(Batch(ids, mask[:, :2]))
    assert session.run(Batch(ids, mask)).shape == (1, 8)  # the request is usable again


def test_a_bfloat16_model_runs_where_the_cpu_computes_it_and_nowhere_else(copy, engine, capabilities, expected):
    rehash(copy, precision="bf16")
    if "BF16" in capabilities:
        vectors, _ = Encoder(read_artifact(copy), engine).encode(TEXTS)
        assert np.einsum("nd,nd->n", vectors, expected).min() >= 0.999
    else:
        with pytest.raises(ProviderError, match="this CPU does not compute it"):
            Encoder(read_artifact(copy), engine)


def test_importing_it_reports_to_nobody(capabilities, tmp_path):
    """With a telemetry package that would shout; openvino's own sends to Google Analytics on import."""
    (tmp_path / "openvino_telemetry.py").write_text("print('telemetry was loaded')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from llmrec_plugin.systems.openvino import import_openvino\n"
        "print(import_openvino().__name__, 'openvino_telemetry' in sys.modules)\n"
        "import openvino_telemetry"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["openvino False", "telemetry was loaded"]


FORK = """
import os, sys
import numpy as np
from pathlib import Path
from llmrec_plugin import Placement, Batch
from llmrec_plugin.artifacts import read_artifact
from llmrec_plugin.systems.openvino import open_model

artifact = read_artifact(Path(sys.argv[1]))
placement = Placement(threads=2, callers=1, spinning=False, token_budget=512)
batch = Batch(np.array([[2, 4, 3]]), np.array([[1, 1, 1]]))
before = open_model(artifact, device="cpu", placement=placement).run(batch)
child = os.fork()
if child == 0:
    after = open_model(artifact, device="cpu", placement=placement).run(batch)
    os._exit(0 if np.array_equal(before, after) else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


SIGNAL = """
import faulthandler, gc, signal, sys
from pathlib import Path
from llmrec_plugin import Placement
from llmrec_plugin.artifacts import read_artifact
from llmrec_plugin.systems.openvino import open_model

faulthandler.enable()
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
artifact = read_artifact(Path(sys.argv[1]))
placement = Placement(threads=1, callers=1, spinning=False, token_budget=512)
sessions = [open_model(artifact, device="cpu", placement=placement) for _ in range(2)]
while sessions:
    sessions.pop(0)
    gc.collect()
signal.raise_signal(signal.SIGTERM)
"""


def test_a_process_that_let_two_models_go_still_handles_signals(tiny, capabilities):
    done = subprocess.run([sys.executable, "-c", SIGNAL, str(tiny.folder)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_process_opens_and_runs_a_model_of_its_own(tiny, capabilities):
    command = [sys.executable, "-c", FORK, str(tiny.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "0\n", done.stderr
