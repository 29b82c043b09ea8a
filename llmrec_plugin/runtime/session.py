"""ONNX Runtime, the built-in runtime: provider choice without silent fall-back, thread placement.

Where threads, callers and spinning come from: `llmrec_plugin.runtime.calibration`. On a GPU batches go through
`llmrec_plugin.runtime.gpu`.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_plugin.artifacts import GRAPH, Artifact
from llmrec_plugin.errors import MissingExtraError, ProviderError
from llmrec_plugin.inference import Batch, Device, Placement, Runtime, Session
from llmrec_plugin.pipeline.batching import graph_inputs

if TYPE_CHECKING:
    import onnxruntime

ONNXRUNTIME = Runtime(
    name="onnxruntime",
    opener="llmrec_plugin.runtime.session:open_model",
    precisions=("fp32", "int8", "fp16"),
    description="ONNX Runtime on the CPU, or on an NVIDIA GPU by CUDA or TensorRT",
)

TENSORRT = "TensorrtExecutionProvider"
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3


def open_model(artifact: Artifact, *, device: Device, placement: Placement) -> Session:
    """A session of ONNX Runtime; see `llmrec_plugin.inference.Opener`."""
    session = open_session(
        artifact.path(GRAPH), device=device, threads=placement.threads, spinning=placement.spinning, model=artifact
    )
    if session.get_providers()[0] == CPU:
        return OnnxSession(session, artifact, placement)
    from llmrec_plugin.runtime.gpu import GpuSession  # needed only where there is a GPU

    return GpuSession(session, artifact)


class OnnxSession:
    """A graph on the CPU.

    Args:
        session: The open graph.
        artifact: What it is.
        placement: With what it was opened.
    """

    adjustable = True

    def __init__(self, session: onnxruntime.InferenceSession, artifact: Artifact, placement: Placement) -> None:
        self._session = session
        self._manifest = artifact.manifest
        self.provider = session.get_providers()[0]
        self.placement = placement

    def run(self, batch: Batch) -> np.ndarray:
        inputs = graph_inputs(self._manifest.inputs, batch.ids, batch.mask)
        (vectors,) = self._session.run([self._manifest.output], inputs)
        return np.asarray(vectors)


def open_session(
    graph: Path, *, device: Device, threads: int = 1, spinning: bool = False, model: Artifact | None = None
) -> onnxruntime.InferenceSession:
    """A bare session for a graph file.

    Args:
        graph: The ONNX file.
        device: ``cuda`` and ``tensorrt`` must work, ``auto`` takes CUDA where it works, ``cpu`` never looks for it.
        threads: Threads that work on one run, on the CPU.
        spinning: Whether they wait for the next by spinning.
        model: For TensorRT, which builds an engine for a model and keeps it beside its graph.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ProviderError: The device asked for is not usable, or ONNX Runtime fell back.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")

    wanted = _provider(device)
    session = ort.InferenceSession(str(graph), options, providers=_providers(wanted, model))
    used = session.get_providers()[0]
    if used != wanted:
        raise ProviderError(
            f"ONNX Runtime was asked for {wanted} and chose {used} for {graph.name}. "
            "Check the driver and CUDA libraries, or set LLMREC_DEVICE=cpu."
        )
    _open_sessions.add(session)
    return session


def _provider(device: Device) -> str:
    """The provider that is to compute on `device`."""
    if device == "cpu":
        return CPU
    wanted = TENSORRT if device == "tensorrt" else CUDA
    obstacle = gpu_obstacle(wanted)
    if obstacle and device != "auto":
        raise ProviderError(
            f"LLMREC_DEVICE={device} was asked for, but {obstacle}. Fix that, or set LLMREC_DEVICE=auto to allow the "
            "CPU."
        )
    return CPU if obstacle else wanted


def _providers(wanted: str, model: Artifact | None) -> list[Any]:
    """Providers in order of preference, with their options."""
    if wanted == CPU:
        return [CPU]
    # use_tf32=0: TensorFloat-32 keeps 10 bits of mantissa, which would break parity with the CPU.
    cuda = (CUDA, {"use_tf32": "0"})
    if wanted == CUDA:
        return [cuda, CPU]
    half = model is not None and model.manifest.precision == "fp16"
    options = {"trt_fp16_enable": str(half)}
    if model is not None:
        options |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(model.folder / "tensorrt")}
    return [(TENSORRT, options), cuda, CPU]


_open_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


def _keep_for_ever() -> None:
    """Lets no inherited session be destroyed: that would wait for threads which a forked child does not have."""
    for session in _open_sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_keep_for_ever)


def import_onnxruntime():  # type: ignore[no-untyped-def]  # a module has no useful type here
    """The onnxruntime module, imported late because it loads native libraries.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise MissingExtraError("onnxruntime", "cpu", "Running an exported model") from exc
    return onnxruntime


def gpu_obstacle(provider: str = CUDA) -> str | None:
    """Why `provider` cannot be used here, or None if it can.

    ONNX Runtime lists CUDA and TensorRT as available on machines without a GPU, so the driver is asked first.
    """
    if provider not in import_onnxruntime().get_available_providers():
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
