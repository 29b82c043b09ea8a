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
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Generic, TypeAlias

from llmrec_plugin.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    DeclarationError,
)
from llmrec_plugin.manifests import (
    FORMAT,
    MANIFEST,
    MANIFESTS,
    AnyManifest,
    GeneratorManifest,
    Manifest,
    ManifestT,
    NetworkManifest,
)
from llmrec_plugin.networks import Tokens, Vector
from llmrec_plugin.specs import NetworkFeature, TextFeature
from llmrec_plugin.specs.checks import check_model_name

_LOCATION = b"\x0a\x08location\x12"


@dataclass(frozen=True)
class _Stored(Generic[ManifestT]):
    """An exported model in a folder."""

    folder: Path
    manifest: ManifestT

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


def _renews(new: AnyManifest, old: AnyManifest) -> bool:
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
        kind: type[AnyManifest] = MANIFESTS.get(values.get("kind"), Manifest)
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
