"""The hooks a plugin may implement. They return data; nothing is loaded or run.

A plugin is a module (or object) that an installed package names in its ``llmrec_plugin`` entry point group::

    [project.entry-points.llmrec_plugin]
    my-features = "my_package.plugin"

and that marks its functions with `llmrec_plugin.hookimpl`. Importing it must be light: declarations need
neither torch, transformers, onnxruntime nor feast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from llmrec_plugin.generation import Generator
    from llmrec_plugin.inference import Runtime
    from llmrec_plugin.specs import Feature, Model

PROJECT = "llmrec_plugin"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def llmrec_register_features() -> Iterable[Feature]:  # type: ignore[empty-body]
    """Declares features.

    Called once per plugin, when declarations are collected: by `publish` during ``feast apply`` and
    ``feast plan``, and by the command line; never while rows are served.

    Returns:
        The plugin's features, in any order. A name that another plugin declares too is an error naming both.

    An exception, or an item that is not a feature, is reported with the plugin's name, version and this
    hook; the features of other plugins are not affected.
    """


@hookspec
def llmrec_register_models() -> Iterable[Model]:  # type: ignore[empty-body]
    """Declares models that ``llmrec export`` can export and that features may name.

    Called once per plugin, together with `llmrec_register_features`.

    Returns:
        The plugin's models, in any order. A name that another plugin declares too is an error naming both.

    An exception, or an item that is not a model, is reported with the plugin's name, version and this
    hook; the models of other plugins are not affected.
    """


@hookspec
def llmrec_register_runtimes() -> Iterable[Runtime]:  # type: ignore[empty-body]
    """Declares engines that run exported models.

    Called once per plugin, when a model is loaded that ONNX Runtime is not to run: because ``LLMREC_RUNTIME`` names
    another runtime, or because the model's precision needs one. Also by the command line.

    Returns:
        The plugin's runtimes, in any order. A name that another plugin declares too is an error naming both.

    An exception, or an item that is not a runtime, is reported with the plugin's name, version and this
    hook; the runtimes of other plugins are not affected.
    """


@hookspec
def llmrec_register_generators() -> Iterable[Generator]:  # type: ignore[empty-body]
    """Declares engines that write text.

    Called once per plugin, when a generator is loaded and ``LLMREC_GENERATOR`` names another engine than ONNX Runtime;
    also by the command line.

    Returns:
        The plugin's engines, in any order. A name that another plugin declares too is an error naming both.

    An exception, or an item that is not a generator, is reported with the plugin's name, version and this
    hook; the generators of other plugins are not affected.
    """


@hookspec
def llmrec_register_trainers() -> Iterable[click.Command]:  # type: ignore[empty-body]
    """Declares commands of ``llmrec train``.

    Called once per plugin by the command line alone, when ``llmrec train`` is used. The module of a command must be as
    light as the plugin: torch is imported when the command runs.

    Returns:
        The plugin's commands, in any order. A command gets the option ``--json``, which prints what its function
        returns as JSON. A name that another plugin declares too is an error naming both.

    An exception, or an item that is not a command, is reported with the plugin's name, version and this
    hook; the commands of other plugins are not affected.
    """
