"""Finds plugins, calls their hooks one plugin at a time, and collects what they declare.

One plugin per call, so that an error names its plugin and never hides the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Any, get_args

import click
import pluggy

from llmrec_plugin import hookspecs
from llmrec_plugin.errors import NameCollisionError, UnknownNameError
from llmrec_plugin.generation import Generator
from llmrec_plugin.inference import Runtime
from llmrec_plugin.registry import Catalogue, PluginFailure, Provenance, Registered
from llmrec_plugin.specs import Feature, Model

ENTRY_POINT_GROUP = "llmrec_plugin"
_HOOKS: dict[str, tuple[type, ...]] = {
    "llmrec_register_features": get_args(Feature),
    "llmrec_register_models": get_args(Model),
    "llmrec_register_runtimes": (Runtime,),
    "llmrec_register_generators": (Generator,),
}
_TRAINERS = "llmrec_register_trainers"  # its commands are imported for ``llmrec train`` alone


class Manager:
    """The plugins of one process.

    Args:
        disabled: Names of entry points that are not loaded.
    """

    def __init__(self, disabled: Iterable[str] = ()) -> None:
        self._pluggy = pluggy.PluginManager(hookspecs.PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._disabled = frozenset(disabled)
        self._plugins: dict[Provenance, object] = {}
        self._broken: list[Provenance] = []
        self._failures: list[PluginFailure] = []
        self._skipped: list[str] = []

    def load_entry_points(self, entry_points: Iterable[metadata.EntryPoint] | None = None) -> None:
        """Registers every plugin that an installed package names, in order of name.

        A plugin that cannot be imported is recorded as a failure.

        Args:
            entry_points: Instead of those of the installed packages.
        """
        if entry_points is None:
            entry_points = metadata.entry_points(group=ENTRY_POINT_GROUP)
        packages: dict[int, tuple[str, str]] = {}  # each look at a package's metadata parses all of it
        for entry_point in sorted(entry_points, key=lambda item: item.name):
            dist = entry_point.dist
            if id(dist) not in packages:
                packages[id(dist)] = _package(dist)
            provenance = Provenance(entry_point.name, *packages[id(dist)])
            if entry_point.name in self._disabled:
                self._skipped.append(entry_point.name)
                continue
            try:
                plugin = entry_point.load()
            except Exception as exc:  # a plugin may raise anything while it is imported
                self._fail(provenance, "import", exc)
                continue
            self.register(plugin, provenance)

    def register(self, plugin: object, provenance: Provenance) -> None:
        """Registers one plugin object; a malformed one is recorded as a failure."""
        try:
            self._pluggy.register(plugin, name=provenance.plugin)
        except Exception as exc:  # pluggy raises ValueError (same name twice) or PluginValidationError
            self._fail(provenance, "register", exc)
            return
        self._plugins[provenance] = plugin
        for caller in self._pluggy.get_hookcallers(plugin) or []:
            if not caller.has_spec():
                self._fail(provenance, caller.name, UnknownNameError("hook", caller.name, [*_HOOKS, _TRAINERS]))

    def collect(self) -> Catalogue:
        """Calls every hook of every plugin that declares data and gives back what they declare.

        Raises:
            NameCollisionError: Two plugins, or one twice, declare a feature or a model of the same name.
        """
        failures = list(self._failures)
        collected = {hook: self._call(hook, kinds, failures) for hook, kinds in _HOOKS.items()}
        return Catalogue(
            features=collected["llmrec_register_features"],
            models=collected["llmrec_register_models"],
            runtimes=collected["llmrec_register_runtimes"],
            generators=collected["llmrec_register_generators"],
            plugins=(*self._plugins, *self._broken),
            failures=tuple(failures),
            disabled=tuple(self._skipped),
        )

    def trainers(self) -> tuple[dict[str, Registered[click.Command]], tuple[PluginFailure, ...]]:
        """The commands of ``llmrec train`` by name, and the plugins whose commands cannot be used.

        Raises:
            NameCollisionError: Two plugins, or one twice, declare a command of the same name.
        """
        failures = list(self._failures)
        return self._call(_TRAINERS, (click.Command,), failures), tuple(failures)

    def _call(self, hook: str, kinds: tuple[type, ...], failures: list[PluginFailure]) -> dict[str, Registered[Any]]:
        """What the plugins return from one hook, by name; adds to `failures`."""
        found: dict[str, Registered[Any]] = {}
        for provenance, plugin in self._plugins.items():
            # All that pluggy knows: before 1.7 it keeps some hooks of a plugin that it refused.
            others = [other for other in self._pluggy.get_plugins() if other is not plugin]
            caller = self._pluggy.subset_hook_caller(hook, remove_plugins=others)
            try:
                results = caller()
                if caller.get_hookimpls() and not results:  # pluggy leaves out what is None
                    raise TypeError("returned None; expected an iterable, perhaps `return` is missing")
                items = [item for result in results for item in result]
                for item in items:
                    _check_kind(item, kinds)
            except Exception as exc:  # a hook may raise anything; the others must still be heard
                failures.append(PluginFailure(provenance, hook, _cause(exc)))
                continue
            for item in items:
                _add(found, Registered(item, provenance))
        return found

    def _fail(self, provenance: Provenance, hook: str, exc: Exception) -> None:
        self._failures.append(PluginFailure(provenance, hook, _cause(exc)))
        if provenance not in self._plugins and provenance not in self._broken:
            self._broken.append(provenance)


def load_trainers(
    disabled: Iterable[str] = (),
) -> tuple[dict[str, Registered[click.Command]], tuple[PluginFailure, ...]]:
    """The commands of ``llmrec train`` of all installed plugins but the `disabled` ones, see `Manager.trainers`.

    Raises:
        NameCollisionError: Two plugins declare a command of the same name.
    """
    manager = Manager(disabled)
    manager.load_entry_points()
    return manager.trainers()


def load_catalogue(disabled: Iterable[str] = ()) -> Catalogue:
    """The declarations of all installed plugins but the `disabled` ones.

    Raises:
        NameCollisionError: Two plugins declare the same name.
    """
    manager = Manager(disabled)
    manager.load_entry_points()
    return manager.collect()


def _package(dist: metadata.Distribution | None) -> tuple[str, str]:
    """Name and version of what is installed."""
    return (dist.name, dist.version) if dist else ("unknown package", "0")


def _check_kind(item: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(item, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"expected an iterable of {expected}, got an item of type {type(item).__name__}: {item!r:.80}")


def _add(known: dict[str, Registered[Any]], new: Registered[Any]) -> None:
    name = new.declaration.name
    if name in known:
        raise NameCollisionError(
            f"{known[name].provenance} and {new.provenance} both declare {name!r}. Disable one of them "
            "with LLMREC_DISABLE_PLUGINS, or ask its author for another name."
        )
    known[name] = new


def _cause(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"
