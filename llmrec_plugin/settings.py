"""Where things lie and how this machine is to be used, read from the environment.

Nothing here changes a number: two machines with different settings give the same vectors.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from llmrec_plugin.errors import SettingsError
from llmrec_plugin.inference import Device


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of this process.

    Attributes:
        artifact_folders: Folders searched for exported models, in order; the first is written to
            (``LLMREC_ARTIFACTS``, separated like PATH; default ``$LLMREC_HOME/artifacts``).
        cache_folder: Folder of the value cache, on a local disk (``LLMREC_CACHE``; default ``$LLMREC_HOME/cache``).
        training_folder: Folder of the training tables, seen by every machine that reads them
            (``LLMREC_TRAINING``; default ``$LLMREC_CACHE/training``).
        cache_max_bytes: Bound of the value cache in bytes of stored values (``LLMREC_CACHE_MAX_BYTES``; default 8 GiB).
        device: ``cuda`` and ``tensorrt`` must be usable, ``cpu`` never looks for a GPU, ``auto`` takes CUDA where it
            works (``LLMREC_DEVICE``; default ``auto``).
        runtime: Name of the runtime that runs models; ``auto`` is ONNX Runtime or, for a precision that it does not
            have, the first that does (``LLMREC_RUNTIME``; default ``auto``).
        generator: Name of the engine that runs generators; ``auto`` is ONNX Runtime for exported models and
            ``openai`` for those behind an endpoint (``LLMREC_GENERATOR``; default ``auto``).
        threads: CPU threads for inference (``LLMREC_THREADS``; default: the CPUs this process may use, in a feature
            server that calls ``load_artifacts`` the worker's share of them less one).
        disabled_plugins: Names of plugins not to load (``LLMREC_DISABLE_PLUGINS``, separated by commas).
        max_wait_ms: How long a request to the feature server may have to wait before it is refused; None: no request is
            (``LLMREC_MAX_WAIT_MS``).
        request_threads: How many requests a worker of the feature server answers at a time, others wait; None: as many
            as Feast does, which is 40 (``LLMREC_REQUEST_THREADS``).
        nice: Steps of ``nice`` by which threads that compute stand behind the event loop of a feature server that calls
            `load_artifacts`, on Linux; 0: they do not, 20: they compute when nothing else on the machine, or in the
            container, wants to (``LLMREC_NICE``; default 5).
        progress: Whether batch runs show a progress bar and a summary line (``LLMREC_PROGRESS``, 1 or 0).
    """

    artifact_folders: tuple[Path, ...]
    cache_folder: Path
    training_folder: Path
    cache_max_bytes: int
    device: Device
    runtime: str
    generator: str
    threads: int
    disabled_plugins: frozenset[str]
    progress: bool
    max_wait_ms: int | None = None
    request_threads: int | None = None
    nice: int = 5


MAX_NICE = 19
"""The lowest priority that a thread can have beside others."""
ONLY_WHEN_IDLE = MAX_NICE + 1
"""As `Settings.nice`: behind all others."""
_VARIABLES = (
    "LLMREC_HOME",
    "LLMREC_ARTIFACTS",
    "LLMREC_CACHE",
    "LLMREC_TRAINING",
    "LLMREC_CACHE_MAX_BYTES",
    "LLMREC_DEVICE",
    "LLMREC_RUNTIME",
    "LLMREC_GENERATOR",
    "LLMREC_THREADS",
    "LLMREC_DISABLE_PLUGINS",
    "LLMREC_PROGRESS",
    "LLMREC_MAX_WAIT_MS",
    "LLMREC_REQUEST_THREADS",
    "LLMREC_NICE",
)
_HOME = ("HOME", "USERPROFILE")  # what ``~`` stands for


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings that `environ` (default: this process's environment) describes.

    Every request asks for them, so as long as nothing changes they are the same object.

    Raises:
        SettingsError: A variable holds an invalid value.
    """
    env = os.environ if environ is None else environ
    return _parse(tuple(map(env.get, _VARIABLES)), tuple(map(os.environ.get, _HOME)), _folder(), _cpus())


@functools.lru_cache(maxsize=16)
def _parse(values: tuple[str | None, ...], _home: tuple[str | None, ...], _folder: str, cpus: int) -> Settings:
    """The settings that the values of `_VARIABLES` describe.

    Args:
        values: What each variable holds.
        _home: Paths depend on it, here and in `_folder`; only looked at to know that they have not changed.
        _folder: The working directory.
        cpus: CPUs that this process may use.
    """
    env = {name: value or "" for name, value in zip(_VARIABLES, values, strict=True)}
    home = Path(env["LLMREC_HOME"] or Path.home() / ".llmrec").expanduser().absolute()
    folders = [Path(part).expanduser().absolute() for part in env["LLMREC_ARTIFACTS"].split(os.pathsep) if part]
    device = env["LLMREC_DEVICE"] or "auto"
    if device not in get_args(Device):
        raise SettingsError(f"LLMREC_DEVICE must be auto, cpu, cuda or tensorrt, got {device!r}.")
    progress = env["LLMREC_PROGRESS"] or "1"
    if progress not in ("0", "1"):
        raise SettingsError(f"LLMREC_PROGRESS must be 1 or 0, got {progress!r}.")
    nice = env["LLMREC_NICE"] or "5"
    if not nice.isdecimal() or int(nice) > ONLY_WHEN_IDLE:
        raise SettingsError(f"LLMREC_NICE must be a whole number from 0 to {ONLY_WHEN_IDLE}, got {nice!r}.")
    cache_folder = Path(env["LLMREC_CACHE"] or home / "cache").expanduser().absolute()
    return Settings(
        artifact_folders=tuple(folders) or (home / "artifacts",),
        cache_folder=cache_folder,
        training_folder=Path(env["LLMREC_TRAINING"] or cache_folder / "training").expanduser().absolute(),
        cache_max_bytes=_positive(env, "LLMREC_CACHE_MAX_BYTES", 8 * 2**30),
        device=cast(Device, device),
        runtime=env["LLMREC_RUNTIME"] or "auto",
        generator=env["LLMREC_GENERATOR"] or "auto",
        threads=_positive(env, "LLMREC_THREADS", cpus),
        disabled_plugins=frozenset(part.strip() for part in env["LLMREC_DISABLE_PLUGINS"].split(",") if part.strip()),
        progress=progress == "1",
        max_wait_ms=_positive(env, "LLMREC_MAX_WAIT_MS", 0) or None,
        request_threads=_positive(env, "LLMREC_REQUEST_THREADS", 0) or None,
        nice=int(nice),
    )


def _positive(env: Mapping[str, str], name: str, default: int) -> int:
    text = env[name]
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise SettingsError(f"{name} must be a positive integer, got {text!r}.")
    return int(text)


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was deleted; only relative paths need it, and they say so
        return ""


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
