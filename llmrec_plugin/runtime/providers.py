"""Execution providers of ONNX Runtime: which one is to compute, with which options, and the proof that it does.

ONNX Runtime never fails for want of a GPU. It lists CUDA as available without one, drops the provider when a library
of CUDA is missing, and gives single nodes to the CPU when the GPU has no kernel for them. Each of these would pass a
run on the CPU off as one on the GPU, so each is looked for here.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import io
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

from llmrec_plugin.errors import MissingExtraError, ProviderError
from llmrec_plugin.inference import Device
from llmrec_plugin.specs import digest

logger = logging.getLogger(__name__)

TENSORRT = "TensorrtExecutionProvider"
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"

RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""The session option without which ONNX Runtime does not tell which node went where."""

# What an encoder computes, as opposed to the shapes and masks that ONNX Runtime rightly leaves to the CPU: of any
# encoder most of the time goes into these. `session.disable_cpu_ep_fallback` would refuse the shapes, too.
_HEAVY = frozenset(
    """
    Attention BiasGelu DynamicQuantizeLinear DynamicQuantizeMatMul EmbedLayerNormalization Erf FastGelu FusedMatMul
    Gelu Gemm GroupQueryAttention LayerNormalization MatMul MatMulInteger MatMulIntegerToFloat MatMulNBits
    MultiHeadAttention PackedAttention PackedMultiHeadAttention QAttention QuantizeLinear RotaryEmbedding
    SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization Softmax
    """.split()
)


def import_onnxruntime() -> Any:
    """The onnxruntime module, imported late because it loads native libraries, and without its telemetry.

    A program that imported it before this package, and wants none either, sets ``ORT_DISABLE_TELEMETRY=1`` itself; here
    most of what is sent can still be turned off.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingExtraError("onnxruntime", "cpu", "Running an exported model") from exc
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def choose_provider(device: Device) -> str:
    """The provider that is to compute on `device`.

    Raises:
        ProviderError: ``cuda`` or ``tensorrt`` is asked for and cannot be used here.
    """
    if device == "cpu":
        return CPU
    wanted = TENSORRT if device == "tensorrt" else CUDA
    obstacle = gpu_obstacle(wanted)
    if obstacle and device != "auto":
        raise ProviderError(
            f"LLMREC_DEVICE={device} was asked for, but {obstacle}. Fix that, or set LLMREC_DEVICE=auto to allow the "
            "CPU."
        )
    if obstacle:
        logger.info("LLMREC_DEVICE=auto takes the CPU: %s.", obstacle)
        return CPU
    return wanted


def gpu_obstacle(provider: str = CUDA) -> str | None:
    """Why `provider` cannot be used here, or None if it can.

    ONNX Runtime lists CUDA and TensorRT as available on machines without a GPU, so the driver is asked first.
    """
    if provider not in import_onnxruntime().get_available_providers():
        if {"onnxruntime", "onnxruntime-gpu"} <= _installed():
            return (
                "onnxruntime and onnxruntime-gpu are both installed, own the same files, and the CPU build won "
                "(pip uninstall both, then install llmrec-plugin[gpu])"
            )
        return "this onnxruntime is a CPU build (install llmrec-plugin[gpu])"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver library libcuda.so.1 cannot be loaded"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver reports no usable GPU"
    if provider == TENSORRT:
        try:
            ctypes.CDLL("libnvinfer.so.10")
        except OSError:
            return "TensorRT's library libnvinfer.so.10 cannot be loaded (pip install tensorrt-cu13)"
    return None


def provider_options(
    wanted: str,
    *,
    half: bool = False,
    engines: Path | None = None,
    profiles: dict[str, str] | None = None,
    graphs: bool = False,
) -> list[Any]:
    """The providers for a session, in order of preference, with their options.

    Args:
        wanted: The provider that is to compute.
        half: Whether TensorRT may compute in float16; CUDA computes in the types of the graph.
        engines: Folder where TensorRT keeps the engines that it built; None: it builds them in every process.
        profiles: TensorRT's options from `shape_profiles`.
        graphs: Whether CUDA captures its kernels as graphs, see `llmrec_plugin.runtime.gpu`.
    """
    if wanted == CPU:
        return [CPU]
    cuda = {
        # TensorFloat-32 keeps 10 bits of mantissa, which would break parity with the CPU.
        "use_tf32": "0",
        # Regions as large as asked for: doubling them, as is the default, can take half of the memory for nothing.
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": str(int(graphs)),
    }
    if wanted == CUDA:
        return [(CUDA, cuda), CPU]
    tensorrt = {"trt_fp16_enable": str(half), **(profiles or {})}
    if engines is not None:
        tensorrt |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(engines),
        }
    return [(TENSORRT, tensorrt), (CUDA, cuda), CPU]


def shape_profiles(inputs: tuple[str, ...], token_budget: int, longest: int, step: int) -> dict[str, str]:
    """TensorRT's options for one engine over all shapes; without them it builds again whenever a shape is new.

    An engine is fastest at the middle of the three shapes; that is a full batch of half the length.

    Args:
        inputs: The graph's inputs, each (rows, length).
        token_budget: Largest rows x length.
        longest: Longest text in tokens.
        step: What lengths are multiples of, but for `longest`.
    """
    # Rows and length are bounded each for itself, so the largest shape has the rows of the shortest texts.
    most = max(token_budget // step, 1)
    half = max(longest // 2 // step * step, 1)
    shapes = {"min": (1, 1), "opt": (max(token_budget // half, 1), half), "max": (most, longest)}
    return {
        f"trt_profile_{kind}_shapes": ",".join(f"{name}:{rows}x{length}" for name in inputs)
        for kind, (rows, length) in shapes.items()
    }


def preload_cuda() -> str:
    """Loads the CUDA libraries that pip installed, which the loader does not find by itself.

    Returns:
        What ONNX Runtime said about libraries that could not be loaded; empty if all is well.
    """
    preload = getattr(import_onnxruntime(), "preload_dlls", None)  # since 1.21
    if preload is None:
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as said:  # it prints, and raises nothing
        preload()
    return " ".join(said.getvalue().split())


def check_provider(session: Any, wanted: str, graph: str, hint: str = "") -> None:
    """Refuses a session in which something else than `wanted` computes.

    Args:
        session: An open session with `RECORD_ASSIGNMENT` set.
        wanted: The provider that is to compute.
        graph: Name of the graph, for the message.
        hint: What is known about the cause.

    Raises:
        ProviderError: The provider was dropped, or the CPU got nodes that are most of the work.
    """
    used = session.get_providers()[0]
    if used != wanted:
        raise ProviderError(
            f"ONNX Runtime was asked for {wanted} and chose {used} for {graph}. {hint + ' ' if hint else ''}"
            "Check the driver and CUDA libraries, or set LLMREC_DEVICE=cpu."
        )
    if wanted == CPU:
        return
    parts = session.get_provider_graph_assignment_info()
    placed = [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]
    heavy = Counter(operator for provider, operator in placed if provider == CPU and operator in _HEAVY)
    if heavy or all(provider == CPU for provider, _ in placed):
        listed = ", ".join(f"{count} x {operator}" for operator, count in sorted(heavy.items())) or "every node"
        raise ProviderError(
            f"ONNX Runtime opened {graph} with {wanted}, but gave the CPU what takes the time: {listed}. "
            "Use a precision that the GPU has kernels for, such as fp16, or set LLMREC_DEVICE=cpu."
        )


def engine_folder(cache: Path, artifact_id: str) -> Path:
    """Where what is built for this model, this ONNX Runtime and this GPU is kept.

    Engines of TensorRT and fused graphs hold for the versions that built them and are not found by any other.
    """
    versions = [import_onnxruntime().__version__, _tensorrt_version(), gpu_name()]
    return cache / "gpu" / f"{artifact_id[:16]}-{digest(versions)[:16]}"


def writable(folder: Path) -> bool:
    """Makes the folder; False, with a line in the log, where that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        logger.warning("What is built for the GPU is not kept, and built again by every process: %s", exc)
        return False
    return os.access(folder, os.W_OK)


def gpu_name() -> str:
    """Name of the first GPU as its driver tells it; empty without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    name = ctypes.create_string_buffer(128)
    device = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return ""
    return name.value.decode() if driver.cuDeviceGetName(name, len(name), device) == 0 else ""


def _tensorrt_version() -> str:
    try:
        return str(ctypes.CDLL("libnvinfer.so.10").getInferLibVersion())
    except (OSError, AttributeError):
        return ""


def _installed() -> set[str]:
    names = ("onnxruntime", "onnxruntime-gpu")
    return {name for name in names if any(importlib.metadata.distributions(name=name))}
