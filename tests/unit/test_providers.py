"""What stands in the way of a GPU, and the proof that it computes."""

import ctypes
import re
from types import SimpleNamespace

import pytest

from llmrec_plugin.errors import ProviderError
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.runtime import providers
from llmrec_plugin.runtime.providers import (
    CPU,
    CUDA,
    TENSORRT,
    check_provider,
    engine_folder,
    gpu_obstacle,
    provider_options,
    shape_profiles,
    writable,
)


class Driver:
    """Stands in for libcuda.so.1."""

    def __init__(self, devices, status=0):
        self.devices, self.status = devices, status

    def cuInit(self, flags):  # noqa: N802, the driver's name
        return self.status

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.devices
        return 0


@pytest.fixture
def machine(monkeypatch):
    """A machine with this onnxruntime, these packages and these libraries."""

    def prepare(available=(TENSORRT, CUDA, CPU), packages=("onnxruntime-gpu",), **libraries):
        found = {name.replace("_", "."): library for name, library in libraries.items()}

        def load(name):
            for prefix, library in found.items():
                if name.startswith(prefix):
                    return library
            raise OSError(name)

        ort = SimpleNamespace(get_available_providers=lambda: list(available), __version__="1.31.1")
        monkeypatch.setattr(providers, "import_onnxruntime", lambda: ort)
        monkeypatch.setattr(providers, "_installed", lambda: set(packages))
        monkeypatch.setattr(ctypes, "CDLL", load)

    return prepare


def test_nothing_stands_in_the_way_of_a_gpu_with_its_driver(machine):
    machine(libcuda=Driver(1), libnvinfer=object())
    assert (gpu_obstacle(CUDA), gpu_obstacle(TENSORRT)) == (None, None)


@pytest.mark.parametrize(
    ("there", "obstacle"),
    [
        ({"available": (CPU,), "packages": ("onnxruntime",)}, r"a CPU build \(install llmrec-plugin\[gpu\]\)"),
        ({"available": (CPU,), "packages": ("onnxruntime", "onnxruntime-gpu")}, "both installed.*the CPU build won"),
        ({}, "libcuda.so.1 cannot be loaded"),
        ({"libcuda": Driver(0)}, "no usable GPU"),
        ({"libcuda": Driver(1, status=100)}, "no usable GPU"),
    ],
)
def test_every_obstacle_is_told(machine, there, obstacle):
    machine(**there)
    assert re.search(obstacle, gpu_obstacle(CUDA))


def test_tensorrt_needs_its_library(machine):
    machine(libcuda=Driver(1))
    assert gpu_obstacle(CUDA) is None
    assert "libnvinfer.so.10 cannot be loaded" in gpu_obstacle(TENSORRT)


def test_a_gpu_build_beside_a_cpu_build_is_used_if_it_won(machine):
    machine(packages=("onnxruntime", "onnxruntime-gpu"), libcuda=Driver(1))
    assert gpu_obstacle(CUDA) is None


# --- who computes


def session(provider, **nodes):
    """A session whose nodes of these types went to these providers."""
    parts = [
        SimpleNamespace(ep_name=place, get_nodes=lambda operator=operator: [SimpleNamespace(op_type=operator)])
        for operator, place in nodes.items()
    ]
    return SimpleNamespace(get_providers=lambda: [provider, CPU], get_provider_graph_assignment_info=lambda: parts)


def test_a_gpu_may_leave_shapes_to_the_cpu():
    check_provider(session(CUDA, MatMul=CUDA, Softmax=CUDA, Shape=CPU, Gather=CPU, Concat=CPU), CUDA, "model.onnx")


def test_tensorrt_may_leave_nodes_to_cuda():
    check_provider(session(TENSORRT, TRTKernel_graph=TENSORRT, Gelu=CUDA, Shape=CPU), TENSORRT, "model.onnx")


@pytest.mark.parametrize("operator", ["MatMul", "Attention", "MatMulIntegerToFloat", "LayerNormalization"])
def test_heavy_nodes_on_the_cpu_are_no_run_on_a_gpu(operator):
    with pytest.raises(ProviderError, match=rf"gave the CPU what takes the time: 1 x {operator}\. Use a precision"):
        check_provider(session(CUDA, Gemm=CUDA, **{operator: CPU}), CUDA, "model.onnx")


def test_a_graph_of_which_the_gpu_got_nothing_is_no_run_on_a_gpu():
    with pytest.raises(ProviderError, match="gave the CPU what takes the time: every node"):
        check_provider(session(CUDA, Gather=CPU, Where=CPU), CUDA, "model.onnx")


def test_onnxruntime_tells_where_the_nodes_of_a_session_went(tiny):
    """What `check_provider` reads exists in this ONNX Runtime, and names operators and providers as expected."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(providers.RECORD_ASSIGNMENT, "1")
    opened = onnxruntime.InferenceSession(str(tiny.path(GRAPH)), options, providers=[CPU])
    check_provider(opened, CPU, "model.onnx")
    parts = opened.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {CPU}
    assert {"Gather", "ReduceSum", "Div"} <= {node.op_type for part in parts for node in part.get_nodes()}
    with pytest.raises(ProviderError, match="every node"):
        check_provider(
            SimpleNamespace(get_providers=lambda: [CUDA], get_provider_graph_assignment_info=lambda: parts),
            CUDA,
            "model.onnx",
        )


# --- options


def test_cuda_keeps_float32_and_graphs_are_its_option():
    for graphs, entry in ((True, "1"), (False, "0")):
        (name, options), last = provider_options(CUDA, graphs=graphs)
        assert (name, last) == (CUDA, CPU)
        assert (options["use_tf32"], options["enable_cuda_graph"]) == ("0", entry)
    assert provider_options(CPU) == [CPU]


def test_tensorrt_keeps_its_engines_where_it_may_write_and_never_uses_cuda_graphs_of_ours(tmp_path):
    (name, options), (second, cuda), last = provider_options(TENSORRT, half=True, engines=tmp_path)
    assert (name, second, last) == (TENSORRT, CUDA, CPU)
    assert (options["trt_fp16_enable"], options["trt_engine_cache_path"]) == ("True", str(tmp_path))
    assert cuda["enable_cuda_graph"] == "0"
    (_, options), *_ = provider_options(TENSORRT)
    assert options == {"trt_fp16_enable": "False"}


def test_one_engine_covers_every_shape():
    profiles = shape_profiles(("input_ids", "attention_mask"), 8192, 256, 8)
    assert profiles == {
        "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1",
        "trt_profile_opt_shapes": "input_ids:64x128,attention_mask:64x128",
        "trt_profile_max_shapes": "input_ids:1024x256,attention_mask:1024x256",
    }


def test_what_is_built_is_kept_for_one_model_one_version_and_one_gpu(machine, monkeypatch, tmp_path):
    machine()
    here = engine_folder(tmp_path, "a" * 64)
    assert here.is_relative_to(tmp_path)
    assert engine_folder(tmp_path, "a" * 64) == here
    assert engine_folder(tmp_path, "b" * 64) != here
    monkeypatch.setattr(providers, "gpu_name", lambda: "another")
    assert engine_folder(tmp_path, "a" * 64) != here


def test_a_folder_that_cannot_be_made_is_told_and_not_used(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert not writable(tmp_path / "file" / "below")
    assert "not kept" in caplog.text
    assert writable(tmp_path / "new" / "below")
