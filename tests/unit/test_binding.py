"""Declarations bound to models, and the JSON in which Feast's registry carries them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import bound, embedding, history, match, query

from llmrec_plugin import specs
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import BoundSimilarity, bind, from_values, to_values
from llmrec_plugin.errors import (
    ArtifactMismatchError,
    ArtifactNotFoundError,
    DeclarationError,
    FingerprintMismatchError,
)


def to_json(item):
    """As the registry carries it."""
    return json.dumps(to_values(item), sort_keys=True)


def from_json(text):
    return from_values(json.loads(text))


SIMILARITY = BoundSimilarity(match(), bound(query()), bound(embedding()))
BOUND = [bound(embedding()), bound(history(half_life=2.0)), SIMILARITY]


def test_a_feature_is_bound_to_the_current_model(tiny_folder, tiny):
    assert bind(embedding(), ArtifactStore([tiny_folder])) == bound(embedding(), tiny.id)


def test_a_feature_without_its_model_cannot_be_bound(tmp_path, tiny_folder):
    with pytest.raises(ArtifactNotFoundError, match="llmrec export tiny"):
        bind(embedding(), ArtifactStore([tmp_path]))
    with pytest.raises(ArtifactMismatchError, match="max_tokens=99"):
        bind(embedding(max_tokens=99), ArtifactStore([tiny_folder]))


def test_a_feature_without_an_entity_is_not_stored():
    assert bound(embedding()).stored
    assert not bound(query()).stored


@pytest.mark.parametrize("item", BOUND, ids=lambda item: item.feature.kind)
def test_a_bound_feature_is_the_same_after_travelling(item):
    text = to_json(item)
    assert from_json(text) == item
    assert to_json(from_json(text)) == text
    assert text.isascii()
    assert "\n" not in text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_prefix_travels(prefix):
    item = bound(embedding(prefix=prefix))
    assert from_json(to_json(item)) == item


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("artifact",), "b" * 64),
        (("feature", "prefix"), "query: "),
        (("feature", "text"), "{title}!"),
        (("feature", "dims"), 7),
        (("fingerprint",), "0" * 64),
    ],
)
def test_a_changed_feature_is_found_by_its_fingerprint(path, value):
    values = json.loads(to_json(bound(embedding())))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(
        FingerprintMismatchError, match=r"published with fingerprint .*Install the version.*materialize again"
    ):
        from_json(json.dumps(values))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_changed_side_of_a_similarity_is_found(side):
    values = json.loads(to_json(SIMILARITY))
    values[side]["feature"]["prefix"] = "other"
    with pytest.raises(FingerprintMismatchError, match=values[side]["feature"]["name"]):
        from_json(json.dumps(values))


def test_a_feature_of_a_version_with_other_numbers_is_refused(monkeypatch):
    text = to_json(bound(embedding()))
    monkeypatch.setattr(specs.embeddings, "PIPELINE_VERSION", specs.PIPELINE_VERSION + 1)
    with pytest.raises(FingerprintMismatchError, match="'item_title_embedding'"):
        from_json(text)


def test_a_feature_of_a_newer_version_asks_for_an_upgrade():
    values = json.loads(to_json(bound(embedding())))
    values["feature"]["kind"] = "reranker"
    with pytest.raises(DeclarationError, match="upgrade"):
        from_json(json.dumps(values))


@pytest.mark.parametrize(
    "other",
    [
        bound(embedding(), "b" * 64),
        bound(embedding(normalize=False)),
        bound(embedding(dims=4)),
        bound(embedding(reduction="prefix")),
    ],
)
def test_vectors_of_different_spaces_are_not_compared(other):
    with pytest.raises(DeclarationError) as caught:
        BoundSimilarity(match(), bound(query()), other)
    for part in (
        "'query_item_similarity'",
        "'query_text_embedding'",
        "'item_title_embedding'",
        other.artifact_id[:16],
        "same model",
    ):
        assert part in str(caught.value)


def test_sides_may_differ_in_prefix_template_and_length():
    BoundSimilarity(match(), bound(query(prefix="query: ", max_tokens=8)), bound(history()))


def test_the_fingerprint_of_a_similarity_follows_its_sides():
    other = BoundSimilarity(match(), bound(query(prefix="q: ")), bound(embedding()))
    assert other.fingerprint != SIMILARITY.fingerprint
