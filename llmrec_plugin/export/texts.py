"""The texts that reduced models are calibrated and measured on, never the same ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from llmrec_plugin.errors import InputError

MIN_TEXTS = 100
"""Below, ten neighbors are a tenth of all texts, and finding them says little."""

MAX_TEXTS = 2_000
"""Enough to tell 0.98 from 0.975; more would only take longer. Taken evenly from a longer file."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts of one kind.

    Attributes:
        calibration: Texts to look at while a model is reduced.
        measurement: Texts to measure the result on.
        origin: Where they came from, for people.
    """

    calibration: tuple[str, ...]
    measurement: tuple[str, ...]
    origin: str

    @property
    def sha256(self) -> str:
        """64 hex digits over both lists."""
        return sha256("\n".join((*self.calibration, "", *self.measurement)).encode("utf-8", "replace")).hexdigest()


def builtin_texts() -> Texts:
    """800 short English texts about software; measure on your own, if you can."""
    content = resources.files("llmrec_plugin.export").joinpath("packages.txt").read_text(encoding="utf-8")
    lines = [line for line in content.split("\n") if line and not line.startswith("# ")]
    return split(lines, f"{len(lines)} built-in texts about software, which may differ from yours")


def read_texts(path: Path) -> Texts:
    """The texts in a file: one a line or, in ``.jsonl`` files, ``text`` (else ``description``) of one object a line.

    Either may be compressed (``.gz``). Empty lines and repetitions are left out.

    Raises:
        InputError: The file cannot be read, a line is no such object, or there are fewer than `MIN_TEXTS` texts.
    """
    name = path.name.removesuffix(".gz")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = [line.rstrip("\r") for line in content.decode("utf-8").split("\n")]
        if name.endswith(".jsonl"):
            lines = [_text(json.loads(line)) for line in lines if line]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as exc:
        raise InputError(
            f"{path} cannot be read as texts: {exc!r}. Expected UTF-8 with one text a line or, in a .jsonl file, one "
            'object a line such as {"text": "..."}; either may be compressed (.gz).'
        ) from exc
    lines = [line for line in dict.fromkeys(lines) if line.strip()]
    if len(lines) < MIN_TEXTS:
        raise InputError(f"{path} holds {len(lines)} different texts, expected at least {MIN_TEXTS}. Give more texts.")
    return split(lines, path.name)


def split(lines: Sequence[str], origin: str) -> Texts:
    """Every second text calibrates, the others measure."""
    stride = -(-len(lines) // MAX_TEXTS)
    return Texts(calibration=tuple(lines[::stride][::2]), measurement=tuple(lines[::stride][1::2]), origin=origin)


def _text(row: dict[str, Any]) -> str:
    value = row["text"] if "text" in row else row["description"]
    if value is not None and not isinstance(value, str):
        raise TypeError(f"a text must be a string, got {value!r}")
    return value or ""
