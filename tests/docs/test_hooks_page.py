"""docs/hooks.md and hookspecs.py say the same."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import click
import pytest

from llmrec_plugin import hookspecs
from llmrec_plugin.generation import Generator
from llmrec_plugin.inference import Runtime
from llmrec_plugin.specs import Feature, Model

PAGE = (Path(__file__).parents[2] / "docs/hooks.md").read_text(encoding="utf-8")
HOOKS = {name: value for name, value in vars(hookspecs).items() if name.startswith("llmrec_")}
SECTIONS = dict(re.findall(r"^## (llmrec_.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
TYPES = {"Feature": Feature, "Model": Model, "Runtime": Runtime, "Generator": Generator, "click": click}


def signature(name):
    return name + str(inspect.signature(HOOKS[name])).replace("'", "")


def words(text):
    """The text without line breaks, and without the marks of code, which docstrings and pages write differently."""
    return " ".join(text.replace("`", "").split())


def sentences(text):
    return re.split(r"(?<=[.])\s+", words(text))


def parts(name):
    """The paragraphs of a hook's docstring: what it does, when it is called, what it returns, what errors do."""
    summary, called, returned, errors = inspect.getdoc(HOOKS[name]).split("\n\n")
    return summary, called, returned.removeprefix("Returns:\n"), errors


def test_the_page_has_the_hooks_with_their_signatures_in_their_order():
    assert list(SECTIONS) == [signature(name) for name in HOOKS]


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_introduced_by_the_words_of_its_specification(name):
    summary, called, _, _ = parts(name)
    introduction = words(SECTIONS[signature(name)].partition("```")[0])
    assert introduction.startswith(words(summary)), introduction
    for sentence in sentences(called):
        assert sentence in introduction, sentence


@pytest.mark.parametrize("name", HOOKS)
def test_the_page_names_every_type_that_a_hook_may_return(name):
    returned = typing.get_type_hints(HOOKS[name], localns={**vars(hookspecs), **TYPES})["return"]
    [item] = typing.get_args(returned)
    section = signature(name) + SECTIONS[signature(name)]
    for kind in typing.get_args(item) or (item,):
        assert kind.__name__ in section, kind


@pytest.mark.parametrize("name", HOOKS)
def test_the_page_names_every_argument(name):
    for argument in inspect.signature(HOOKS[name]).parameters:
        assert f"`{argument}`" in SECTIONS[signature(name)]


def test_what_holds_for_all_hooks_is_said_once():
    introduction = words(PAGE.partition("\n## ")[0])
    assert "Hooks are called once per plugin" in introduction
    assert "Two plugins that declare one name are an error that names both" in introduction
    for name in HOOKS:
        _, called, returned, errors = parts(name)
        assert called.startswith("Called once per plugin"), name
        assert words(returned).endswith("A name that another plugin declares too is an error naming both."), name
        assert "is reported with the plugin's name, version and this hook" in words(errors), name


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_an_example_runs_and_returns_declarations(block):
    namespace = {}
    exec(block, namespace)
    hooks = [value for name, value in namespace.items() if name.startswith("llmrec_register")]
    assert hooks
    assert all(hook() for hook in hooks)
