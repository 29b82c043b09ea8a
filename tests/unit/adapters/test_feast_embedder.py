"""Features behind Feast's own embedding interfaces, called by Feast."""

import asyncio

import numpy as np
import pandas as pd
import pytest
from feast import FeatureStore, RepoConfig, embedder
from feast.doc_embedder import DocEmbedder
from samples import embedding, labelled

from llmrec_plugin.adapters import FeatureEmbedder, FeatureEmbeddingProvider
from llmrec_plugin.errors import DeclarationError, InputError, UnknownNameError

if not hasattr(embedder, "EmbeddingProvider"):
    pytest.skip("Feast 0.65 has no EmbeddingProvider", allow_module_level=True)
from feast.embedder import BaseEmbedder, EmbeddingProvider

DOCUMENTS = pd.DataFrame({"id": [1, 2], "text": ["red web server " * 20, "a fast python library " * 20]})


class RecordingStore:
    """Takes what `DocEmbedder` writes."""

    def write_to_online_store(self, feature_view_name, df):
        self.written = feature_view_name, df


class View:
    """A feature view without fields."""

    entity_columns = features = schema = ()

    def __init__(self, name):
        self.name = name


class Answer:
    """A search that found nothing."""

    def to_dict(self):
        return {}


@pytest.fixture
def document_embedder(tmp_path):
    made = DocEmbedder(
        repo_path=str(tmp_path),
        feature_view_name="passages",
        embedder=FeatureEmbedder(embedding()),
        create_feature_view=True,
        auto_apply_repo=False,
    )
    made.store = RecordingStore()
    return made


def test_documents_are_embedded_with_the_feature_s_numbers(document_embedder, vectors_of):
    frame = document_embedder.embed_documents(DOCUMENTS, id_column="id", source_column="text")
    np.testing.assert_array_equal(np.float32(frame["embedding"].tolist()), vectors_of(frame["text"].tolist()))
    name, written = document_embedder.store.written
    assert name == "passages"
    assert written is frame


def test_the_view_that_feast_generates_has_the_feature_s_length(document_embedder, tmp_path):
    assert "vector_length=8" in (tmp_path / "passages.py").read_text()


def test_each_modality_has_its_feature_or_a_handler_of_the_user(vectors_of):
    embedder = FeatureEmbedder({"text": embedding(), "query": embedding(prefix="red ")})
    assert isinstance(embedder, BaseEmbedder)
    np.testing.assert_array_equal(embedder.embed(["web"], "text"), vectors_of(["web"]))
    np.testing.assert_array_equal(embedder.embed(["web"], "query"), vectors_of(["red web"]))
    embedder.register_modality("count", lambda inputs: np.ones((len(inputs), 1)))
    assert embedder.embed([1, 2], "count").shape == (2, 1)
    assert [embedder.get_embedding_dim(name) for name in ("text", "count")] == [8, None]
    with pytest.raises(UnknownNameError, match="No modality is named 'image'"):
        embedder.embed(["a.png"], "image")


@pytest.mark.parametrize(
    ("feature", "message"),
    [(embedding(text="{title} {brand}"), "'title', 'brand'"), (labelled(), "has no vectors")],
)
@pytest.mark.parametrize("adapter", [FeatureEmbedder, FeatureEmbeddingProvider])
def test_features_that_embed_no_single_text_are_refused(adapter, feature, message):
    with pytest.raises(DeclarationError, match=message):
        adapter(feature)


@pytest.mark.parametrize("embed", [FeatureEmbedder(embedding()).embed, lambda inputs, _: provider().embed(inputs)])
def test_an_input_without_a_vector_is_an_error(embed):
    with pytest.raises(InputError, match="no vector for 1 of 2 inputs, the first is number 1"):
        embed(["red", " "], "text")


def provider():
    return FeatureEmbeddingProvider(embedding())


def test_queries_are_embedded_with_the_feature_s_numbers(vectors_of):
    assert isinstance(provider(), EmbeddingProvider)
    expected = vectors_of(["red web", "font"]).tolist()
    assert provider().embed(["red web", "font"]) == expected
    assert asyncio.run(provider().aembed(["red web", "font"])) == expected


def test_feast_s_search_by_text_asks_the_provider(tmp_path, monkeypatch, vectors_of):
    registry = str(tmp_path / "registry.db")
    config = RepoConfig(project="p", provider="local", registry=registry, entity_key_serialization_version=3)
    store = FeatureStore(config=config, embedding_provider=provider())
    asked = []

    monkeypatch.setattr(store, "get_feature_view", View)
    monkeypatch.setattr(store, "retrieve_online_documents_v2", lambda **given: asked.append(given) or Answer())
    found = asyncio.run(store.openai_search("items", "red web server", features_to_retrieve=["title"]))
    assert found["data"] == []
    assert asked[0]["query"] == vectors_of(["red web server"])[0].tolist()
