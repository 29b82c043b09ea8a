"""The folder of a trained sequence model: ``config.json``, ``items.json``, ``model.safetensors``, ``quality.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from llmrec_plugin.errors import SourceError

CONFIG, ITEMS, WEIGHTS, QUALITY = "config.json", "items.json", "model.safetensors", "quality.json"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training wrote.

    Attributes:
        config: Of the network, and ``space``.
        items: The vocabulary.
        weights: ``state_dict`` of the network, name -> tensor.
        space: Hash over weights and vocabulary, 64 hex digits; that of all networks made of this folder.
        quality: What was measured.
    """

    config: Mapping[str, Any]
    items: tuple[str, ...]
    weights: Mapping[str, Any]
    space: str
    quality: Mapping[str, Any]


def write_trained(
    folder: Path,
    config: Mapping[str, Any],
    items: Sequence[str],
    weights: Mapping[str, Any],
    quality: Mapping[str, Any],
) -> str:
    """Writes the folder; returns the space.

    Args:
        folder: Made if need be.
        config: JSON that rebuilds the network; ``system`` says which.
        items: The vocabulary.
        weights: Name -> tensor.
        quality: JSON.
    """
    from safetensors.torch import save_file  # loads torch

    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / ITEMS, list(items))
    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
    space = _space(folder)
    _write(folder / CONFIG, {**config, "space": space})
    _write(folder / QUALITY, quality)
    return space


def read_trained(folder: Path, *systems: str) -> Trained:
    """Reads what `write_trained` wrote.

    Raises:
        SourceError: A file is missing, was changed, or belongs to another system.
    """
    from safetensors.torch import load_file

    missing = [name for name in (CONFIG, ITEMS, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise SourceError(
            f"{folder}: expected the output of `llmrec train {systems[0]}`, but there is no {missing[0]}."
        )
    config = _read(folder / CONFIG)
    if config.get("system") not in systems:
        raise SourceError(f"{folder}: expected a {' or '.join(systems)} model, got {config.get('system')!r}.")
    space = _space(folder)
    if config.get("space") != space:
        raise SourceError(f"{folder}: weights and vocabulary are not those that were trained together; train again.")
    quality = _read(folder / QUALITY) if (folder / QUALITY).is_file() else {}
    return Trained(
        config=config,
        items=tuple(_read(folder / ITEMS)),
        weights=load_file(folder / WEIGHTS),
        space=space,
        quality=quality,
    )


def _space(folder: Path) -> str:
    return sha256(b"".join(sha256((folder / name).read_bytes()).digest() for name in (ITEMS, WEIGHTS))).hexdigest()


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
