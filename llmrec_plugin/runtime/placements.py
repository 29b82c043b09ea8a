"""Placements that were measured, kept in a folder."""

from __future__ import annotations

import json
import logging
import os
import platform
from dataclasses import asdict
from pathlib import Path

from llmrec_plugin.inference import Placement
from llmrec_plugin.specs import digest

logger = logging.getLogger(__name__)

_FORMAT = 1
_PROCESSOR_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags", "Features")


class PlacementStore:
    """Measured placements in a folder, one small file each.

    A folder that cannot be read or written costs a measurement, never a run.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Placement | None:
        """The placement kept under `key`."""
        try:
            values = json.loads(self._path(key).read_text(encoding="utf-8"))
            return Placement(**values["placement"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError) as exc:
            logger.warning("%s is not readable (%s); it is measured again.", self._path(key), exc)
            return None

    def put(
        self, key: str, placement: Placement, measured: dict[Placement, list[float]], about: dict[str, str]
    ) -> None:
        """Keeps the placement, and for people what was measured of which model."""
        figures = [{**asdict(item), "measured": values} for item, values in measured.items()]
        text = json.dumps({"placement": asdict(placement), **about, "candidates": figures}, indent=2)
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text + "\n", encoding="utf-8")
            os.replace(temporary, path)
        except OSError as exc:
            logger.info("Cannot keep the calibration %s (%s); it is measured again next time.", path, exc)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key[:32]}.json"


def placement_key(*parts: object) -> str:
    """A key over what decides the best placement, this machine's processor among it."""
    return digest([_FORMAT, _processor(), os.cpu_count(), *map(str, parts)])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return str({name.strip(): value for name, value in fields.items() if name.strip() in _PROCESSOR_FIELDS})
