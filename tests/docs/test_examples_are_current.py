"""Examples name what exists: modules, names, arguments, commands, options and variables."""

import ast
import importlib
import inspect
import re
import shlex

import click
import public_api
import pytest
from docs.pages import PAGES, ROOT, blocks, commands, name_of, read

from llmrec_plugin.cli import main

HEAVY = ("llmrec_plugin.feast", "llmrec_plugin.adapters", "llmrec_plugin.export", "llmrec_plugin.training")
"""Their libraries take seconds to import; what is imported from them is looked up in their sources."""
OTHERS = {"LLMREC_HOME"} | {f"LLMREC_{name}" for name in ("OPENAI", "REMOTE", "BATCH")}
COMMANDS = [(page, line) for page in PAGES for line in commands(page)]


def imported(tree):
    """Each ``from llmrec_plugin... import name`` of an example: module, name, and what the example calls it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "llmrec_plugin":
            yield from ((node.module, item.name, item.asname or item.name) for item in node.names)


def exists(module, name):
    place = ROOT.joinpath(*module.split("."))
    if (place / f"{name}.py").is_file() or (place / name).is_dir():
        return True
    return public_api._find(module, name) is not None


def check_names(block):
    tree = ast.parse(block)
    for module, name, _ in imported(tree):
        assert exists(module, name), f"{module} has no {name}"
    light = {called: (module, name) for module, name, called in imported(tree) if not module.startswith(HEAVY)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in light:
            module, name = light[node.func.id]
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            called = getattr(importlib.import_module(module), name)
            if keywords:  # errors, which have none, have no signature either
                inspect.signature(called).bind_partial(**keywords)


def check_command(line):
    """Parses a command line as `llmrec` would, without running it and without looking for files."""
    command, arguments = main, shlex.split(line, comments=True)[1:]
    arguments = list(until(arguments, ("|", "||", ">", "&&", ";")))
    context = click.Context(main, info_name="llmrec")
    while True:
        values, rest, _ = command.make_parser(context).parse_args(list(arguments))
        for parameter in command.params:
            given = values.get(parameter.name)
            if parameter.required and given in (None, ()):
                raise click.MissingParameter(ctx=context, param=parameter)
            if isinstance(parameter.type, click.Choice) and isinstance(given, str) and given.isascii():
                parameter.type.convert(given, parameter, context)
        if not isinstance(command, click.Group):
            assert not rest, f"too many arguments: {rest}"
            return
        if not rest:
            return
        name, command, arguments = command.resolve_command(context, rest)
        context = click.Context(command, info_name=name, parent=context)


def until(items, ends):
    for item in items:
        if item in ends:
            return
        yield item


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_examples_name_what_exists(page):
    for block in blocks(page, "python"):
        check_names(block)


def test_command_lines_are_found():
    assert len(COMMANDS) > 50


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value.stem)
def test_command_lines_are_ones_that_llmrec_takes(page, line):
    line = re.sub(r"<[^>]*>", "PLACE", line)
    check_command(line)


@pytest.mark.parametrize(
    "block",
    [
        "from llmrec_plugin import EmbedingFeature",
        "from llmrec_plugin.feast import publsh",
        "from llmrec_plugin.nothing import publish",
        "from llmrec_plugin import Tags\nTags(vocabulry=('a',))",
    ],
)
def test_a_stale_python_example_is_seen(block):
    with pytest.raises((AssertionError, TypeError, FileNotFoundError)):
        check_names(block)


@pytest.mark.parametrize(
    "line", ["llmrec exprt x", "llmrec plan --no-such", "llmrec train bert4rec", "llmrec export a b"]
)
def test_a_stale_command_is_seen(line):
    with pytest.raises((AssertionError, click.UsageError)):
        check_command(line)


def test_every_variable_that_pages_name_is_read_by_the_code():
    code = "".join(read(path) for path in (ROOT / "llmrec_plugin").rglob("*.py"))
    documented = {name for page in PAGES for name in re.findall(r"LLMREC_[A-Z]+(?:_[A-Z]+)*", read(page))}
    assert {name for name in documented - OTHERS if name not in code} == set()
