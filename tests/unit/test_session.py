"""Which device computes."""

import dataclasses
import os
import subprocess
import sys

import pytest
from samples import settings

from llmrec_plugin.errors import MissingExtraError, ProviderError
from llmrec_plugin.inference import Placement
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.runtime import gpu, providers, runtimes
from llmrec_plugin.runtime.providers import CPU, CUDA, TENSORRT, gpu_obstacle
from llmrec_plugin.runtime.session import ONNXRUNTIME, OnnxSession, new_session, open_model, open_session

PLACEMENT = Placement(threads=1, callers=1, spinning=False, token_budget=512)
# ONNX Runtime's own warning where it is a CPU build, before it falls back.
IGNORE_WARNING = pytest.mark.filterwarnings("ignore:Specified provider '.*ExecutionProvider':UserWarning")


@pytest.fixture
def without_cuda():
    if gpu_obstacle() is None:
        pytest.skip("CUDA is usable on this machine")


@pytest.mark.parametrize("spinning", [True, False])
def test_the_cpu_computes_when_asked_for(tiny, spinning):
    assert open_session(tiny.path(GRAPH), device="cpu", threads=2, spinning=spinning).get_providers() == [CPU]


@pytest.mark.usefixtures("without_cuda")
def test_auto_takes_the_cpu_where_there_is_no_gpu_and_says_why(tiny, caplog):
    with caplog.at_level("INFO"):
        session = open_model(tiny, device="auto", placement=PLACEMENT)
    assert (type(session), session.provider) == (OnnxSession, CPU)
    assert f"LLMREC_DEVICE=auto takes the CPU: {gpu_obstacle()}." in caplog.messages


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize(("device", "provider"), [("cuda", CUDA), ("tensorrt", TENSORRT)])
def test_a_gpu_on_a_machine_without_one_is_an_error_with_a_remedy(tiny, device, provider):
    with pytest.raises(ProviderError, match=f"LLMREC_DEVICE={device} was asked for") as caught:
        open_model(tiny, device=device, placement=PLACEMENT)
    assert gpu_obstacle(provider) in str(caught.value)
    assert "set LLMREC_DEVICE=auto to allow the CPU" in str(caught.value)


@IGNORE_WARNING
@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("device", ["auto", "cuda", "tensorrt"])
def test_a_silent_fall_back_of_onnxruntime_is_an_error_on_every_device(tiny, tmp_path, monkeypatch, device):
    monkeypatch.setenv("LLMREC_HOME", str(tmp_path))
    monkeypatch.setattr(providers, "gpu_obstacle", lambda provider: None)
    wanted = TENSORRT if device == "tensorrt" else CUDA
    # A GPU build without TensorRT's libraries refuses it by itself.
    message = rf"asked for {wanted} and chose CPU.*LLMREC_DEVICE=cpu|Please install TensorRT libraries"
    with pytest.raises(RuntimeError, match=message):
        open_session(tiny.path(GRAPH), device=device)
    with pytest.raises(ProviderError, match=message):
        runtimes.open_session(ONNXRUNTIME, tiny, settings(tmp_path, device=device), PLACEMENT)


@IGNORE_WARNING
@pytest.mark.usefixtures("without_cuda")
def test_what_onnxruntime_says_of_missing_libraries_is_part_of_the_error(tiny, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcublas.so.13:\n no such file"))
    with pytest.raises(ProviderError, match=r"model\.onnx\. Failed to load libcublas\.so\.13: no such file Check"):
        new_session(tiny.path(GRAPH), [CUDA, CPU])


def test_the_cpu_is_taken_without_a_look_for_a_gpu(tiny, monkeypatch):
    monkeypatch.setattr(providers, "gpu_obstacle", lambda provider: pytest.fail("looked for a GPU"))
    assert open_model(tiny, device="cpu", placement=PLACEMENT).provider == CPU


def test_auto_leaves_int8_on_the_cpu(tiny, monkeypatch):
    monkeypatch.setattr(providers, "gpu_obstacle", lambda provider: None)
    int8 = dataclasses.replace(tiny, manifest=dataclasses.replace(tiny.manifest, precision="int8"))
    assert open_model(int8, device="auto", placement=PLACEMENT).provider == CPU


def test_a_gpu_session_gets_its_cache_below_the_cache_folder(tiny, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path))
    monkeypatch.setattr(providers, "gpu_obstacle", lambda provider: None)
    monkeypatch.setattr(gpu, "open_gpu", lambda *arguments: asked.append(arguments))
    open_model(tiny, device="cuda", placement=PLACEMENT)
    assert asked == [(tiny, CUDA, tmp_path)]


def test_a_machine_without_onnxruntime_is_told_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r'pip install "llmrec-plugin\[cpu\]"'):
        open_session(tiny.path(GRAPH), device="cpu")


OPEN = """
import sys
from pathlib import Path
from llmrec_plugin.runtime.session import open_session
open_session(Path(sys.argv[1]), device="cpu")
"""


def test_onnx_runtime_notes_nothing_of_what_a_process_does(tiny, tmp_path):
    """By default it keeps an id of the machine and what to send to Microsoft in the user's folder."""

    def written(**environ):
        home = tmp_path / f"home{len(environ)}"
        home.mkdir()
        kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "TMPDIR")}
        kept |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), **environ}
        subprocess.run([sys.executable, "-c", OPEN, str(tiny.path(GRAPH))], env=kept, check=True)
        return [path for path in home.rglob("*") if path.is_file()]

    assert written() == []
    if not written(ORT_DISABLE_TELEMETRY="0"):
        pytest.skip("this build of ONNX Runtime has no telemetry")
