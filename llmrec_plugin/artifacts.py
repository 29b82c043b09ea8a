"""Exported models on disk: a folder with a graph, a tokenizer, golden vectors and a manifest.

    <artifact folder>/<model name>/<first 16 digits of the id>/manifest.json
                                                              /model.onnx  tokenizer.json  golden.npy
    <artifact folder>/<model name>/current        the id that newly published features use

The **artifact id** is a hash over the content that makes the numbers, so the same weights exported twice
have one id and a changed weight has another. A view keeps using the id it was published with; exporting
a new model changes only what is published next.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from llmrec_plugin.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    DeclarationError,
)
from llmrec_plugin.networks import Input, Tokens, Vector, graph_names, input_from_spec
from llmrec_plugin.specs import GeneratorTask, Metric, NetworkFeature, Pooling, Precision, TextFeature, digest, to_spec
from llmrec_plugin.specs.checks import check_model_name

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
GOLDEN = "golden.npy"
GOLDEN_PROMPTS = "golden.json"
GOLDEN_ROWS = "golden.rows.json"
ENDPOINT = "endpoint.json"
FORMAT = 1
_LOCATION = b"\x0a\x08location\x12"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an exported encoder is, and the proof that it equals its PyTorch original.

    Attributes:
        model: Name of the model.
        source: Where the weights came from: the declaration's source and the SHA-256 of the weights; also ``layers``
            and ``rotation`` where the declaration has them.
        pooling: Pooling inside the graph.
        normalize: Whether the graph's output has unit L2 norm.
        dims: Length of the output vector.
        max_tokens: Longest input in tokens, special tokens included.
        padding_side: Side on which a batch is padded.
        pad_token_id: Token id used for padding.
        inputs: Names of the graph's inputs, of ``input_ids``, ``attention_mask``, ``token_type_ids``
            and ``position_ids``, each (batch, length) int64.
        output: Name of the graph's output, (batch, dims) float32.
        precision: Number type of the large matrix products; with ``bf16`` the graph itself is float32.
        labels: What the components of the output are logits of, for a model that scores labels; else empty.
        thresholds: Least probability of each label, where there are labels.
        files: SHA-256 of every file, by its name in the folder.
        golden_texts: Texts whose reference vectors are in ``golden.npy``, (len, dims) float32; checked whenever the
            artifact is loaded. Computed by PyTorch for ``fp32``, else by this graph in ONNX Runtime on a CPU.
        versions: Versions of the packages that exported it.
        parity: The record of the comparison with PyTorch, made before the precision was reduced.
        quality: The record of what precision, layers and prefixes cost against the full fp32 model.
    """

    model: str
    source: dict[str, str]
    pooling: Pooling
    normalize: bool
    dims: int
    max_tokens: int
    padding_side: Literal["right", "left"]
    pad_token_id: int
    inputs: tuple[str, ...]
    output: str
    precision: Precision
    files: dict[str, str]
    golden_texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name in ("inputs", "golden_texts", "labels", "thresholds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists

    @property
    def artifact_id(self) -> str:
        """64 hex digits over graph, tokenizer and the settings that make the numbers."""
        numeric_files = {name: sha for name, sha in self.files.items() if name != GOLDEN}
        labels = [[self.labels, self.thresholds]] if self.labels else []
        return digest(
            [
                self.format,
                *labels,
                numeric_files,
                self.pooling,
                self.normalize,
                self.dims,
                self.max_tokens,
                self.padding_side,
                self.pad_token_id,
                self.output,
                self.precision,
            ]
        )

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "artifact_id": self.artifact_id}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What a chat model wants around the parts of a prompt, rendered from the tokenizer's own template at export.

    Attributes:
        with_system: Before the system text, between it and the user's, and after that, up to where the answer begins.
        without_system: Before and after the user's text.
    """

    with_system: tuple[str, str, str]
    without_system: tuple[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "with_system", tuple(self.with_system))  # JSON has lists
        object.__setattr__(self, "without_system", tuple(self.without_system))


@dataclass(frozen=True, kw_only=True)
class GeneratorManifest:
    """What an exported generator is, and the proof that it writes what its PyTorch original writes.

    The files of a ``causal`` model are ``model.onnx``, of ``seq2seq`` ``encoder.onnx``, ``decoder.onnx`` (first token)
    and ``decoder_with_past.onnx``; both have ``tokenizer.json`` and ``golden.json``. A model that only an endpoint has
    is one file, ``endpoint.json``: its served name and version; sizes and token ids are then 0 and mean nothing.

    Attributes:
        model: Name of the model.
        source: Where the weights came from: the declaration's source and the SHA-256 of the weights.
        task: ``causal`` or ``seq2seq``.
        max_tokens: Longest prompt and output together (``causal``), or longest of either (``seq2seq``), in tokens.
        vocab_size: Length of the logits.
        layers: Layers with a key-value cache.
        kv_heads: Heads of keys and values of each.
        head_dim: Size of each head.
        prefix_ids: Tokens before every prompt, e.g. the beginning of the sequence.
        suffix_ids: Tokens after every prompt, e.g. the end of the sequence for an encoder.
        eos_token_ids: Tokens that end the output.
        pad_token_id: Token id used for padding.
        decoder_start_token_id: First input of the decoder of a ``seq2seq`` model.
        chat: The chat template, for models that expect one.
        attention: ``fused``: the graph reads and writes the cache in place and its rows need not be at the same
            position; ``plain``: the graph as it was exported, which gives back a longer cache each step.
        precision: Number type of the matrix products.
        files: SHA-256 of every file, by its name in the folder.
        versions: Versions of the packages that exported it.
        parity: The record of the comparison with PyTorch, token by token.
        quality: Measured quality on texts that were not trained on, for models that the project trains.
    """

    model: str
    source: dict[str, str]
    task: GeneratorTask
    max_tokens: int
    vocab_size: int
    layers: int
    kv_heads: int
    head_dim: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    files: dict[str, str]
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    decoder_start_token_id: int | None = None
    chat: ChatTemplate | None = None
    attention: Literal["fused", "plain"] = "plain"
    precision: Precision = "fp32"
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    kind: Literal["generator"] = "generator"
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name in ("eos_token_ids", "prefix_ids", "suffix_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        if isinstance(self.chat, dict):
            object.__setattr__(self, "chat", ChatTemplate(**self.chat))

    @property
    def artifact_id(self) -> str:
        """64 hex digits over graphs, tokenizer and the settings that make the tokens."""
        said = {"model", "source", "files", "versions", "parity", "quality", "attention"}
        settings = {name: value for name, value in asdict(self).items() if name not in said}
        files = {name: sha for name, sha in self.files.items() if name != GOLDEN_PROMPTS}
        return digest([files, settings])

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "artifact_id": self.artifact_id}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, kw_only=True)
class NetworkManifest:
    """What an exported network is, and the proof that it equals its PyTorch original.

    Its files are ``model.onnx``, a ``vocabulary.<name>.json`` for each vocabulary, ``tokenizer.json`` where an input is
    a text, ``golden.rows.json`` (rows by input, as columns give them; bytes as base64) and ``golden.npy`` (PyTorch's
    values of them, (rows, dims) or (rows,) float32), which are compared whenever the artifact is loaded.

    Attributes:
        model: Name of the model.
        source: Where the weights came from: the declaration's source and function, and what the network says of it.
        inputs: What a row consists of, in the order of the graph's inputs.
        dims: Length of the vector; None for a number.
        metric: The similarity its vectors are meant for; None for a number.
        normalized: Whether its vectors have unit L2 norm.
        space: See `llmrec_plugin.networks.Network`.
        tolerance: Largest absolute difference to PyTorch that was accepted.
        output: Name of the graph's output, (batch, dims) or (batch,) float32.
        files: SHA-256 of every file, by its name in the folder.
        versions: Versions of the packages that exported it.
        parity: The record of the comparison with PyTorch.
        quality: Measured quality, as training wrote it.
    """

    model: str
    source: dict[str, str]
    inputs: tuple[Input, ...]
    dims: int | None
    metric: Metric | None
    normalized: bool
    space: str
    tolerance: float
    files: dict[str, str]
    output: str = "output"
    versions: dict[str, str] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    kind: Literal["network"] = "network"
    format: int = FORMAT

    def __post_init__(self) -> None:
        inputs = tuple(input_from_spec(item) if isinstance(item, dict) else item for item in self.inputs)
        object.__setattr__(self, "inputs", inputs)

    @property
    def graph_inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs, of which the graph may lack some that change nothing."""
        return graph_names(self.inputs)

    @property
    def artifact_id(self) -> str:
        """64 hex digits over graph, vocabularies, tokenizer and what is said of the values."""
        files = {name: sha for name, sha in self.files.items() if name not in (GOLDEN, GOLDEN_ROWS)}
        inputs = [to_spec(item) for item in self.inputs]
        said = [self.dims, self.metric, self.normalized, self.space, self.output]
        return digest([self.format, self.kind, files, inputs, said])

    def to_json(self) -> str:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {"inputs": [to_spec(item) for item in self.inputs], "artifact_id": self.artifact_id}
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


_AnyManifest: TypeAlias = Manifest | GeneratorManifest | NetworkManifest
AnyManifest = TypeVar("AnyManifest", Manifest, GeneratorManifest, NetworkManifest)
_MANIFESTS: dict[Any, type[_AnyManifest]] = {"generator": GeneratorManifest, "network": NetworkManifest}


@dataclass(frozen=True)
class _Stored(Generic[AnyManifest]):
    """An exported model in a folder."""

    folder: Path
    manifest: AnyManifest

    @property
    def id(self) -> str:
        return self.manifest.artifact_id

    def path(self, name: str) -> Path:
        """Where one of its files lies.

        Raises:
            ArtifactCorruptError: The manifest has no hash of such a file, so nothing may load it.
        """
        if name not in self.manifest.files:
            raise ArtifactCorruptError(
                f"{self.folder / MANIFEST}: expected the sha256 of {name!r}, got those of "
                f"{sorted(self.manifest.files)}. What is not listed is not loaded; run "
                f"`llmrec export {self.manifest.model}` again."
            )
        return self.folder / name

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Compares files with their hashes in the manifest, and lets none lie or read outside of what is listed.

        Args:
            names: Which; default: all.

        Raises:
            ArtifactCorruptError: A file is missing, differs, is a link out of the folder, or is a graph whose weights
                lie in a file that the manifest does not list.
        """
        home = self.folder.resolve()
        for name in self.manifest.files if names is None else names:
            path, expected = self.path(name), self.manifest.files[name]
            actual = sha256_file(path) if path.is_file() else "no such file"
            if actual != expected:
                raise ArtifactCorruptError(
                    f"{path} of model {self.manifest.model!r}: expected sha256 {expected}, got {actual}. "
                    f"The file is damaged or was replaced; run `llmrec export {self.manifest.model}` again."
                )
            if path.resolve().parent != home:
                raise ArtifactCorruptError(
                    f"{path} of model {self.manifest.model!r}: expected a file in this folder, got a link to "
                    f"{path.resolve()}. Copy the file here."
                )
            unlisted = _weights_beside(path) - self.manifest.files.keys() if path.suffix == ".onnx" else set()
            if unlisted:
                raise ArtifactCorruptError(
                    f"{path} of model {self.manifest.model!r} reads weights from {sorted(unlisted)}, whose sha256 the "
                    f"manifest does not have. Run `llmrec export {self.manifest.model}` again."
                )


@dataclass(frozen=True)
class GeneratorArtifact(_Stored[GeneratorManifest]):
    """An exported generator in a folder."""


@dataclass(frozen=True)
class Artifact(_Stored[Manifest]):
    """An exported encoder, or a model that scores labels, in a folder."""

    def check_fits(self, feature: TextFeature) -> None:
        """Checks that this model can compute `feature` as it is declared.

        Raises:
            ArtifactMismatchError: Pooling, normalization, dims or length contradict the declaration.
        """
        model = self.manifest

        def refuse(field_name: str, declared: object, actual: object, remedy: str) -> None:
            raise ArtifactMismatchError(
                f"Feature {feature.name!r} declares {field_name}={declared!r}, but model {model.model!r} "
                f"(artifact {self.id[:16]}) was exported with {actual!r}. {remedy}"
            )

        if feature.pooling != model.pooling:
            refuse(
                "pooling",
                feature.pooling,
                model.pooling,
                "Correct the declaration or export the model with that pooling.",
            )
        if model.normalize and not feature.normalize:
            refuse("normalize", False, True, "Declare normalize=True, or export the model without normalization.")
        if feature.max_tokens > model.max_tokens:
            refuse("max_tokens", feature.max_tokens, model.max_tokens, f"Declare at most {model.max_tokens}.")
        if feature.reduction is None and feature.dims != model.dims:
            refuse("dims", feature.dims, model.dims, f"Declare dims={model.dims}, or reduction='prefix' to keep fewer.")
        if feature.reduction is not None and feature.dims >= model.dims:
            refuse("dims", feature.dims, model.dims, f"A reduction must keep fewer than {model.dims} dims.")


def vocabulary_file(name: str) -> str:
    """Name of the file that holds a network's vocabulary: a JSON list of keys, the first of which has the id 1."""
    return f"vocabulary.{name}.json"


@dataclass(frozen=True)
class NetworkArtifact(_Stored[NetworkManifest]):
    """An exported network in a folder."""

    def check_fits(self, feature: NetworkFeature) -> None:
        """Checks that this network can compute `feature` as it is declared.

        Raises:
            ArtifactMismatchError: Inputs, dims, metric or space contradict the declaration.
        """
        model = self.manifest
        for name in ("dims", "metric"):
            if getattr(feature, name) != getattr(model, name):
                self._refuse(feature, name, getattr(feature, name), getattr(model, name))
        if feature.space and feature.space != model.space:
            self._refuse(feature, "space", feature.space, model.space)
        wanted = {item.name: item for item in model.inputs}
        given = dict(feature.inputs)
        if given.keys() != wanted.keys():
            self._refuse(feature, "inputs", sorted(given), sorted(wanted))
        for name, source in given.items():
            item = wanted[name]
            if isinstance(source, str):
                if "{" in source and not isinstance(item, Tokens):
                    self._refuse(feature, f"inputs[{name!r}]", source, f"a {type(item).__name__}, not a text")
            elif not isinstance(item, Vector):
                self._refuse(feature, f"inputs[{name!r}]", f"the vector {source.name}", f"a {type(item).__name__}")
            elif item.dims != source.dims:
                self._refuse(feature, f"inputs[{name!r}].dims", source.dims, item.dims)

    def _refuse(self, feature: NetworkFeature, field_name: str, declared: object, actual: object) -> None:
        raise ArtifactMismatchError(
            f"Feature {feature.name!r} declares {field_name}={declared!r}, but network {self.manifest.model!r} "
            f"(artifact {self.id[:16]}) was exported with {actual!r}. Correct the declaration, or train and export the "
            "network so."
        )


AnyArtifact: TypeAlias = Artifact | GeneratorArtifact | NetworkArtifact


class ArtifactStore:
    """The artifact folders of this machine, searched in order.

    Args:
        folders: Folders to search; new artifacts are written to the first.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)

    def current_id(self, model: str) -> str:
        """The id of the artifact that newly published features of `model` use.

        Raises:
            ArtifactNotFoundError: The model was never exported into these folders.
        """
        for folder in self.folders:
            pointer = folder / model / "current"
            if pointer.is_file():
                return pointer.read_text().strip()
        raise ArtifactNotFoundError(
            f"Model {model!r} is not exported: looked in {self._places()}. Run `llmrec export {model}`, "
            "or set LLMREC_ARTIFACTS to the folder that holds it."
        )

    def current(self, model: str) -> Artifact:
        """The current artifact of an encoder, or of a model that scores labels.

        Raises:
            ArtifactNotFoundError: The model was never exported into these folders.
            ArtifactMismatchError: It is a generator.
        """
        return self.get(model, self.current_id(model))

    def get(self, model: str, artifact_id: str) -> Artifact:
        """The artifact of an encoder, or of a model that scores labels, with exactly this id.

        Raises:
            ArtifactNotFoundError: No folder holds it.
            ArtifactCorruptError: Its manifest cannot be read or has another id.
            ArtifactMismatchError: It is a generator.
        """
        artifact = self.find(model, artifact_id)
        if not isinstance(artifact, Artifact):
            raise ArtifactMismatchError(
                f"Model {model!r} is a network over columns and encodes no texts: name it in a NetworkFeature."
                if isinstance(artifact, NetworkArtifact)
                else f"Model {model!r} writes text and computes no vectors or labels: name it in a TokenFeature."
            )
        return artifact

    def get_generator(self, model: str, artifact_id: str) -> GeneratorArtifact:
        """The artifact of a generator with exactly this id.

        Raises:
            ArtifactNotFoundError: No folder holds it.
            ArtifactCorruptError: Its manifest cannot be read or has another id.
            ArtifactMismatchError: It is no generator.
        """
        artifact = self.find(model, artifact_id)
        if not isinstance(artifact, GeneratorArtifact):
            raise ArtifactMismatchError(f"Model {model!r} writes no text: expected one exported from a GeneratorModel.")
        return artifact

    def get_network(self, model: str, artifact_id: str) -> NetworkArtifact:
        """The artifact of a network with exactly this id.

        Raises:
            ArtifactNotFoundError: No folder holds it.
            ArtifactCorruptError: Its manifest cannot be read or has another id.
            ArtifactMismatchError: It is no network.
        """
        artifact = self.find(model, artifact_id)
        if not isinstance(artifact, NetworkArtifact):
            raise ArtifactMismatchError(f"Model {model!r} is no network: expected one exported from a NetworkModel.")
        return artifact

    def find(self, model: str, artifact_id: str) -> AnyArtifact:
        """The artifact of any kind with exactly this id.

        Raises:
            ArtifactNotFoundError: No folder holds it.
            ArtifactCorruptError: Its manifest cannot be read or has another id.
        """
        for folder in self.folders:
            path = folder / model / artifact_id[:16]
            if (path / MANIFEST).is_file():
                artifact = read_artifact(path)
                if artifact.id != artifact_id:
                    raise ArtifactCorruptError(
                        f"{path / MANIFEST}: expected artifact id {artifact_id}, got {artifact.id}. "
                        f"The manifest was edited; run `llmrec export {model}` again."
                    )
                return artifact
        raise ArtifactNotFoundError(
            f"Artifact {artifact_id[:16]} of model {model!r} is not on this machine: looked in {self._places()}. "
            f"Copy the folder {model}/{artifact_id[:16]} there, set LLMREC_ARTIFACTS, or export and "
            "`feast apply` again."
        )

    def add(self, folder: Path) -> AnyArtifact:
        """Moves a finished artifact folder into the store and makes it current.

        Adding content that is already there replaces nothing but a damaged copy and the manifest, whose records of
        parity and quality are the newest, so a process that has the artifact open is not disturbed.
        """
        artifact = read_artifact(folder)
        artifact.verify()
        model_folder = self.folders[0] / artifact.manifest.model
        target = model_folder / artifact.id[:16]
        model_folder.mkdir(parents=True, exist_ok=True)
        if not _is_sound(target):
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(folder, target)
        elif _renews(artifact.manifest, read_artifact(target).manifest):
            os.replace(folder / MANIFEST, target / MANIFEST)
        pointer = model_folder / "current"
        temporary = pointer.with_suffix(f".{os.getpid()}")
        temporary.write_text(artifact.id + "\n")
        os.replace(temporary, pointer)
        return read_artifact(target)

    def __iter__(self) -> Iterator[AnyArtifact]:
        """Every artifact of every folder, by model name."""
        for folder in self.folders:
            for manifest in sorted(folder.glob(f"[!.]*/*/{MANIFEST}")):
                yield read_artifact(manifest.parent)

    def _places(self) -> str:
        return ", ".join(map(str, self.folders))


def _renews(new: _AnyManifest, old: _AnyManifest) -> bool:
    """Whether a manifest differs from that of the same files, in nothing but records."""
    return new != old and new.files == old.files


def _is_sound(folder: Path) -> bool:
    try:
        read_artifact(folder).verify()
    except ArtifactCorruptError:
        return False
    return True


def read_artifact(folder: Path) -> AnyArtifact:
    """The artifact in `folder`; its files are not read, see `Artifact.verify`.

    Raises:
        ArtifactCorruptError: The manifest is missing, malformed, of another format, or names a file
            outside the folder.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {values.get('format')!r}")
        kind: type[_AnyManifest] = _MANIFESTS.get(values.get("kind"), Manifest)
        known = {item.name for item in fields(kind)}
        manifest = kind(**{name: value for name, value in values.items() if name in known})
        if not isinstance(manifest.files, dict):
            raise ValueError(f"files must map names to hashes, got {type(manifest.files).__name__}")
        check_model_name(manifest.model)  # it becomes a folder's name
        outside = [name for name in manifest.files if Path(name).name != name or name in ("", "..", MANIFEST)]
        if outside:
            raise ValueError(f"file names must be plain, got {outside}")
        _ = manifest.artifact_id  # cannot be computed of what is no manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, DeclarationError) as exc:
        raise ArtifactCorruptError(f"{path} is not a readable manifest: {exc}. Export the model again.") from exc
    if isinstance(manifest, NetworkManifest):
        return NetworkArtifact(folder, manifest)
    return Artifact(folder, manifest) if isinstance(manifest, Manifest) else GeneratorArtifact(folder, manifest)


def _weights_beside(graph: Path) -> set[str]:
    """The files that an ONNX graph reads weights from, as it names them.

    A tensor whose data lie elsewhere holds the protobuf entry {1: "location", 2: name}.
    """
    if not graph.stat().st_size:
        return set()
    found: set[str] = set()
    with graph.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position = content.find(_LOCATION)
        while position >= 0:
            start = position + len(_LOCATION) + 1
            length = content[start - 1] if start <= len(content) else 0  # longer ones have a byte above 127 here
            found.add(content[start : start + length].decode("utf-8", "replace"))
            position = content.find(_LOCATION, start)
    return found


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
