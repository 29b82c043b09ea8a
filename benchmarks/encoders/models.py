"""One model in the forms that the engines load."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.encoders.environments import InstallError
from llmrec_plugin import artifacts, manifests
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import ArtifactNotFoundError, LLMRecError
from llmrec_plugin.export import export_model
from llmrec_plugin.export.sources import find_folder
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.settings import load_settings


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where the forms of a model are, and its shape.

    Attributes:
        name: Name of the model and of its artifact.
        folder: Hugging Face folder with safetensors weights.
        onnx: The same with ``onnx/model.onnx``, which ends in token vectors, and the length in the tokenizer's files.
        graph: Our artifact's graph, with pooling and normalization.
        tokenizer: Our artifact's tokenizer.
        max_tokens: Longest input in tokens, special tokens included.
        dims: Length of a vector.
        config: The model's config.json.
    """

    name: str
    folder: Path
    onnx: Path
    graph: Path
    tokenizer: Path
    max_tokens: int
    dims: int
    config: dict[str, Any]

    def options(self) -> dict[str, Any]:
        """What every adapter may take, as JSON can hold it."""
        return {
            "model": str(self.folder),
            "onnx": str(self.onnx),
            "graph": str(self.graph),
            "artifact": self.name,
            "max_tokens": self.max_tokens,
            "dims": self.dims,
        }


def prepare(name: str, folder: Path) -> Model:
    """Exports the model where it is not exported yet, for us and for the peers.

    Args:
        name: A registered model with mean pooling and vectors of unit length.
        folder: Where the peers' form is kept.

    Raises:
        SystemExit: The model has another pooling; the peers' adapters write out the mean.
    """
    store = ArtifactStore(load_settings().artifact_folders)
    try:
        artifact = store.current(name)
    except ArtifactNotFoundError:
        artifact = _export(name)
    manifest = artifact.manifest
    if (manifest.pooling, manifest.normalize) != ("mean", True):
        raise SystemExit(
            f"The peers are set up for mean pooling and unit length, got {name} with pooling={manifest.pooling!r} and "
            f"normalize={manifest.normalize}. Choose another model, or extend benchmarks/encoders/adapters."
        )
    source = find_folder(manifest.source["source"])
    onnx = folder / "models" / artifact.id[:16]
    if not onnx.is_dir():
        _export_for_peers(source, onnx, manifest.max_tokens)
    return Model(
        name=name,
        folder=source,
        onnx=onnx,
        graph=artifact.path(manifests.GRAPH),
        tokenizer=artifact.path(manifests.TOKENIZER),
        max_tokens=manifest.max_tokens,
        dims=manifest.dims,
        config=json.loads((source / "config.json").read_text(encoding="utf-8")),
    )


def ensure(name: str) -> None:
    """Exports a registered model where it is not exported yet.

    Raises:
        InstallError: It cannot be exported here; the message says why.
    """
    try:
        ArtifactStore(load_settings().artifact_folders).current(name)
    except ArtifactNotFoundError:
        try:
            _export(name)
        except LLMRecError as exc:
            raise InstallError(f"llmrec export {name}: {exc}") from exc


def _export(name: str) -> artifacts.Artifact:
    settings = load_settings()
    model = load_catalogue(settings.disabled_plugins).model(name)
    return export_model(model, ArtifactStore(settings.artifact_folders), report=partial(print, file=sys.stderr))


def _export_for_peers(source: Path, target: Path, max_tokens: int) -> None:
    """The model as `optimum-cli export onnx --library transformers` gives it, beside the source's own files."""
    from optimum.exporters.onnx import main_export

    print(f"Exporting {source.name} for the peers", file=sys.stderr, flush=True)
    unfinished = target.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    # The model's files tell its length to sentence-transformers alone. fastembed and infinity look elsewhere.
    for name, key in (("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings")):
        values = json.loads((source / name).read_text(encoding="utf-8"))
        (unfinished / name).write_text(json.dumps({**values, key: max_tokens}, indent=2), encoding="utf-8")
    with contextlib.redirect_stdout(sys.stderr):
        main_export(
            str(source),
            unfinished / "onnx",
            task="feature-extraction",
            library_name="transformers",
            local_files_only=True,
        )
    unfinished.rename(target)
