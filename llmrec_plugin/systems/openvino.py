"""OpenVINO as a runtime: Intel's inference engine, on x86 and ARM CPUs, from the same ONNX file.

It has what ONNX Runtime has not: bfloat16 on CPUs with AMX or AVX-512 BF16. In float32 both are about as
fast; docs/how-to/runtimes.md has figures. Needs the extra ``openvino``.
"""

from __future__ import annotations

import contextlib
import ctypes
import queue
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmrec_plugin import Artifact, Batch, Placement, Runtime, hookimpl
from llmrec_plugin.errors import MissingExtraError, ProviderError

if TYPE_CHECKING:
    import numpy as np

# Not int8: OpenVINO 2026.4 cannot run a QuantizeLinear with one scale per row, which our int8 models need.
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's name of each precision."""


@hookimpl
def llmrec_register_runtimes() -> list[Runtime]:
    return [
        Runtime(
            name="openvino",
            opener="llmrec_plugin.systems.openvino:open_model",
            precisions=("fp32", "bf16"),
            description="OpenVINO on the CPU; bf16 where the CPU computes it",
        )
    ]


class _SignalStack(ctypes.Structure):
    """C's ``stack_t`` of Linux: where a thread runs its signal handlers."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Leaves this thread the stack for signal handlers that it had.

    A core of OpenVINO puts one of its own there, and the one before back when it goes. Of two cores that go in the
    order in which they came, the second leaves a stack that is no longer there, and the next signal that Python
    handles, a SIGTERM say, ends the process with a segmentation fault (OpenVINO 2026.4). A core whose stack is not the
    current one leaves it alone.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    library, before = ctypes.CDLL(None), _SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)


@signal_stack_kept()
def open_model(artifact: Artifact, *, device: str, placement: Placement) -> OpenVINOSession:
    """The model, compiled for the CPU; see `llmrec_plugin.inference.Opener`.

    Raises:
        MissingExtraError: The package openvino is not installed.
        ProviderError: A GPU was asked for, or the CPU does not compute in the model's precision.
    """
    if device not in ("auto", "cpu"):
        raise ProviderError(
            f"LLMREC_DEVICE={device} was asked for, but the runtime openvino computes on the CPU. "
            "Set LLMREC_DEVICE=cpu, or LLMREC_RUNTIME=onnxruntime for an NVIDIA GPU."
        )
    core = import_openvino().Core()
    precision = artifact.manifest.precision
    if precision == "bf16":
        check_bfloat16(artifact.manifest.model, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    compiled = core.compile_model(str(artifact.path("model.onnx")), "CPU", properties(precision, placement))
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != PRECISIONS[precision]:
        raise ProviderError(
            f"OpenVINO was asked for {PRECISIONS[precision]} and computes model {artifact.manifest.model!r} in {used}. "
            "Set LLMREC_RUNTIME=onnxruntime, or use a model of another precision."
        )
    return OpenVINOSession(compiled, artifact, placement)


class OpenVINOSession:
    """A compiled graph with an inference request for each caller.

    Args:
        compiled: The `openvino.CompiledModel`.
        artifact: What it is.
        placement: With what it was compiled.
    """

    adjustable = True

    def __init__(self, compiled: Any, artifact: Artifact, placement: Placement) -> None:
        self._manifest = artifact.manifest
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(placement.callers):
            self._idle.put(compiled.create_infer_request())
        self.provider = f"OpenVINO on the CPU in {PRECISIONS[artifact.manifest.precision]}"
        self.placement = placement

    def run(self, batch: Batch) -> np.ndarray:
        request = self._idle.get()
        try:
            # Inputs are read where they lie; outputs are copied, because the next run of the request overwrites them.
            results = request.infer(batch.inputs(self._manifest.inputs), share_inputs=True, share_outputs=False)
        except RuntimeError as exc:
            raise ProviderError(
                f"OpenVINO cannot run model {self._manifest.model!r} on a batch of shape {batch.ids.shape}: {exc}\n"
                "Set LLMREC_RUNTIME=onnxruntime."
            ) from exc
        finally:
            self._idle.put(request)
        vectors: np.ndarray = results[self._manifest.output]
        return vectors


def properties(precision: str, placement: Placement) -> dict[str, Any]:
    """The properties a model of `precision` is compiled with: one stream for each caller."""
    return {
        "NUM_STREAMS": str(placement.callers),
        "INFERENCE_NUM_THREADS": placement.threads * placement.callers,
        # Left alone, OpenVINO takes bfloat16 for float32 models on CPUs that have it.
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "EXECUTION_MODE_HINT": "ACCURACY" if precision == "fp32" else "PERFORMANCE",
        # Pinned threads of several worker processes would all sit on the same first cores.
        "ENABLE_CPU_PINNING": False,
    }


def check_bfloat16(model: str, capabilities: list[str]) -> None:
    """Refuses bfloat16 on a CPU that has no instructions for it.

    Args:
        model: Name of the model, for the message.
        capabilities: OpenVINO's OPTIMIZATION_CAPABILITIES of the CPU.

    Raises:
        ProviderError: They lack BF16.
    """
    if "BF16" not in capabilities:
        raise ProviderError(
            f"Model {model!r} has precision 'bf16', but this CPU does not compute it (OpenVINO lists "
            f"{', '.join(capabilities)}; expected BF16, as on CPUs with AMX or AVX-512 BF16). "
            "Use another machine, or a model of precision fp32 or int8."
        )


def import_openvino() -> Any:
    """The openvino module, imported late because it loads native libraries, and without its telemetry.

    On import openvino tells Google Analytics that it was imported, unless its telemetry package is not there. A feature
    job talks to nobody unasked.

    Raises:
        MissingExtraError: It is not installed.
    """
    unset = object()
    telemetry = sys.modules.get("openvino_telemetry", unset)
    if telemetry is unset:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how Python spells "cannot be imported"
    try:
        import openvino
    except ImportError as exc:
        raise MissingExtraError("openvino", "openvino", "Running a model in OpenVINO") from exc
    finally:
        if telemetry is unset:
            del sys.modules["openvino_telemetry"]
    return openvino
