"""Declarations of networks, bound to artifacts without a graph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from samples import embedding, history, match
from tiny import export_tiny

from llmrec_plugin import NetworkFeature, NetworkModel
from llmrec_plugin.artifacts import ArtifactStore, NetworkArtifact, read_artifact
from llmrec_plugin.binding import BoundNetwork, BoundSimilarity, bind, from_values, to_values
from llmrec_plugin.errors import (
    ArtifactCorruptError,
    ArtifactMismatchError,
    ArtifactNotFoundError,
    DeclarationError,
    FingerprintMismatchError,
)
from llmrec_plugin.manifests import NetworkManifest
from llmrec_plugin.networks import IdSequence, Number, Tokens, Vector
from llmrec_plugin.specs import from_spec, to_spec

SEQUENCE = IdSequence(name="history", vocabulary="items", max_length=5)


def add_network(store: ArtifactStore, name: str, *inputs: object, folder: Path, **changes: object) -> NetworkArtifact:
    """Adds a network without a graph."""
    target = folder / f"{name}-{len(list(folder.glob('*')))}"
    target.mkdir(parents=True)
    values = {"dims": 8, "metric": "cosine", "normalized": True, "space": "", "tolerance": 1e-4, "files": {}}
    manifest = NetworkManifest(model=name, source={"source": "test"}, inputs=inputs or (SEQUENCE,), **values | changes)
    (target / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    added = store.add(target)
    assert isinstance(added, NetworkArtifact)
    return added


def feature(**changes: object) -> NetworkFeature:
    start = {"name": "user_vector", "entity": "user", "model": "users", "inputs": {"history": "events"}}
    return NetworkFeature(**start | {"dims": 8, "metric": "cosine"} | changes)


@pytest.fixture
def store(tmp_path):
    store = ArtifactStore([tmp_path / "artifacts"])
    export_tiny(store)
    return store


@pytest.fixture
def add(store, tmp_path):
    return lambda name, *inputs, **changes: add_network(store, name, *inputs, folder=tmp_path / "made", **changes)


def adaptor(**changes):
    part = embedding(name="item_title", **changes)
    return feature(name="item_vector", entity="item", model="adaptor", inputs={"vector": part})


def test_a_declaration_travels_with_its_parts(add, store):
    add("users")
    add("adaptor", Vector(name="vector", dims=8), space="s")
    for declared in (feature(), feature(dims=8, status=True, storage="int8"), adaptor()):
        assert from_spec(json.loads(json.dumps(to_spec(declared)))) == declared
        bound = bind(declared, store)
        assert isinstance(bound, BoundNetwork)
        again = from_values(json.loads(json.dumps(to_values(bound))))
        assert again == bound
        assert again.fingerprint == bound.fingerprint
        assert again.vector_space == bound.vector_space
    assert bound.artifacts == (("adaptor", bound.artifact_id), ("tiny", store.current_id("tiny")))
    assert bound.feature.columns == ("title",)


def test_inputs_are_read_in_any_order_and_form():
    pairs = {"b": "y", "a": "x"}
    three = (feature(inputs=pairs), feature(inputs=list(pairs.items())), feature(inputs=(("a", "x"), ("b", "y"))))
    assert len({*three}) == 1
    for inputs in ({}, {"a": "two words"}, {"a": 3}, {"a b": "x"}, None, {"a": feature()}, {"a": "{"}, [""], [None]):
        with pytest.raises(DeclarationError, match="'user_vector'"):
            feature(inputs=inputs)


def test_the_fingerprint_covers_what_changes_values_and_nothing_else(add, store):
    add("adaptor", Vector(name="vector", dims=8))
    bound = bind(adaptor(), store)
    same = [
        replace(bound.feature, name="other", entity=None, description="d", status=True, deadline_ms=5),
        replace(bound.feature, inputs={"vector": embedding(name="renamed", description="x")}),
    ]
    assert {bind(item, store).fingerprint for item in same} == {bound.fingerprint}
    others = [adaptor(text="{title}!"), replace(bound.feature, on_empty="zeros"), adaptor(normalize=True, max_tokens=9)]
    fingerprints = {bound.fingerprint, *(bind(item, store).fingerprint for item in others)}
    export_tiny(store, seed=1)  # another encoder
    fingerprints.add(bind(adaptor(), store).fingerprint)
    add("adaptor", Vector(name="vector", dims=8), space="s")
    fingerprints.add(bind(adaptor(), store).fingerprint)
    assert len(fingerprints) == 6
    assert replace(bound, reads=(("item_price", "abc"),)).fingerprint != bound.fingerprint
    tampered = to_values(bound) | {"artifact": "0" * 64}
    with pytest.raises(FingerprintMismatchError):
        from_values(tampered)


def test_values_depend_on_the_network_and_what_comes_in_alone(add, store):
    add("adaptor", Vector(name="vector", dims=8))
    one, other = bind(adaptor(), store), bind(adaptor(text="{note}"), store)
    assert one.fingerprint != other.fingerprint
    assert one.encoding_fingerprint == other.encoding_fingerprint


@pytest.mark.parametrize(
    ("spaces", "comparable"), [(("s", "s"), True), (("s", "t"), False), (("", ""), False), (("s", ""), False)]
)
def test_vectors_of_one_space_may_be_compared(add, store, spaces, comparable):
    add("users", space=spaces[0])
    add("adaptor", Vector(name="vector", dims=8), space=spaces[1])
    sides = bind(feature(entity=None), store), bind(adaptor(), store)
    compared = match(left="user_vector", right="item_vector")
    if comparable:
        bound = BoundSimilarity(compared, *sides)
        assert from_values(json.loads(json.dumps(to_values(bound)))) == bound
        return
    with pytest.raises(DeclarationError, match="one space"):
        BoundSimilarity(compared, *sides)


def test_a_network_without_a_space_may_be_compared_with_itself(add, store):
    add("users")
    BoundSimilarity(match(), bind(feature(entity=None, name="session"), store), bind(feature(), store))
    with pytest.raises(DeclarationError, match="different spaces"):
        BoundSimilarity(match(), bind(feature(), store), bind(embedding(), store))
    add("scores", dims=None, metric=None)
    number = bind(feature(model="scores", dims=None, metric=None), store)
    with pytest.raises(DeclarationError, match="is a number"):
        BoundSimilarity(match(), number, number)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": 4}, "dims=4"),
        ({"metric": "dot"}, "metric='dot'"),
        ({"space": "other"}, "space='other'"),
        ({"inputs": {"events": "events"}}, r"inputs=\['events'\]"),
        ({"inputs": {"history": "{events}"}}, "a IdSequence, not a text"),
        ({"inputs": {"history": embedding()}}, "the vector item_title_embedding"),
    ],
)
def test_a_declaration_must_fit_the_artifact(add, store, changes, message):
    add("users", space="s")
    bind(feature(space="s"), store)
    with pytest.raises(ArtifactMismatchError, match=message):
        bind(feature(**changes), store)


def test_a_part_must_have_the_length_of_the_input(add, store):
    add("adaptor", Vector(name="vector", dims=9))
    with pytest.raises(ArtifactMismatchError, match="dims"):
        bind(adaptor(), store)
    add("adaptor", Vector(name="vector", dims=8))
    part = history(name="user_events")
    assert bind(replace(adaptor(), inputs={"vector": part}), store).feature.columns == ("events",)


def test_models_of_other_kinds_are_refused(add, store):
    add("users", Tokens(name="text", max_tokens=5))
    with pytest.raises(ArtifactMismatchError, match="is no network"):
        bind(feature(model="tiny"), store)
    with pytest.raises(ArtifactMismatchError, match="name it in a NetworkFeature"):
        bind(embedding(model="users"), store)
    with pytest.raises(ArtifactNotFoundError, match="llmrec export nobody"):
        bind(feature(model="nobody"), store)


def test_the_artifact_id_covers_what_makes_the_numbers(add, store):
    first = add("users")
    said = {"quality": {"ndcg": 1}, "parity": {"examples": 9}, "versions": {"torch": "1"}, "tolerance": 1e-3}
    assert add("users", **said).id == first.id
    assert store.get_network("users", first.id).manifest.quality == {"ndcg": 1}  # records are renewed
    others = [
        {"files": {}, "space": "s"},
        {"normalized": False},
        {"metric": "dot"},
        {"dims": 7},
        {"dims": None, "metric": None},
    ]
    ids = {first.id, *(add("users", **change).id for change in others), add("users", Number(name="history")).id}
    assert len(ids) == 7
    path = store.current("tiny").folder.parents[1] / "users" / first.id[:16]
    (path / "manifest.json").write_text((path / "manifest.json").read_text().replace("id_sequence", "sound"))
    with pytest.raises(ArtifactCorruptError, match="sound"):
        read_artifact(path)


@pytest.mark.parametrize(
    "changes",
    [{"network": "no function"}, {"network": "module"}, {"tolerance": 0}, {"tolerance": 1}, {"source": "endpoint:a@1"}],
)
def test_a_model_that_cannot_be(changes):
    with pytest.raises(DeclarationError, match="'users'"):
        NetworkModel(**{"name": "users", "source": "path:folder", "network": "package.module:function"} | changes)
