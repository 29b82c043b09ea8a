"""ONNX Runtime on a GPU: few shapes, buffers on the device, CUDA graphs, one thread.

A GPU is idle between kernels when every batch has a shape of its own. So batches are padded to few shapes
(`llmrec_plugin.pipeline.buckets`). A shape that keeps coming gets inputs and output of its own on the device (IO
binding), and where the provider can, its kernels are captured as a CUDA graph, which replays them at those addresses
without launching each. What ONNX Runtime asks of whoever captures decides the rest:

* A captured graph belongs to the thread that captured it, and while one is captured no other thread may allocate or
  copy on the device. So all sessions of a process share one thread for everything they do there. Callers pad their
  batches themselves, so the next batch is ready when the device is.
* A graph reads and writes at the addresses it was captured with. So the buffers of a captured shape stay as long as the
  session does, and there are at most `SHAPES_KEPT`; other shapes come and go, without a graph.
* Capturing runs the batch three times more, so it waits until a shape has come `KEPT_AFTER` times.

Written against ONNX Runtime 1.31 for a GPU, and tested on the CPU, where binding, padding and book-keeping are the
same. **It has not run on a GPU yet.**
"""

from __future__ import annotations

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.errors import ProviderError
from llmrec_plugin.inference import Batch, Placement
from llmrec_plugin.manifests import GOLDEN, GRAPH, TOKENIZER, Manifest
from llmrec_plugin.pipeline.batching import graph_inputs, pad
from llmrec_plugin.pipeline.buckets import bucket
from llmrec_plugin.runtime.encoder import GOLDEN_MIN_COSINE_REDUCED
from llmrec_plugin.runtime.fusion import fused_graph
from llmrec_plugin.runtime.providers import CUDA, TENSORRT, engine_folder, provider_options, shape_profiles, writable
from llmrec_plugin.runtime.session import new_session

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

TOKEN_BUDGET = 32_768
TENSORRT_TOKEN_BUDGET = 8_192
"""Of the shapes that one engine is built for, the largest has so many rows of so many tokens *each*: it reserves the
memory for the longest text times the rows of the shortest."""
SHAPE_STEP = 8
"""Tensor cores take float16 in eights. Lengths in steps of 16 would pad twice as much."""
SHAPES_KEPT = 64
"""A job of one token budget uses about 20 shapes often, one for each length, and others once."""
KEPT_AFTER = 3
NO_GRAPH = -1
"""The id with which ONNX Runtime neither captures nor replays."""
REPLAY_TOLERANCE = 1e-3
"""By how much of the largest component a replayed vector may differ: kernels are chosen anew when captured."""

T = TypeVar("T")
OpenSession = Callable[[bool], "onnxruntime.InferenceSession"]
"""Opens the graph, with CUDA graphs or without."""


def open_gpu(
    artifact: Artifact,
    provider: str,
    cache: Path,
    *,
    graphs: bool = True,
    fused: bool | None = None,
    token_budget: int | None = None,
) -> GpuSession:
    """The model on a GPU.

    Args:
        artifact: The exported model.
        provider: CUDA or TensorRT.
        cache: Folder for what is built for this GPU.
        graphs: Whether CUDA graphs are used where ONNX Runtime allows them.
        fused: Whether attention is fused (CUDA only); default: for fp16. What fp32 computes is what was compared with
            PyTorch, node by node.
        token_budget: Largest rows x length of a batch; default: that of the provider.

    Raises:
        ProviderError: The GPU is not what computes.
    """
    manifest = artifact.manifest
    folder = engine_folder(cache, artifact.id)
    half = manifest.precision == "fp16"
    budget = token_budget or (TENSORRT_TOKEN_BUDGET if provider == TENSORRT else TOKEN_BUDGET)
    engines = folder if provider == TENSORRT and writable(folder) else None
    profiles = shape_profiles(manifest.inputs, budget, manifest.max_tokens, SHAPE_STEP)

    def open_graph(graph: Path, *, fused: bool) -> GpuSession:
        def open_session(with_graphs: bool) -> onnxruntime.InferenceSession:
            providers = provider_options(provider, half=half, engines=engines, profiles=profiles, graphs=with_graphs)
            return new_session(graph, providers)

        with_graphs = graphs and provider == CUDA
        return GpuSession(open_session, artifact, graphs=with_graphs, fused=fused, token_budget=budget)

    if provider == CUDA and (half if fused is None else fused):
        graph = fused_graph(artifact, folder)
        session = graph and _if_sound(functools.partial(open_graph, graph, fused=True), artifact)
        if session:
            return session
    return open_graph(artifact.path(GRAPH), fused=False)


def _if_sound(open_fused: Callable[[], GpuSession], artifact: Artifact) -> GpuSession | None:
    """The fused model, if it gives the golden vectors; the exported one may give them where this does not."""
    from tokenizers import Tokenizer

    manifest = artifact.manifest
    tokenizer = Tokenizer.from_file(str(artifact.path(TOKENIZER)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(manifest.max_tokens)
    encodings = tokenizer.encode_batch_fast(list(manifest.golden_texts))
    batch = Batch(*pad([encoding.ids for encoding in encodings], manifest.pad_token_id, manifest.padding_side))
    expected = np.load(artifact.path(GOLDEN), allow_pickle=False)
    try:
        session = open_fused()
        vectors = session.run(batch)
    except (
        Exception
    ) as exc:  # a kernel may lack the type or the shape; what concerns the GPU, the other graph meets too
        logger.warning("%s runs without fused attention: %s: %s", manifest.model, type(exc).__name__, exc)
        return None
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = np.einsum("nd,nd->n", vectors, expected) / np.maximum(norms, 1e-12)
    if not (cosines >= GOLDEN_MIN_COSINE_REDUCED).all():  # NaN is not
        logger.warning(
            "%s runs without fused attention: fused, a golden text has cosine %.6f to its recorded vector.",
            manifest.model, cosines.min(),
        )  # fmt: skip
        return None
    return session


class GpuSession:
    """A graph on a GPU.

    Args:
        open_session: Opens the graph. Called again without CUDA graphs if they turn out not to work.
        artifact: What it is.
        graphs: Whether to try CUDA graphs.
        fused: Whether the graph was fused, for the record.
        token_budget: Largest rows x length of a batch.
        device: Where buffers lie; ``cpu`` in tests.

    Attributes:
        graphs: Whether CUDA graphs are in use.
        fused: Whether attention is fused.
    """

    adjustable = False  # threads do not matter, and the token budget is not measured yet

    def __init__(
        self,
        open_session: OpenSession,
        artifact: Artifact,
        *,
        graphs: bool = False,
        fused: bool = False,
        token_budget: int = TOKEN_BUDGET,
        device: str = "cuda",
    ) -> None:
        self._open = open_session
        self._manifest = artifact.manifest
        self._device = device
        self._kept: dict[tuple[int, int], _Bound] = {}
        self._seen: Counter[tuple[int, int]] = Counter()
        self.graphs = graphs
        self.fused = fused
        self._session = on_device(self._first_session)
        self.provider = self._session.get_providers()[0]
        self.placement = Placement(
            threads=1,
            callers=2,  # one pads while the other's batch is computed
            spinning=False,
            token_budget=token_budget,
            shape_step=SHAPE_STEP,
            overlapping=True,
        )

    def run(self, batch: Batch) -> np.ndarray:
        rows, length = batch.ids.shape
        shape = bucket(rows, length, SHAPE_STEP, self._manifest.max_tokens)
        ids, mask = pad_to(batch, shape, self._manifest)
        return on_device(self._run, shape, graph_inputs(self._manifest.inputs, ids, mask))[:rows]

    # --- on the device's thread

    def _first_session(self) -> onnxruntime.InferenceSession:
        if self.graphs:
            try:
                return self._open(True)
            except ProviderError:
                raise  # the GPU does not compute, with or without graphs
            except Exception as exc:  # ONNX Runtime has no class of its own for a refusal
                logger.info("%s runs without CUDA graphs: ONNX Runtime says %s", self._manifest.model, exc)
                self.graphs = False
        return self._open(False)

    def _run(self, shape: tuple[int, int], inputs: dict[str, np.ndarray]) -> np.ndarray:
        bound = self._kept.get(shape)
        if bound is not None:
            return bound.run(inputs)
        bound = _Bound(self._session, self._manifest, shape, self._device)
        vectors = bound.run(inputs)
        self._seen[shape] += 1
        if self._seen[shape] >= KEPT_AFTER and len(self._kept) < SHAPES_KEPT:
            self._kept[shape] = bound
            if self.graphs:
                self._capture(bound, inputs, vectors)
        return vectors

    def _capture(self, bound: _Bound, inputs: dict[str, np.ndarray], expected: np.ndarray) -> None:
        """Has the graph of a shape captured, and drops all graphs if one does not give the vectors it should."""
        bound.use_graph(len(self._kept))  # 0 is ONNX Runtime's own
        try:
            bound.run(inputs)  # captures
            replayed = bound.run(inputs)
            difference = float(np.max(np.abs(replayed - expected)))  # NaN is not within any tolerance
            if not difference <= REPLAY_TOLERANCE * float(np.max(np.abs(expected))):
                raise ArithmeticError(f"replayed vectors differ by {difference:.2g}")
        except Exception as exc:  # a failed capture may be of any class, and must not lose the batch
            logger.warning(
                "%s goes on without CUDA graphs: capturing shape %s failed (%s).",
                self._manifest.model,
                bound.shape,
                exc,
            )
            self.graphs = False
            self._kept.clear()
            self._session = self._open(False)


class _Bound:
    """Inputs and output of one shape, (rows, length), bound to buffers on the device."""

    def __init__(
        self, session: onnxruntime.InferenceSession, manifest: Manifest, shape: tuple[int, int], device: str
    ) -> None:
        from onnxruntime import OrtValue

        self.shape = shape
        self._session = session
        self.use_graph(NO_GRAPH)
        self._inputs = {
            name: OrtValue.ortvalue_from_shape_and_type(shape, np.int64, device, 0) for name in manifest.inputs
        }
        self._output = OrtValue.ortvalue_from_shape_and_type((shape[0], manifest.dims), np.float32, device, 0)
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(manifest.output, self._output)

    def use_graph(self, graph: int) -> None:
        """Has the next run capture the CUDA graph of this number, and those after it replay it."""
        from onnxruntime import RunOptions

        self._options = RunOptions()  # anew, since ONNX Runtime warns when an entry changes
        self._options.add_run_config_entry("gpu_graph_id", str(graph))

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        for name, value in inputs.items():
            self._inputs[name].update_inplace(value)
        self._session.run_with_iobinding(self._binding, self._options)
        return np.array(self._output.numpy())  # a copy: the buffer is used again


def pad_to(batch: Batch, shape: tuple[int, int], manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of `shape`, int64; rows that are added hold one token, so that no mean divides by 0."""
    rows, length = batch.ids.shape
    columns = slice(0, length) if manifest.padding_side == "right" else slice(shape[1] - length, shape[1])
    ids = np.full(shape, manifest.pad_token_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    ids[:rows, columns] = batch.ids
    mask[:rows, columns] = batch.mask
    mask[rows:, 0 if manifest.padding_side == "right" else -1] = 1
    return ids, mask


def on_device(function: Callable[..., T], *arguments: Any) -> T:
    """Calls `function` in the one thread of this process that works on the GPU, and waits for its result."""
    return _device_thread(os.getpid()).submit(function, *arguments).result()


@functools.cache
def _device_thread(process: int) -> ThreadPoolExecutor:
    """Of `process`: a forked child begins with a thread of its own."""
    return ThreadPoolExecutor(1, thread_name_prefix="llmrec-gpu")
