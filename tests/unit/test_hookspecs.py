"""The hooks as a contract: names, types, words."""

import inspect

import pluggy
import pytest

from llmrec_plugin import hookspecs, manager
from llmrec_plugin.hookspecs import (
    llmrec_register_features,
    llmrec_register_generators,
    llmrec_register_models,
    llmrec_register_runtimes,
    llmrec_register_trainers,
)

HOOKS = [
    llmrec_register_features,
    llmrec_register_models,
    llmrec_register_runtimes,
    llmrec_register_generators,
    llmrec_register_trainers,
]


def test_every_hook_is_called_by_the_manager():
    plugins = pluggy.PluginManager(hookspecs.PROJECT)
    plugins.add_hookspecs(hookspecs)
    named = {name for name in vars(plugins.hook) if not name.startswith("_")}
    assert named == {hook.__name__ for hook in HOOKS} == {*manager._HOOKS, manager._TRAINERS}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_typed_documented_and_without_defaults(hook):
    signature = inspect.signature(hook)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty
        assert parameter.default is inspect.Parameter.empty
    for part in ("Called", "Returns:", "exception"):
        assert part in hook.__doc__
