"""Rows -> values with one exported network.

rows -> `read_rows` -> cache? -> tokens, pixels -> batches of one shape -> ONNX Runtime -> values
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llmrec_plugin.artifacts import NetworkArtifact, vocabulary_file
from llmrec_plugin.errors import ArtifactCorruptError, ParityError
from llmrec_plugin.inference import Profile
from llmrec_plugin.manifests import GOLDEN, GOLDEN_ROWS, GRAPH, TOKENIZER
from llmrec_plugin.networks import Id, IdSequence
from llmrec_plugin.pipeline.networks import Arrays, Preparer, Vocabularies, collate, plan_rows, read_rows, work_of
from llmrec_plugin.runtime.calibration import default_placement
from llmrec_plugin.runtime.memory import run_halving
from llmrec_plugin.runtime.session import open_session
from llmrec_plugin.runtime.tokenizing import load_tokenizer
from llmrec_plugin.settings import Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROWS_PER_CALL = 1_024
"""Rows computed between two writes to the cache."""
WORK_PER_BATCH = 1_024
"""Work of a batch in tokens, see `llmrec_plugin.pipeline.networks.work_of`."""
GOLDEN_SLACK = 2.0
"""How many times the tolerance of the export a golden value may be off: another processor rounds otherwise."""


class Result(NamedTuple):
    """What became of one row.

    Attributes:
        value: (dims,) float32, (1,) for a number; None if there is none.
        reason: Why there is none.
    """

    value: np.ndarray | None
    reason: str = ""


class LoadedNetwork:
    """An exported network, loaded and checked.

    The files are compared with their hashes and the golden rows are computed before the first value is given out.

    Args:
        artifact: The exported network.
        settings: Device and threads.
        profile: ``batch`` runs one batch per thread, ``online`` gives one run all threads.

    Attributes:
        artifact: The exported network.
        vocabularies: Name -> key -> id.

    Raises:
        ArtifactCorruptError: A file differs from the manifest.
        ParityError: The golden rows do not give their recorded values here.
        ProviderError: The device is not usable.
        MissingExtraError: onnxruntime or, for pictures, Pillow is not installed.
    """

    def __init__(self, artifact: NetworkArtifact, settings: Settings, profile: Profile = "batch") -> None:
        artifact.verify()
        self.artifact = artifact
        self.vocabularies = read_vocabularies(artifact)
        self._inputs = artifact.manifest.inputs
        placement = default_placement(profile, settings.threads)
        self._callers = placement.callers
        self._session = open_session(
            artifact.path(GRAPH), device=settings.device, threads=placement.threads, spinning=placement.spinning
        )
        self._names = {item.name for item in self._session.get_inputs()}
        self._tokenizers: dict[int, Tokenizer] = {}
        self._lock = threading.Lock()
        self._preparer = Preparer(self._inputs, self._tokenizer)
        self._check_golden_rows()

    @property
    def provider(self) -> str:
        """What computes, e.g. ``CPUExecutionProvider``."""
        return str(self._session.get_providers()[0])

    def compute(self, rows: Sequence[str]) -> list[Result]:
        """The value of each of the `Row`s, in order; one whose picture or text is damaged fails no other.

        On a CPU a row's value has the same bits alone and in any batch: see `llmrec_plugin.pipeline.networks`.
        """
        made = self._preparer.arrays(rows)
        good = [number for number, arrays in enumerate(made) if isinstance(arrays, dict)]
        arrays = [item for item in made if isinstance(item, dict)]
        results = [Result(None, item if isinstance(item, str) else "") for item in made]
        plan = plan_rows(self._inputs, arrays, WORK_PER_BATCH)

        def run(lengths: tuple[int, ...], numbers: np.ndarray) -> None:
            together = [arrays[number] for number in numbers]
            if len(together) == 1 and 2 * work_of(self._inputs, lengths) <= WORK_PER_BATCH:
                # ONNX Runtime sums along an axis in another order where the batch is 1. A row that another time may
                # have company gets it always.
                together *= 2
            values = self._run(collate(self._inputs, together, lengths))[: len(numbers)]
            finite = np.isfinite(values).all(axis=1)
            for number, value, sound in zip(numbers.tolist(), values, finite.tolist(), strict=True):
                reason = "" if sound else "the network gave a value that is not finite"
                results[good[number]] = Result(value if sound else None, reason)

        def run_whole_or_halved(batch: tuple[tuple[int, ...], np.ndarray]) -> None:
            lengths, numbers = batch
            name = f"Network {self.artifact.manifest.model!r}"
            run_halving(functools.partial(run, lengths), numbers, name)  # type: ignore[arg-type]  # an array is sliced

        if self._callers == 1 or len(plan) <= 1:
            for batch in plan:
                run_whole_or_halved(batch)
        else:
            with ThreadPoolExecutor(self._callers) as pool:
                list(pool.map(run_whole_or_halved, plan))  # list() re-raises what a worker raised
        return results

    def _run(self, batch: Arrays) -> np.ndarray:
        """(rows, dims) float32, (rows, 1) for a number; read-only, as requests share the rows."""
        feed = {name: array for name, array in batch.items() if name in self._names}
        (output,) = self._session.run([self.artifact.manifest.output], feed)
        rows = len(next(iter(batch.values())))
        values = np.array(output, dtype=np.float32).reshape(rows, self.artifact.manifest.dims or 1)
        values.flags.writeable = False
        return values

    def _tokenizer(self, max_tokens: int) -> Tokenizer:
        # Truncation is state of a tokenizer, so each length has its own copy; two threads never change one.
        with self._lock:
            if max_tokens not in self._tokenizers:
                path, owner = self.artifact.path(TOKENIZER), f"Network {self.artifact.manifest.model!r}"
                self._tokenizers[max_tokens] = load_tokenizer(path, max_tokens, owner)
            return self._tokenizers[max_tokens]

    def _check_golden_rows(self) -> None:
        manifest = self.artifact.manifest
        expected = np.load(self.artifact.path(GOLDEN), allow_pickle=False)
        columns = json.loads(self.artifact.path(GOLDEN_ROWS).read_text(encoding="utf-8"))
        names = {item.name: item.name for item in self._inputs}
        read = read_rows(manifest.model, self._inputs, names, columns, self.vocabularies)
        rows = [row for row in read.rows if row is not None]
        results = self.compute(rows)
        shape = (len(read.rows),) if manifest.dims is None else (len(read.rows), manifest.dims)
        if len(rows) < len(read.rows) or expected.shape != shape:
            raise ArtifactCorruptError(
                f"{self.artifact.path(GOLDEN_ROWS)}: expected {len(expected)} rows with a value of shape {shape}, "
                f"{len(rows)} have one. Run `llmrec export {manifest.model}` again."
            )
        nothing = np.full(manifest.dims or 1, np.nan, dtype=np.float32)
        actual = np.stack([nothing if value is None else value for value, _ in results]).reshape(shape)
        worst = float(np.nan_to_num(np.abs(actual - expected), nan=np.inf).max())
        if worst > GOLDEN_SLACK * manifest.tolerance:
            raise ParityError(
                f"Network {manifest.model!r} (artifact {self.artifact.id[:16]}) on {self.provider}: a golden value is "
                f"off by {worst:.3g}, expected at most {GOLDEN_SLACK * manifest.tolerance:.3g}. It computes other "
                "numbers than it did at export; try LLMREC_DEVICE=cpu, another ONNX Runtime, or export again."
            )


def read_vocabularies(artifact: NetworkArtifact) -> Vocabularies:
    """The ids of a network's keys.

    Raises:
        ArtifactCorruptError: A file is missing, differs from the manifest or is no list of keys.
    """
    names = {item.vocabulary for item in artifact.manifest.inputs if isinstance(item, Id | IdSequence)}
    found: dict[str, Mapping[str, int]] = {}
    for name in names:
        path = artifact.path(vocabulary_file(name))
        artifact.verify([path.name])  # it decides which cached value a row gets, also where the graph is not loaded
        try:
            keys = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: number for number, key in enumerate(keys, start=1)}
        except (OSError, ValueError, TypeError) as exc:
            raise ArtifactCorruptError(
                f"{path} of network {artifact.manifest.model!r} is no list of keys: {exc}. Run "
                f"`llmrec export {artifact.manifest.model}` again."
            ) from exc
    return found
