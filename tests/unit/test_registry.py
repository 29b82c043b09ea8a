"""Looking up declarations."""

import pytest
from samples import embedding, model

from llmrec_plugin.errors import UnknownNameError
from llmrec_plugin.registry import Catalogue, PluginFailure, Provenance, Registered

PLUGIN = Provenance("films", "film-features", "1.2")


@pytest.fixture
def catalogue():
    return Catalogue(
        features={"item_title_embedding": Registered(embedding(), PLUGIN)}, models={"tiny": Registered(model(), PLUGIN)}
    )


def test_declarations_are_found_by_name(catalogue):
    assert catalogue.feature("item_title_embedding") == embedding()
    assert catalogue.model("tiny") == model()


def test_an_unknown_name_suggests_a_near_one(catalogue):
    with pytest.raises(
        UnknownNameError, match=r"No feature is named 'item_titel_embedding'\. Did you mean 'item_title"
    ):
        catalogue.feature("item_titel_embedding")
    with pytest.raises(UnknownNameError, match=r"No model is named 'tinny'\. Did you mean 'tiny'"):
        catalogue.model("tinny")


def test_an_empty_catalogue_says_so():
    with pytest.raises(UnknownNameError, match="Known: none"):
        Catalogue().feature("x")


def test_a_failure_tells_plugin_version_hook_and_cause():
    failure = PluginFailure(PLUGIN, "llmrec_register_features", "ValueError: no")
    assert str(failure) == "plugin 'films' (film-features 1.2), llmrec_register_features: ValueError: no"
