"""``llmrec doctor`` without a feature repo: packages, providers, the cache, plugins, and exported models.

Each check names what is wrong, what comes of it, and what mends it. Those of a feature repo are in
``llmrec_plugin/feast/doctor.py``.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import ArtifactError, MissingExtraError, ProviderError
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.runtime.probing import unusable_providers
from llmrec_plugin.runtime.providers import CPU, CUDA, choose_provider
from llmrec_plugin.runtime.sealing import VARIABLE as CACHE_KEY
from llmrec_plugin.runtime.sealing import Checksum, load_seal
from llmrec_plugin.settings import load_settings
from llmrec_plugin.staleness import PACKAGE, why_stale

Level: TypeAlias = Literal["error", "warning", "note"]
Found: TypeAlias = Iterator[tuple[Level, str, str]]
"""Level, what is the case, and the fix."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or could be better.

    Attributes:
        level: ``error`` loses data or fails requests; ``warning`` may, or wastes work; ``note`` is for information.
        check: Name of the check.
        found: What is the case, and what comes of it.
        fix: What to do.
    """

    level: Level
    check: str
    found: str
    fix: str


def run_checks(checks: Iterable[Callable[..., Found]], *subject: Any) -> list[Finding]:
    """What the checks find in `subject`."""
    return [Finding(level, check.__name__, found, fix) for check in checks for level, found, fix in check(*subject)]


def examine_environment() -> list[Finding]:
    """Everything that is wrong with this environment, whatever the feature repo."""
    return run_checks(_CHECKS)


def package_versions() -> Found:
    """Python and the packages that are installed, against the versions that this package says it supports."""
    try:
        metadata = importlib.metadata.metadata(PACKAGE)
        requirements = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield "warning", f"{PACKAGE} runs from a folder that is not installed: no plugin is found.", "pip install -e ."
        return
    supported = metadata["Requires-Python"] or ""
    if not _within(platform.python_version(), supported):
        yield (
            "error",
            f"This is Python {platform.python_version()}; {PACKAGE} supports {supported}.",
            f"Make an environment with Python {supported}.",
        )
    for name, (specifier, needed) in sorted(_ranges(requirements).items()):
        version = _version(name)
        if version is None and needed:
            yield "error", f"{name} is not installed, and {PACKAGE} needs it.", f'pip install "{name}{specifier}"'
        if version is not None and not _within(version, specifier):
            yield (
                "error" if needed else "warning",
                f"{name} {version} is installed; {PACKAGE} was tested with {specifier}.",
                f'pip install "{name}{specifier}"',
            )


def onnxruntime_packages() -> Found:
    """Packages that own the module onnxruntime: there must be one."""
    installed = sorted(set(importlib.metadata.packages_distributions().get("onnxruntime", ())))
    if len(installed) > 1:
        yield (
            "error",
            f"{' and '.join(installed)} are all installed; they own the same files, and which wins is chance.",
            f"pip uninstall {' '.join(installed)}, then install llmrec-plugin[cpu] or llmrec-plugin[gpu].",
        )
    if not installed:
        yield "error", "No onnxruntime is installed: nothing can be computed.", 'pip install "llmrec-plugin[cpu]"'


def providers() -> Found:
    """Providers of ONNX Runtime that do not compute what they are given."""
    device = load_settings().device
    try:
        choose_provider(device)
        unusable = list(unusable_providers())
    except ProviderError as exc:
        yield "error", str(exc), "See the message."
        return
    except MissingExtraError:  # see `onnxruntime_packages`
        return
    for provider, reason in unusable:
        level: Level = "error" if provider == CPU else "warning" if provider == CUDA else "note"
        yield (
            level,
            f"ONNX Runtime offers {provider}, but it does not compute here: {reason}.",
            "Reinstall onnxruntime." if provider == CPU else "Mend that, or leave it: LLMREC_DEVICE=cpu never uses it.",
        )


def cache_folder() -> Found:
    """A cache that cannot be written."""
    folder = load_settings().cache_folder
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        yield (
            "error",
            f"The cache folder {folder} cannot be written: every text is computed again, and no ledger is kept.",
            "Set LLMREC_CACHE to a folder on a local disk that this user may write.",
        )


def other_caches() -> Found:
    """Value caches that this environment does not use: in the clear beside an encrypted one, or of other keys."""
    folder = load_settings().cache_folder
    others = {path.name for path in folder.glob("values*.sqlite")} - {load_seal().file}
    if Checksum.file in others:
        yield (
            "warning",
            f"Values are encrypted ({CACHE_KEY}), and {folder / Checksum.file} still holds earlier ones in the clear.",
            f"Stop the processes that use it and delete {Checksum.file}*; values are computed again when asked for.",
        )
    for name in sorted(others - {Checksum.file}):
        yield (
            "note",
            f"{folder / name} is encrypted with another key than this environment's, and not read.",
            f"If no process has that key any more, delete {name}*.",
        )


def plugins() -> Found:
    """Plugins, or hooks of theirs, that cannot be used."""
    for failure in load_catalogue(load_settings().disabled_plugins).failures:
        origin = failure.provenance
        yield (
            "error",
            f"A plugin is not used: {failure}",
            f"Install another version of {origin.distribution}, or set LLMREC_DISABLE_PLUGINS={origin.plugin}.",
        )


def exported_models() -> Found:
    """Current artifacts that are missing, damaged, or not what is declared."""
    settings = load_settings()
    store, catalogue = ArtifactStore(settings.artifact_folders), load_catalogue(settings.disabled_plugins)
    pointers = {path.parent.name for folder in store.folders for path in folder.glob("*/current")}
    for name in sorted(pointers):
        try:
            artifact = store.find(name, store.current_id(name))
            artifact.verify()
        except ArtifactError as exc:
            yield "error", f"The current artifact of model {name} cannot be used: {exc}", f"llmrec export {name}"
            continue
        item = catalogue.models.get(name)
        reasons = why_stale(artifact, item.declaration if item else None, catalogue)
        if reasons:
            yield (
                "warning",
                f"Model {name} is stale: {'; '.join(reasons)}.",
                f"llmrec export {name}, then `feast apply` and materialize.",
            )


_CHECKS: tuple[Callable[[], Found], ...] = (
    package_versions,
    onnxruntime_packages,
    providers,
    cache_folder,
    other_caches,
    plugins,
    exported_models,
)


_DEVELOPMENT = 'extra == "dev"'


def _ranges(requirements: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Package -> the versions that are supported, and whether it is needed without any extra."""
    found: dict[str, tuple[str, bool]] = {}
    for requirement in requirements:
        text, _, marker = requirement.partition(";")
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*\(?([^)]*)\)?", text.strip())
        if match is None or match[1] == PACKAGE or _DEVELOPMENT in marker:
            continue
        needed = "extra" not in marker
        if match[1] not in found or needed:
            found[match[1]] = (match[2].strip(), needed)
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _within(version: str, specifier: str) -> bool:
    """Whether a release lies in a range such as ``>=1.2,<2``, the only form this project writes."""
    for part in filter(None, (item.strip() for item in specifier.split(","))):
        match = re.match(r"(>=|<=|==|!=|<|>)\s*([0-9.]+)", part)
        if match is None:
            continue
        given, bound = _release(version, match[2])
        holds = {
            ">=": given >= bound,
            "<=": given <= bound,
            "==": given == bound,
            "!=": given != bound,
            "<": given < bound,
            ">": given > bound,
        }
        if not holds[match[1]]:
            return False
    return True


def _release(version: str, bound: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both as numbers, of equal length."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    given, other = ([int(part) for part in text.strip(".").split(".")] for text in (match[0] if match else "0", bound))
    length = max(len(given), len(other))
    return tuple(given + [0] * (length - len(given))), tuple(other + [0] * (length - len(other)))
