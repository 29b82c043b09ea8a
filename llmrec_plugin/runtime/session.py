"""ONNX Runtime sessions: provider choice without silent fall-back, thread placement.

Two profiles of one graph, both with results equal to the last bit (measured on 2 cores):

* ``batch``: one thread per `run`, called from several threads, no spinning: the best throughput;
* ``online``: all threads in one `run`: the shortest single request. No spinning here, either: threads that spin
  after a run take the CPU from the server's other threads and workers (docs/benchmarks/on-demand.md).
"""

from __future__ import annotations

import ctypes
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmrec_plugin.errors import MissingExtraError, ProviderError
from llmrec_plugin.settings import Device

if TYPE_CHECKING:
    import onnxruntime

Profile = Literal["batch", "online"]

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
_ERRORS_ONLY = 3


def open_session(graph: Path, *, device: Device, profile: Profile, threads: int) -> onnxruntime.InferenceSession:
    """A session for the graph file.

    Args:
        graph: The ONNX file.
        device: ``cuda`` must work, ``auto`` takes CUDA where it works, ``cpu`` never looks for it.
        profile: Thread placement, see the module's docstring.
        threads: CPU threads the process may use.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ProviderError: The device is ``cuda`` and CUDA is not usable, or ONNX Runtime fell back.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = 1 if profile == "batch" else threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    obstacle = "the device is 'cpu'" if device == "cpu" else cuda_obstacle()
    if obstacle and device == "cuda":
        raise ProviderError(
            f"LLMREC_DEVICE=cuda was asked for, but {obstacle}. Fix that, or set LLMREC_DEVICE=auto to allow the CPU."
        )
    # use_tf32=0: TensorFloat-32 keeps 10 bits of mantissa, which would break parity with the CPU.
    providers = [CPU] if obstacle else [(CUDA, {"use_tf32": "0"}), CPU]
    session = ort.InferenceSession(str(graph), options, providers=providers)
    wanted, used = (CPU if obstacle else CUDA), session.get_providers()[0]
    if used != wanted:
        raise ProviderError(
            f"ONNX Runtime was asked for {wanted} and chose {used} for {graph.name}. "
            "Check the driver and CUDA libraries, or set LLMREC_DEVICE=cpu."
        )
    _open_sessions.add(session)
    return session


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


def cuda_obstacle() -> str | None:
    """Why CUDA cannot be used here, or None if it can.

    ONNX Runtime lists CUDA as available on machines without a GPU, so the driver is asked first.
    """
    if CUDA not in import_onnxruntime().get_available_providers():
        return "this onnxruntime is a CPU build (install llmrec-plugin[gpu])"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver library libcuda.so.1 cannot be loaded"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver reports no usable GPU"
    return None
