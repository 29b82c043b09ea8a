"""`export_network`: a trained PyTorch network becomes a checked ONNX artifact.

    declaration -> function(folder) -> Network -> ONNX graph -> comparison with PyTorch -> artifact store

What is compared: `llmrec_plugin.export.network_parity`.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from llmrec_plugin.artifacts import ArtifactStore, NetworkArtifact, sha256_file, vocabulary_file
from llmrec_plugin.errors import DeclarationError, LLMRecError, SourceError
from llmrec_plugin.export.graph import OPSET, remove_labels, save_graph
from llmrec_plugin.export.network_parity import Run, collate_all, compare, is_sequence
from llmrec_plugin.export.sources import find_place
from llmrec_plugin.export.toolchain import quiet, require, versions
from llmrec_plugin.manifests import GOLDEN, GOLDEN_ROWS, GRAPH, MANIFEST, TOKENIZER, NetworkManifest
from llmrec_plugin.networks import Id, IdSequence, Input, Network, Tokens, graph_names
from llmrec_plugin.pipeline.networks import Arrays, Preparer, read_rows
from llmrec_plugin.runtime.session import open_session
from llmrec_plugin.runtime.tokenizing import load_tokenizer
from llmrec_plugin.specs import Metric, NetworkModel

OUTPUT = "output"
LEAST_EXAMPLES = 8
LEAST_VALUES = 4
"""Of the examples: so many must not be empty."""
GOLDEN_COUNT = 16
"""How many of the examples that have a value are kept as golden rows."""
_MAX_SPLIT = 2**31 - 2**20  # what one protobuf file holds

_log = logging.getLogger(__name__)


def export_network(
    model: NetworkModel, store: ArtifactStore, *, report: Callable[[str], None] = _log.info
) -> NetworkArtifact:
    """Exports `model`, compares it with PyTorch, and makes it the current artifact of its name.

    Args:
        model: What to export.
        store: Where to put it: into the first of its folders.
        report: Called with one line of progress at a time, e.g. ``print``.

    Raises:
        SourceError: The folder or the function cannot be found, or the function or torch's exporter failed.
        DeclarationError: What the function returned contradicts itself.
        ParityError: The graph differs from PyTorch, or a row's value depends on its batch or on padding.
        MissingExtraError: A package of the ``export`` extra is not installed.
    """
    report(f"{model.name}: looking for {model.source}")
    folder = find_place(model.source)
    network = _load(model, folder)
    check_network(model, network)

    store.folders[0].mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=store.folders[0]) as temporary:
        finished = Path(temporary, "finished", model.name)
        finished.mkdir(parents=True)
        for name, keys in sorted(network.vocabularies.items()):
            text = json.dumps(list(keys), ensure_ascii=False, separators=(",", ":"))
            (finished / vocabulary_file(name)).write_text(text + "\n", encoding="utf-8")
        if network.tokenizer is not None:
            shutil.copyfile(network.tokenizer, finished / TOKENIZER)
        examples = _read_examples(model, network, finished / TOKENIZER)
        report(f"{model.name}: exporting the graph")
        reference = torch_runner(network)
        export_graph(model, network, examples, finished / GRAPH)
        report(f"{model.name}: comparing with PyTorch")
        graph = _graph_runner(finished / GRAPH)
        record, values = compare(model, network, examples.arrays, reference, graph)
        report(
            f"{model.name}: largest difference "
            f"{max(record.max_abs_diff, record.batch_max_abs_diff, record.shuffled_max_abs_diff):.2g} over "
            f"{record.examples} rows (tolerance {record.tolerance:.2g})"
        )
        _write_golden(finished, [network.examples[number] for number in examples.numbers], network.inputs, values)
        manifest = NetworkManifest(
            model=model.name,
            source={"source": model.source, "network": model.network, **dict(network.source)},
            inputs=network.inputs,
            dims=network.dims,
            metric=None if network.dims is None else network.metric,
            normalized=network.normalized,
            space=network.space,
            tolerance=model.tolerance,
            output=OUTPUT,
            files={path.name: sha256_file(path) for path in sorted(finished.iterdir())},
            versions=versions(),
            parity=asdict(record),
            quality=json.loads(json.dumps(dict(network.quality))),
        )
        (finished / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        artifact = store.add(finished)
    assert isinstance(artifact, NetworkArtifact)
    report(f"{model.name}: artifact {artifact.id[:16]} in {artifact.folder}")
    return artifact


def _load(model: NetworkModel, folder: Path) -> Network:
    """What the declaration's function makes of the folder."""
    module_name, _, function_name = model.network.partition(":")
    require("torch")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as exc:
        raise SourceError(
            f"model {model.name!r}: the function {model.network!r} cannot be imported: {exc}. Install the plugin that "
            "has it, or correct the declaration."
        ) from exc
    try:
        network = function(folder)
    except LLMRecError:
        raise
    except Exception as exc:  # somebody else's code may raise anything
        raise SourceError(
            f"model {model.name!r}: {model.network} could not load {folder}: {type(exc).__name__}: {exc}. Train it "
            "again with the version that is to load it."
        ) from exc
    if not isinstance(network, Network):
        raise DeclarationError(
            f"model {model.name!r}: {model.network} must return a llmrec_plugin.networks.Network, got "
            f"{type(network).__name__}."
        )
    return network


def check_network(model: NetworkModel, network: Network) -> None:
    """Checks that a network says everything once and nothing that cannot be.

    Raises:
        DeclarationError: It does not; the message says what.
    """
    owner = f"model {model.name!r}"
    names = graph_names(network.inputs)
    if not names or len(set(names)) < len(names):
        raise DeclarationError(f"{owner}: expected one or more inputs of different names, got {names}.")
    if network.dims is not None and (not isinstance(network.dims, int) or network.dims < 1):
        raise DeclarationError(f"{owner}: dims must be a positive integer or None, got {network.dims!r}.")
    if network.metric not in get_args(Metric) or (network.normalized and network.dims is None):
        raise DeclarationError(
            f"{owner}: metric must be one of {', '.join(get_args(Metric))}, and a number has no norm; got "
            f"{network.metric!r}, normalized={network.normalized!r}, dims={network.dims!r}."
        )
    used = {item.vocabulary for item in network.inputs if isinstance(item, Id | IdSequence)}
    if used != network.vocabularies.keys():
        raise DeclarationError(
            f"{owner}: its inputs name the vocabularies {sorted(used)}, it has {sorted(network.vocabularies)}."
        )
    for name, keys in network.vocabularies.items():
        if not name.isidentifier():
            raise DeclarationError(f"{owner}: expected a vocabulary name such as 'items', got {name!r}.")
        wrong = next((key for key in keys if not isinstance(key, str) or not key), None)
        if wrong is not None or not len(keys):
            raise DeclarationError(f"{owner}: vocabulary {name!r}: expected non-empty strings, got {wrong!r}.")
        if len(set(keys)) < len(keys):
            raise DeclarationError(f"{owner}: vocabulary {name!r} holds a key twice, so ids would not be unique.")
    needs_tokenizer = any(isinstance(item, Tokens) for item in network.inputs)
    if needs_tokenizer != (network.tokenizer is not None):
        raise DeclarationError(f"{owner}: a tokenizer is needed if, and only if, an input is of kind Tokens.")
    if len(network.examples) < LEAST_EXAMPLES:
        raise DeclarationError(f"{owner}: expected {LEAST_EXAMPLES} examples or more, got {len(network.examples)}.")
    wanted = {item.name for item in network.inputs}
    for number, example in enumerate(network.examples):
        if example.keys() != wanted:
            raise DeclarationError(
                f"{owner}: example {number} has the inputs {sorted(example)}, expected {sorted(wanted)}."
            )
    if network.candidates is not None and (
        network.dims is None or np.ndim(network.candidates) != 2 or network.candidates.shape[1] != network.dims
    ):
        raise DeclarationError(f"{owner}: candidates must be (n, {network.dims}), got {np.shape(network.candidates)}.")


@dataclass(frozen=True)
class _Examples:
    """The examples that have a value: their numbers and arrays."""

    numbers: list[int]
    arrays: list[Arrays]


def _read_examples(model: NetworkModel, network: Network, tokenizer: Path) -> _Examples:
    vocabularies = {name: {key: i + 1 for i, key in enumerate(keys)} for name, keys in network.vocabularies.items()}
    names = [item.name for item in network.inputs]
    columns = {name: [example[name] for example in network.examples] for name in names}
    read = read_rows(model.name, network.inputs, dict(zip(names, names, strict=True)), columns, vocabularies)
    numbers = [number for number, row in enumerate(read.rows) if row is not None]
    preparer = Preparer(network.inputs, lambda length: load_tokenizer(tokenizer, length, f"Network {model.name!r}"))
    arrays = preparer.arrays([row for row in read.rows if row is not None])
    invalid = dict(read.invalid)
    invalid |= {number: made for number, made in zip(numbers, arrays, strict=True) if isinstance(made, str)}
    if invalid:
        number, reason = min(invalid.items())
        raise DeclarationError(f"model {model.name!r}: example {number} cannot be read: {reason}.")
    if len(numbers) < LEAST_VALUES:
        raise DeclarationError(
            f"model {model.name!r}: expected {LEAST_VALUES} or more examples that have a value, got {len(numbers)}; "
            "the others lack an input, or have no known key."
        )
    return _Examples(numbers, [made for made in arrays if isinstance(made, dict)])


def torch_runner(network: Network) -> Run:
    """The network in PyTorch, in evaluation mode and single precision."""
    torch = require("torch")
    names = graph_names(network.inputs)
    module = network.module.eval().float()

    def run(batch: Arrays) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(*(torch.from_numpy(batch[name]) for name in names)).numpy())

    return run


def export_graph(model: NetworkModel, network: Network, examples: _Examples, path: Path) -> None:
    """Writes the graph of a network; equal weights give equal bytes.

    Raises:
        SourceError: torch's exporter does not know an operation of the module.
        DeclarationError: The module gives something else than the network says.
    """
    torch, onnx = require("torch"), require("onnx")
    names = graph_names(network.inputs)
    # Two different rows, padded as when served: what is traced must not look constant.
    chosen = [max(examples.arrays, key=_total), min(examples.arrays, key=_total), examples.arrays[0]]
    batch = collate_all(network.inputs, chosen)
    arguments = tuple(torch.from_numpy(batch[name]) for name in names)
    module = network.module.eval().float()
    with torch.no_grad():
        try:
            given = module(*arguments)
        except Exception as exc:
            raise SourceError(f"model {model.name!r}: its module failed on an example: {exc!r}.") from exc
    expected = (len(chosen),) if network.dims is None else (len(chosen), network.dims)
    if not isinstance(given, torch.Tensor) or given.dtype != torch.float32 or tuple(given.shape) != expected:
        got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, torch.Tensor) else type(given).__name__
        raise DeclarationError(f"model {model.name!r}: forward must return float32 {expected}, got {got}.")
    axes = {name: {0: "batch"} for name in (*names, OUTPUT)}
    for name, array in batch.items():
        if is_sequence(network.inputs, name):
            axes[name][1] = f"{name}_length"
        assert array.shape[0] == len(chosen)
    raw = path.parent.parent / "raw" / path.name  # above 2 GB the exporter writes more files beside it
    raw.parent.mkdir()
    try:
        with quiet(), torch.no_grad(), _traceable_attention():
            torch.onnx.export(
                module, arguments, str(raw), input_names=list(names), output_names=[OUTPUT], dynamic_axes=axes,
                opset_version=OPSET, dynamo=False,
            )  # fmt: skip
    except Exception as exc:  # torch's exporter has no error of its own for all it refuses
        raise SourceError(
            f"model {model.name!r}: torch cannot export its module: {exc}. The module is traced: use operations that "
            "ONNX has, and no Python control flow over values."
        ) from exc
    graph = onnx.load(raw)
    remove_labels(graph, "network")
    save_graph(graph, path, split=graph.ByteSize() > _MAX_SPLIT)


@contextlib.contextmanager
def _traceable_attention() -> Iterator[None]:
    """Lets `torch.nn.MultiheadAttention` be traced for sequences of any length.

    Its projection of queries, keys and values in one product goes through `unflatten`, which the tracer takes for
    constant, length included (torch 2.9 to 2.13); and its fast path has no ONNX operation.
    """
    torch = require("torch")
    functional = torch.nn.functional

    def project(q: Any, k: Any, v: Any, weight: Any, bias: Any = None) -> tuple[Any, ...]:
        weights = weight.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(functional.linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases, strict=True))

    original, fast = functional._in_projection_packed, torch.backends.mha.get_fastpath_enabled()
    functional._in_projection_packed = project
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        functional._in_projection_packed = original
        torch.backends.mha.set_fastpath_enabled(fast)


def _total(row: Arrays) -> int:
    return sum(array.size for array in row.values())


def _graph_runner(path: Path) -> Run:
    session = open_session(path, device="cpu")
    names = {item.name for item in session.get_inputs()}

    def run(batch: Arrays) -> np.ndarray:
        (values,) = session.run([OUTPUT], {name: array for name, array in batch.items() if name in names})
        return np.asarray(values)

    return run


def _write_golden(
    folder: Path, examples: Sequence[Mapping[str, Any]], inputs: Sequence[Input], values: np.ndarray
) -> None:
    names = [item.name for item in inputs]
    rows = {name: [_plain(example[name]) for example in examples[:GOLDEN_COUNT]] for name in names}
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    (folder / GOLDEN_ROWS).write_text(text + "\n", encoding="utf-8")
    np.save(folder / GOLDEN, values[:GOLDEN_COUNT])


def _plain(value: Any) -> Any:
    """A cell as JSON; reading it gives the same input."""
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode()
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
