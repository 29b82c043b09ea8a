"""Finding plugins and asking each for its declarations."""

from types import SimpleNamespace

import pytest
from samples import embedding, match, model

from llmrec_plugin import hookimpl
from llmrec_plugin.errors import NameCollisionError
from llmrec_plugin.manager import ENTRY_POINT_GROUP, Manager, load_catalogue
from llmrec_plugin.registry import Provenance


class Plugin:
    """A plugin that declares what it is given."""

    def __init__(self, features=(), models=()):
        self.features, self.models = features, models

    @hookimpl
    def llmrec_register_features(self):
        return self.features

    @hookimpl
    def llmrec_register_models(self):
        return self.models


GOOD = [embedding(name="good_embedding")]


def entry_point(name, plugin, *, distribution="pkg", version="1.0"):
    """Stands for what an installed package names; `plugin` is loaded, or raised if it is an exception."""

    def load():
        if isinstance(plugin, BaseException):
            raise plugin
        return plugin

    return SimpleNamespace(
        name=name, load=load, dist=distribution and SimpleNamespace(name=distribution, version=version)
    )


def collect(*entry_points, disabled=()):
    manager = Manager(disabled)
    manager.load_entry_points(entry_points)
    return manager.collect()


def only_failure(catalogue):
    (failure,) = catalogue.failures
    return failure


def test_declarations_are_collected_with_their_origin():
    catalogue = collect(
        entry_point("b", Plugin([match()]), distribution="second", version="2.0"),
        entry_point("a", Plugin([embedding()], [model()]), distribution="first"),
    )
    assert list(catalogue.features) == ["item_title_embedding", "query_item_similarity"]
    assert catalogue.feature("item_title_embedding") == embedding()
    assert catalogue.model("tiny") == model()
    assert str(catalogue.features["query_item_similarity"].provenance) == "plugin 'b' (second 2.0)"
    assert catalogue.plugins == (Provenance("a", "first", "1.0"), Provenance("b", "second", "2.0"))
    assert (catalogue.failures, catalogue.disabled) == ((), ())


def test_a_module_or_a_namespace_may_be_a_plugin():
    @hookimpl
    def llmrec_register_features():
        yield embedding()

    catalogue = collect(entry_point("a", SimpleNamespaceModule(llmrec_register_features=llmrec_register_features)))
    assert list(catalogue.features) == ["item_title_embedding"]


class SimpleNamespaceModule(SimpleNamespace):
    __hash__ = object.__hash__  # as a module has


def test_a_plugin_may_implement_no_hook_at_all():
    catalogue = collect(entry_point("a", object()))
    assert [plugin.plugin for plugin in catalogue.plugins] == ["a"]
    assert (catalogue.features, catalogue.failures) == ({}, ())


def test_an_entry_point_of_no_known_package_is_loaded_too():
    catalogue = collect(entry_point("a", Plugin(GOOD), distribution=None))
    assert catalogue.features["good_embedding"].provenance == Provenance("a", "unknown package", "0")


def test_a_disabled_plugin_is_not_imported_and_is_listed():
    catalogue = collect(
        entry_point("bad", AssertionError("imported")), entry_point("good", Plugin(GOOD)), disabled=["bad", "absent"]
    )
    assert catalogue.disabled == ("bad",)
    assert [plugin.plugin for plugin in catalogue.plugins] == ["good"]
    assert catalogue.failures == ()


# --- plugins that fail


class Raises:
    @hookimpl
    def llmrec_register_features(self):
        raise KeyError("lost")


class RaisesHalfway:
    @hookimpl
    def llmrec_register_features(self):
        yield embedding()
        raise OSError("halfway")


class HasAnUnknownHook(Plugin):
    @hookimpl
    def llmrec_register_feature(self):
        return []


class ForgetsToReturn:
    @hookimpl
    def llmrec_register_features(self):
        [embedding()]


class HasAWrongSignature:
    """Before 1.7, pluggy accepts its first hook and then refuses the second."""

    @hookimpl
    def llmrec_register_features(self):
        return [embedding(name="refused_embedding")]

    @hookimpl
    def llmrec_register_models(self, registry):
        return []


@pytest.mark.parametrize(
    ("plugin", "hook", "cause"),
    [
        (ImportError("no torch"), "import", "ImportError: no torch"),
        (SyntaxError("oops"), "import", "SyntaxError: oops"),
        (HasAWrongSignature(), "register", "registry"),
        (HasAnUnknownHook(), "llmrec_register_feature", "Did you mean 'llmrec_register_features'"),
        (ForgetsToReturn(), "llmrec_register_features", "perhaps `return` is missing"),
        (Raises(), "llmrec_register_features", "KeyError: 'lost'"),
        (RaisesHalfway(), "llmrec_register_features", "OSError: halfway"),
        (Plugin(features=embedding()), "llmrec_register_features", "not iterable"),
        (Plugin(features="item"), "llmrec_register_features", "got an item of type str: 'i'"),
        (Plugin(features=[embedding(), model()]), "llmrec_register_features", "got an item of type EncoderModel"),
        (Plugin(models=[embedding()]), "llmrec_register_models", "NetworkModel, got an item of type EmbeddingF"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)  # fmt: skip
@pytest.mark.parametrize("name", ["a_bad", "z_bad"])
def test_a_plugin_that_fails_is_named_and_hides_no_other(name, plugin, hook, cause):
    catalogue = collect(
        entry_point("good", Plugin(GOOD)),
        entry_point(name, plugin, distribution="bad-package", version="3.1"),
        entry_point("more", Plugin([embedding(name="more_embedding")], [model()])),
    )
    failure = only_failure(catalogue)
    assert failure.provenance == Provenance(name, "bad-package", "3.1")
    assert failure.hook == hook
    assert cause in failure.cause
    assert list(catalogue.features) == ["good_embedding", "more_embedding"]
    assert catalogue.features["good_embedding"].provenance.plugin == "good"
    assert list(catalogue.models) == ["tiny"]
    assert sorted(plugin.plugin for plugin in catalogue.plugins) == sorted(["good", "more", name])


def test_a_hook_that_works_is_heard_though_another_of_its_plugin_fails():
    catalogue = collect(entry_point("half", Plugin(features=[1], models=[model()])))
    assert only_failure(catalogue).hook == "llmrec_register_features"
    assert list(catalogue.models) == ["tiny"]


def test_a_second_plugin_of_the_same_name_is_a_failure():
    catalogue = collect(
        entry_point("same", Plugin(GOOD), distribution="first"),
        entry_point("same", Plugin([embedding(name="other_embedding")]), distribution="second"),
    )
    assert only_failure(catalogue).provenance.distribution == "second"
    assert list(catalogue.features) == ["good_embedding"]


def test_the_same_object_under_two_names_is_heard_once():
    plugin = Plugin(GOOD)
    catalogue = collect(entry_point("one", plugin), entry_point("two", plugin))
    assert only_failure(catalogue).provenance.plugin == "two"
    assert catalogue.features["good_embedding"].provenance.plugin == "one"


# --- names that collide


@pytest.mark.parametrize(
    ("plugins", "name"),
    [
        ((Plugin([embedding()]), Plugin([embedding(text="{other}")])), "item_title_embedding"),
        ((Plugin([embedding(name="x")]), Plugin([match(name="x")])), "x"),
        ((Plugin(models=[model()]), Plugin(models=[model()])), "tiny"),
    ],
)
def test_a_name_declared_by_two_plugins_is_an_error_that_names_both(plugins, name):
    with pytest.raises(NameCollisionError) as caught:
        collect(
            entry_point("a", plugins[0], distribution="first"),
            entry_point("b", plugins[1], distribution="second", version="2"),
        )
    for part in ("plugin 'a' (first 1.0)", "plugin 'b' (second 2)", repr(name), "LLMREC_DISABLE_PLUGINS"):
        assert part in str(caught.value)


def test_a_name_declared_twice_by_one_plugin_is_an_error():
    with pytest.raises(NameCollisionError, match="plugin 'a'"):
        collect(entry_point("a", Plugin([embedding(), embedding()])))


def test_disabling_one_of_two_plugins_ends_a_collision():
    catalogue = collect(entry_point("a", Plugin(GOOD)), entry_point("b", Plugin(GOOD)), disabled={"b"})
    assert list(catalogue.features) == ["good_embedding"]


def test_a_feature_and_a_model_may_share_a_name():
    catalogue = collect(entry_point("a", Plugin([embedding(name="tiny")], [model(name="tiny")])))
    assert list(catalogue.features) == list(catalogue.models) == ["tiny"]


# --- installed plugins


def test_the_shipped_model_is_an_installed_plugin():
    catalogue = load_catalogue()
    assert catalogue.failures == ()
    assert catalogue.models["all-minilm-l6-v2"].provenance.distribution == "llmrec-plugin"
    assert ENTRY_POINT_GROUP == "llmrec_plugin"


def test_an_installed_plugin_can_be_disabled():
    catalogue = load_catalogue(disabled=["minilm"])
    assert "all-minilm-l6-v2" not in catalogue.models
    assert catalogue.disabled == ("minilm",)
