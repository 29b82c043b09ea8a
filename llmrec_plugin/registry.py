"""The catalogue: every collected declaration, with the plugin it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

import click

from llmrec_plugin.errors import UnknownNameError
from llmrec_plugin.generation import Generator
from llmrec_plugin.inference import Runtime
from llmrec_plugin.specs import Feature, Model

T = TypeVar("T", bound="Feature | Model | Runtime | Generator | click.Command")


@dataclass(frozen=True)
class Provenance:
    """Where a declaration came from."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        if not self.version:  # declared in a file of the feature repo
            return f"the {self.plugin} ({self.distribution})"
        return f"plugin {self.plugin!r} ({self.distribution} {self.version})"


@dataclass(frozen=True)
class Registered(Generic[T]):
    """A declaration and its origin."""

    declaration: T
    provenance: Provenance


@dataclass(frozen=True)
class PluginFailure:
    """A plugin, or one of its hooks, that could not be used.

    Attributes:
        provenance: The plugin.
        hook: The hook that failed, or ``import``.
        cause: What went wrong, in one line.
    """

    provenance: Provenance
    hook: str
    cause: str

    def __str__(self) -> str:
        return f"{self.provenance}, {self.hook}: {self.cause}"


@dataclass(frozen=True)
class Catalogue:
    """All declarations of all plugins, by name, and the plugins that failed.

    Attributes:
        features: Features by name.
        models: Models by name.
        runtimes: Runtimes by name; ONNX Runtime, which is built in, is not among them.
        generators: Engines that write text by name; ONNX Runtime is not among them.
        plugins: Every plugin that was found and not disabled, whether or not it works.
        failures: What could not be used, and why.
        disabled: Names of plugins that the settings switch off.
    """

    features: Mapping[str, Registered[Feature]] = field(default_factory=lambda: MappingProxyType({}))
    models: Mapping[str, Registered[Model]] = field(default_factory=lambda: MappingProxyType({}))
    runtimes: Mapping[str, Registered[Runtime]] = field(default_factory=lambda: MappingProxyType({}))
    generators: Mapping[str, Registered[Generator]] = field(default_factory=lambda: MappingProxyType({}))
    plugins: tuple[Provenance, ...] = ()
    failures: tuple[PluginFailure, ...] = ()
    disabled: tuple[str, ...] = ()

    def feature(self, name: str) -> Feature:
        """The feature of that name.

        Raises:
            UnknownNameError: There is none; the message suggests near names.
        """
        if name not in self.features:
            raise UnknownNameError("feature", name, self.features)
        return self.features[name].declaration

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises:
            UnknownNameError: There is none; the message suggests near names.
        """
        if name not in self.models:
            raise UnknownNameError("model", name, self.models)
        return self.models[name].declaration
