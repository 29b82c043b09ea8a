"""Which device computes."""

import sys

import pytest

from llmrec_plugin.artifacts import GRAPH
from llmrec_plugin.errors import MissingExtraError, ProviderError
from llmrec_plugin.runtime import session
from llmrec_plugin.runtime.session import CPU, gpu_obstacle, open_session


@pytest.fixture
def without_cuda():
    if gpu_obstacle() is None:
        pytest.skip("CUDA is usable on this machine")


@pytest.mark.parametrize("spinning", [True, False])
def test_the_cpu_computes_when_asked_for(tiny, spinning):
    assert open_session(tiny.path(GRAPH), device="cpu", threads=2, spinning=spinning).get_providers() == [CPU]


@pytest.mark.usefixtures("without_cuda")
def test_auto_takes_the_cpu_where_there_is_no_gpu(tiny):
    assert open_session(tiny.path(GRAPH), device="auto").get_providers() == [CPU]


@pytest.mark.usefixtures("without_cuda")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_on_a_machine_without_one_is_an_error_with_a_remedy(tiny, device):
    with pytest.raises(ProviderError, match=f"LLMREC_DEVICE={device} was asked for") as caught:
        open_session(tiny.path(GRAPH), device=device)
    assert gpu_obstacle() in str(caught.value)
    assert "set LLMREC_DEVICE=auto to allow the CPU" in str(caught.value)


# ONNX Runtime's own warning, before it falls back.
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider':UserWarning")
@pytest.mark.usefixtures("without_cuda")
def test_a_silent_fall_back_of_onnxruntime_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(session, "gpu_obstacle", lambda provider: None)
    with pytest.raises(ProviderError, match=r"asked for CUDAExecutionProvider and chose CPU.*LLMREC_DEVICE=cpu"):
        open_session(tiny.path(GRAPH), device="auto")


def test_the_cpu_is_taken_without_a_look_for_a_gpu(tiny, monkeypatch):
    monkeypatch.setattr(session, "gpu_obstacle", lambda provider: pytest.fail("looked for a GPU"))
    assert open_session(tiny.path(GRAPH), device="cpu").get_providers() == [CPU]


def test_a_machine_without_onnxruntime_is_told_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r'pip install "llmrec-plugin\[cpu\]"'):
        open_session(tiny.path(GRAPH), device="cpu")
