"""What ``llmrec new-plugin`` refuses and writes; tests/integration/test_author_path.py installs and runs it."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

import llmrec_plugin
from llmrec_plugin import EmbeddingFeature, GeneratorModel, Tags, TokenFeature
from llmrec_plugin.cli import main
from llmrec_plugin.errors import DeclarationError, NameCollisionError
from llmrec_plugin.manager import Manager
from llmrec_plugin.registry import Catalogue, Provenance, Registered
from llmrec_plugin.scaffold import writing
from llmrec_plugin.scaffold.writing import NewPlugin
from llmrec_plugin.testing.declarations import find_declarations

NOTHING = Catalogue(features={}, models={}, runtimes={}, generators={}, plugins=(), failures=(), disabled=())


@pytest.fixture
def import_from(monkeypatch):
    """Puts a folder on the module search path."""
    return lambda folder: monkeypatch.syspath_prepend(str(folder))


def test_the_names_follow_from_one():
    plugin = NewPlugin(name="film-moods", entity="film", column="plot")
    assert (plugin.package, plugin.module) == ("llmrec-film-moods", "llmrec_film_moods")
    assert plugin.feature == "film_plot_embedding"
    assert NewPlugin(name="llmrec-film-moods", entity="film", column="plot") == plugin


@pytest.mark.parametrize("name", ["", "Acme", "9lives", "a_b", "a--b", "-a", "a-", "llmrec-", "ä", "a/b", "..", "a b"])
def test_a_name_that_pip_or_python_would_change_is_refused(name):
    with pytest.raises(DeclarationError, match=r"must be lower-case letters and digits.*as in 'acme'"):
        NewPlugin(name=name)


@pytest.mark.parametrize("value", ["", "class", "two words", "1st", "a-b"])
@pytest.mark.parametrize("what", ["entity", "column"])
def test_an_entity_or_column_that_is_no_identifier_is_refused(what, value):
    with pytest.raises(DeclarationError, match=f"The {what} must be a Python identifier.*got '{value}'"):
        NewPlugin(name="acme", **{what: value})


def _catalogue(**changes):
    return Catalogue(**{**{name: getattr(NOTHING, name) for name in vars(NOTHING)}, **changes})


def test_names_that_are_taken_are_refused():
    other = Provenance("acme", "acme-shop", "3.1")
    feature = next(iter(find_declarations(_plugin_of(NewPlugin(name="other"))).features.values()))
    NewPlugin(name="acme").check_free(NOTHING)
    taken = [
        ("acme", _catalogue(plugins=(other,)), r"plugin 'acme' \(acme-shop 3.1\) is installed"),
        ("acme", _catalogue(disabled=("acme",)), "disabled by LLMREC_DISABLE_PLUGINS"),
        ("new", _catalogue(features={feature.name: Registered(feature, other)}), "declares 'item_title_embedding'"),
        ("plugin", NOTHING, "A module 'llmrec_plugin' can be imported here already"),
    ]
    for name, catalogue, message in taken:
        with pytest.raises(NameCollisionError, match=message):
            NewPlugin(name=name).check_free(catalogue)


def _plugin_of(plugin):
    """The plugin module that would be written, run in memory."""
    module = ModuleType(f"{plugin.module}_in_memory")
    exec(compile(plugin.files()[f"{plugin.module}/plugin.py"], module.__name__, "exec"), vars(module))
    return module


def test_the_embedding_kind_declares_a_vector_of_the_column():
    [feature] = find_declarations(_plugin_of(NewPlugin(name="acme", entity="film", column="plot"))).features.values()
    assert isinstance(feature, EmbeddingFeature)
    assert (feature.name, feature.entity, feature.columns) == ("film_plot_embedding", "film", ("plot",))


def test_the_generator_kind_declares_tags_a_prompt_and_a_generator(tmp_path, monkeypatch, import_from):
    plugin = NewPlugin(name="scaffold-test", kind="generator", entity="film", column="plot")
    root = plugin.write(tmp_path)
    import_from(root)
    monkeypatch.setenv("SCAFFOLD_TEST_MODEL", str(tmp_path))
    declared = find_declarations("llmrec_scaffold_test.plugin")
    assert declared.problems == ()
    [feature], [model] = declared.features.values(), declared.models.values()
    assert isinstance(feature, TokenFeature)
    assert isinstance(feature.output, Tags)
    assert feature.columns == ("plot",)
    assert isinstance(model, GeneratorModel)
    assert (model.name, model.source) == (feature.model, f"path:{tmp_path}")


@pytest.mark.parametrize("kind", ["embedding", "generator"])
def test_nothing_is_left_to_fill_in(kind):
    plugin = NewPlugin(name="acme", kind=kind)
    for path, text in plugin.files().items():
        assert "$" not in (path + text).replace("export ACME_MODEL", "")
        assert text == "" or text.endswith("\n")
        if path.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(plugin.files()["pyproject.toml"])
    assert project["project"]["name"] == "llmrec-acme"
    assert project["project"]["entry-points"]["llmrec_plugin"] == {"acme": "llmrec_acme.plugin"}
    data = project["tool"]["setuptools"]["package-data"]["llmrec_acme"]
    assert ("prompts/*.md" in data) is (kind == "generator")


def test_the_command_writes_a_folder_once(tmp_path):
    def call(*arguments):
        return CliRunner().invoke(main, ["new-plugin", *arguments, "--folder", str(tmp_path)])

    done = call("acme")
    assert done.exit_code == 0, done.output
    written = sorted(str(path) for path in (tmp_path / "llmrec-acme").rglob("*") if path.is_file())
    assert [line for line in done.output.splitlines() if line in written] == written
    (tmp_path / "llmrec-acme" / "README.md").write_text("mine")
    again = call("acme", "--kind", "generator")
    assert again.exit_code == 1
    assert "exists. Move it away" in again.output
    assert (tmp_path / "llmrec-acme" / "README.md").read_text() == "mine"
    assert call("minilm").exit_code == 1
    assert not (tmp_path / "llmrec-minilm").exists()
    assert call("acme", "--kind", "poem").exit_code == 2


def test_a_written_plugin_registers_without_a_failure():
    manager = Manager()
    manager.register(_plugin_of(NewPlugin(name="acme")), Provenance("acme", "llmrec-acme", "0.1.0"))
    assert manager.collect().failures == ()


def test_every_template_is_in_the_wheel():
    templates = Path(writing.__file__).parent / "templates"
    assert {file.suffix for file in templates.rglob("*") if file.is_file()} == {".tmpl"}
    project = tomllib.loads((Path(llmrec_plugin.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["package-data"]["llmrec_plugin.scaffold"] == ["templates/**/*.tmpl"]
