"""ONNX Runtime, the built-in runtime: provider choice without silent fall-back, thread placement.

Where threads, callers and spinning come from: `llmrec_plugin.runtime.calibration`. Which provider computes, and the
proof that it does: `llmrec_plugin.runtime.providers`. On a GPU batches go through `llmrec_plugin.runtime.gpu`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.inference import Batch, Device, Placement, Runtime, Session
from llmrec_plugin.manifests import GRAPH
from llmrec_plugin.pipeline.batching import graph_inputs
from llmrec_plugin.runtime.providers import (
    CPU,
    RECORD_ASSIGNMENT,
    check_provider,
    choose_provider,
    import_onnxruntime,
    preload_cuda,
    provider_options,
)
from llmrec_plugin.settings import load_settings

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

ONNXRUNTIME = Runtime(
    name="onnxruntime",
    opener="llmrec_plugin.runtime.session:open_model",
    precisions=("fp32", "int8", "fp16"),
    description="ONNX Runtime on the CPU, or on an NVIDIA GPU by CUDA or TensorRT",
)

_ON_GPU = ("fp32", "fp16")
"""Precisions that ``LLMREC_DEVICE=auto`` runs on a GPU: for int8 as it is exported, CUDA lacks kernels."""
_ERRORS_ONLY = 3
SPIN_MICROSECONDS = 1_000
"""How long a thread that spins does so: enough for the gaps within a run and between runs that follow each other. By
default ONNX Runtime's go on for 50 ms and more after a run."""


def open_model(artifact: Artifact, *, device: Device, placement: Placement) -> Session:
    """A session of ONNX Runtime; see `llmrec_plugin.inference.Opener`."""
    precision = artifact.manifest.precision
    if device == "auto" and precision not in _ON_GPU:
        logger.debug("%s runs on the CPU: it is %s, and LLMREC_DEVICE=auto.", artifact.manifest.model, precision)
        device = "cpu"
    provider = choose_provider(device)
    if provider == CPU:
        options = [CPU]
        session = new_session(artifact.path(GRAPH), options, threads=placement.threads, spinning=placement.spinning)
        return OnnxSession(session, artifact, placement)
    from llmrec_plugin.runtime.gpu import open_gpu  # needed only where there is a GPU

    return open_gpu(artifact, provider, load_settings().cache_folder)


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
    graph: Path, *, device: Device, threads: int = 1, spinning: bool = False
) -> onnxruntime.InferenceSession:
    """A bare session for a graph file.

    Args:
        graph: The ONNX file.
        device: ``cuda`` and ``tensorrt`` must work, ``auto`` takes CUDA where it works, ``cpu`` never looks for it.
        threads: Threads that work on one run, on the CPU.
        spinning: Whether they spin for a millisecond before they wait.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ProviderError: The device asked for is not usable, or ONNX Runtime fell back.
    """
    return new_session(graph, provider_options(choose_provider(device)), threads=threads, spinning=spinning)


def new_session(
    graph: Path, providers: list[Any], *, threads: int = 1, spinning: bool = False
) -> onnxruntime.InferenceSession:
    """A bare session with these providers, of which the first computes.

    Args:
        graph: The ONNX file.
        providers: From `llmrec_plugin.runtime.providers.provider_options`.
        threads: Threads that work on one run, on the CPU.
        spinning: Whether they spin for a millisecond before they wait.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ProviderError: ONNX Runtime fell back to the CPU.
        RuntimeError: ONNX Runtime refuses the graph or an option.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if spinning:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    missing = ""
    if wanted != CPU:
        options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
        missing = preload_cuda()
    # enable_fallback=0: what a provider refuses must be an error, not another provider and a line on the screen.
    session = ort.InferenceSession(str(graph), options, providers=providers, enable_fallback=0)
    check_provider(session, wanted, graph.name, missing)
    _open_sessions.add(session)
    return session


_open_sessions: weakref.WeakSet[Any] = weakref.WeakSet()


def _keep_for_ever() -> None:
    """Lets no inherited session be destroyed: that would wait for threads which a forked child does not have."""
    for session in _open_sessions:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_keep_for_ever)
