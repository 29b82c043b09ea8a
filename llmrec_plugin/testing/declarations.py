"""What a conformance run is about: the declarations of one plugin, or some given ones."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TypeAlias, get_args

from llmrec_plugin.errors import DeclarationError, UnknownNameError
from llmrec_plugin.manager import ENTRY_POINT_GROUP, Manager
from llmrec_plugin.registry import Catalogue, Provenance
from llmrec_plugin.specs import Feature, Model

Declaration: TypeAlias = Feature | Model
Plugin: TypeAlias = str | object | Iterable[Declaration]
"""The name of an installed plugin, of its package or its module; a plugin itself; or features and models."""


@dataclass(frozen=True)
class Declared:
    """The declarations of one plugin.

    Attributes:
        name: Of the plugin, for messages and ids.
        place: ``module`` or ``module:object``, from which a fresh process gets the plugin; empty for given
            declarations and for objects that no module holds.
        features: Its features by name.
        models: Its models by name.
        problems: Why a hook could not be used, one line each.
    """

    name: str
    place: str = ""
    features: Mapping[str, Feature] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def find_declarations(plugin: Plugin) -> Declared:
    """What `plugin` declares.

    Raises:
        UnknownNameError: No installed plugin and no module has that name; the message suggests near ones.
        DeclarationError: What was given is no plugin, or two items have one name.
    """
    if isinstance(plugin, str):
        name, place = _installed(plugin)
        return _collected(pkgutil.resolve_name(place), name, place)
    if isinstance(plugin, Iterable):
        return _given(plugin)
    name = getattr(plugin, "__name__", type(plugin).__name__)
    place = name if sys.modules.get(name) is plugin else ""
    return _collected(plugin, name.rpartition(".")[2], place)


def collect(plugin: object, name: str) -> Catalogue:
    """The catalogue of one plugin alone."""
    manager = Manager()
    manager.register(plugin, Provenance(name, "under test", "0"))
    return manager.collect()


def _installed(name: str) -> tuple[str, str]:
    """Name and place of an installed plugin, or of a module."""
    entry_points = list(metadata.entry_points(group=ENTRY_POINT_GROUP))
    for entry_point in entry_points:
        package = entry_point.dist.name if entry_point.dist else ""
        known = (entry_point.name, entry_point.value, entry_point.module, package, entry_point.module.partition(".")[0])
        if name in known[:4] or (name == known[4] and name != "llmrec_plugin"):
            return entry_point.name, entry_point.value
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name != name.partition(".")[0] and exc.name != name:
            raise
        raise UnknownNameError("installed plugin or module", name, [item.name for item in entry_points]) from exc
    return name.rpartition(".")[2], name


def _collected(plugin: object, name: str, place: str) -> Declared:
    catalogue = collect(plugin, name)
    if not (catalogue.features or catalogue.models or catalogue.runtimes or catalogue.generators or catalogue.failures):
        raise DeclarationError(
            f"Plugin {name!r} declares nothing: expected functions marked with llmrec_plugin.hookimpl, such as "
            "llmrec_register_features, that return declarations. Is it the module that the entry point names?"
        )
    return Declared(
        name,
        place,
        {key: item.declaration for key, item in catalogue.features.items()},
        {key: item.declaration for key, item in catalogue.models.items()},
        tuple(f"{failure.hook}: {failure.cause}" for failure in catalogue.failures),
    )


def _given(items: Iterable[Any]) -> Declared:
    features: dict[str, Feature] = {}
    models: dict[str, Model] = {}
    for item in items:
        known: dict[str, Any] = features if isinstance(item, get_args(Feature)) else models
        if not isinstance(item, (*get_args(Feature), *get_args(Model))):
            raise DeclarationError(f"Expected features and models to check, got {type(item).__name__}: {item!r:.80}.")
        name: str = getattr(item, "name")  # noqa: B009 - every declaration has one
        if name in known:
            raise DeclarationError(f"Two of the given declarations are named {name!r}. Rename one.")
        known[name] = item
    return Declared("given", "", features, models)
