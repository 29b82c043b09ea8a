"""From a model's ``source`` to a local folder with safetensors weights.

    package:<module>/<folder>          inside an installed Python package, which is located but not imported
    path:<folder>                      a Hugging Face folder on this machine
    hub:<org>/<name>@<revision>        downloaded at exactly this commit

Weights are read from safetensors only: a pickle can run code when it is loaded. Code of a hub repository
is never run.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from llmrec_plugin.artifacts import sha256_file
from llmrec_plugin.errors import DeclarationError, SourceError
from llmrec_plugin.export.toolchain import require
from llmrec_plugin.model_folders import check_model_folder
from llmrec_plugin.specs import digest

ADAPTER = "adapter_config.json"
"""What a folder with an adapter holds, see llmrec_plugin.export.adapters."""
_KINDS = ("package:", "path:", "hub:")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@\w*)?\Z")
_DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model")  # configuration, weights, vocabularies
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


def as_source(place: str) -> str:
    """A bare folder or hub id written as a source; a source comes back as it is.

    Raises:
        DeclarationError: It is neither, or a hub id without a full commit.
    """
    if not place.startswith(_KINDS):
        if Path(place).is_dir():
            place = f"path:{Path(place).absolute()}"
        elif _HUB_ID.match(place):
            place = f"hub:{place}"
        else:
            raise DeclarationError(
                f"Expected a folder, a hub id such as 'org/name@<commit>' or a source starting with "
                f"{', '.join(_KINDS)}, got {place!r}, which is no folder here."
            )
    if place.startswith("hub:") and not re.search(r"@[0-9a-f]{40}\Z", place):
        raise DeclarationError(
            f"{place!r} must pin a full commit, 'hub:org/name@<40 hex digits>', so that every export reads the same "
            "weights. The hub shows it under 'Files and versions' > 'History'."
        )
    return place


def find_folder(source: str, *, adapters: bool = False) -> Path:
    """The local folder that `source` names; a hub source is downloaded first.

    Args:
        source: A source, or a bare folder or hub id.
        adapters: Whether the folder may hold an adapter instead of a whole model.

    Raises:
        SourceError: There is no such folder, package or hub revision, it holds no safetensors weights, or
            `check_model_folder` refuses it.
        MissingExtraError: A hub source, and huggingface_hub is not installed.
    """
    folder = find_place(source)
    if not (adapters and is_adapter(folder)):
        _check_weights(folder, source)
    return folder


def find_place(source: str) -> Path:
    """The local folder that `source` names, whatever it holds; a hub source is downloaded first.

    Raises:
        SourceError: There is no such folder, package or hub revision, or `check_model_folder` refuses it.
        MissingExtraError: A hub source, and huggingface_hub is not installed.
    """
    kind, _, place = as_source(source).partition(":")
    folder = {"package": _in_package, "path": _at_path, "hub": _from_hub}[kind](place)
    check_model_folder(folder)
    return folder


def find_file(source: str) -> Path:
    """The local file that a ``package:`` or ``path:`` source names.

    Raises:
        SourceError: There is no such file.
    """
    kind, _, place = as_source(source).partition(":")
    if kind == "hub":
        raise SourceError(f"{source}: expected a file, 'package:<module>/<file>' or 'path:<file>'.")
    outer, _, name = place.rpartition("/")
    folder = _in_package(outer) if kind == "package" else Path(outer or ".").expanduser()
    if not (folder / name).is_file():
        raise SourceError(f"{source}: {folder / name} does not exist.")
    return folder / name


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter, whose base model is elsewhere."""
    return (folder / ADAPTER).is_file()


def described_by(folder: Path, base: str | None) -> Path:
    """The folder whose files describe the model: `folder` itself, or that of the base if it holds an adapter.

    Raises:
        SourceError: The base is unknown or not there.
    """
    return find_folder(base_of(folder, base)) if is_adapter(folder) else folder


def base_of(folder: Path, base: str | None) -> str:
    """The source of an adapter's base model: `base` if it is given, else what the adapter names.

    Raises:
        SourceError: The adapter names none, or one that is neither a folder here nor pinned.
    """
    if base is not None:
        return as_source(base)
    config = _adapter(folder)
    named, revision = str(config.get("base_model_name_or_path") or ""), str(config.get("revision") or "")
    if named and Path(named).is_dir():
        return as_source(named)
    if named and _COMMIT.match(revision):
        return as_source(f"hub:{named}@{revision}")
    trouble = f"of {named!r}, which is no folder here and has no full commit" if named else "that names no base model"
    raise SourceError(
        f"{folder} holds an adapter {trouble}. Nothing is downloaded that is not pinned: declare "
        "base='path:<folder>' or base='hub:org/name@<40 hex digits>'."
    )


def _adapter(folder: Path) -> dict[str, Any]:
    """What an adapter states.

    Raises:
        SourceError: It is no JSON object.
    """
    try:
        stated = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except ValueError as exc:
        raise SourceError(f"{folder / ADAPTER} is no JSON: {exc}.") from exc
    if not isinstance(stated, dict):
        raise SourceError(f"{folder / ADAPTER}: expected a JSON object, got {type(stated).__name__}.")
    return stated


def weights_sha256(folder: Path) -> str:
    """The SHA-256 of the weights: of the file itself, or over the hashes of all shards."""
    hashes = {path.name: sha256_file(path) for path in sorted(folder.glob("model*.safetensors"))}
    return hashes["model.safetensors"] if list(hashes) == ["model.safetensors"] else digest(hashes)


def _in_package(place: str) -> Path:
    module, _, inner = place.partition("/")
    # A module that ships weights often imports torch, so it is only located. The specification of a
    # dotted name would import the parents; hence the top-level package and plain folders below it.
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            f"Source 'package:{place}' is inside the Python package {top!r}, which is not installed here. "
            "Install it into this environment, or declare another source."
        )
    folders = [Path(location, *below, inner) for location in spec.submodule_search_locations]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise SourceError(f"Source 'package:{place}': expected the folder {folders[0]}, which does not exist.")


def _at_path(place: str) -> Path:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise SourceError(f"Source 'path:{place}': no such folder. Give the folder that holds config.json.")
    return folder


def _from_hub(place: str) -> Path:
    hub = require("huggingface_hub")
    repository, _, revision = place.partition("@")
    try:
        folder = hub.snapshot_download(repo_id=repository, revision=revision, allow_patterns=list(_DOWNLOADED))
    except (OSError, ValueError) as exc:  # what huggingface_hub's own errors derive from
        raise SourceError(
            f"{repository} at {revision} could not be downloaded: {exc} Check the name, the commit and the network, "
            "or copy the folder here and declare 'path:<folder>'."
        ) from exc
    return Path(folder)


def _check_weights(folder: Path, source: str) -> None:
    if (folder / "base.json").is_file():  # a decoder alone, see llmrec_plugin.export.grafting
        return
    if is_adapter(folder):
        raise SourceError(
            f"{source}: {folder} holds a PEFT adapter, whose base model is elsewhere. "
            "Merge it (`merge_and_unload`, `save_pretrained`) and name the merged folder."
        )
    if not (folder / "config.json").is_file():
        raise SourceError(f"{source}: {folder} holds no config.json, so it is no Hugging Face model folder.")
    if (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file():
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    found = f"only {', '.join(pickles)}, which can run code when loaded" if pickles else "no weights in that format"
    raise SourceError(
        f"{source}: expected model.safetensors in {folder}, found {found}. Convert the weights once, where you trust "
        "them: `AutoModel.from_pretrained(folder).save_pretrained(new_folder, safe_serialization=True)`."
    )
