"""A PyTorch network becomes a checked artifact, or is refused with a reason."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import DeclarationError, ParityError, SourceError
from llmrec_plugin.export import export_network, load_recipe, network_parity
from llmrec_plugin.networks import IdSequence, Number, Vector

torch = pytest.importorskip("torch", reason="the export extra is not installed")

import tiny_networks  # noqa: E402 - it needs torch
from tiny_networks import DIMS, ITEMS, declare_network, load_network  # noqa: E402


@pytest.fixture
def store(tmp_path):
    return ArtifactStore([tmp_path / "artifacts"])


@pytest.fixture
def export_with(store, tmp_path, monkeypatch):
    """Exports a tiny network after changes: of the Network, or what a function makes of it."""

    def export(kind, change=None, **changes):
        def changed(folder):
            network = dataclasses.replace(load_network(folder), **changes)
            return change(network) if change else network

        monkeypatch.setattr(tiny_networks, "load_changed", changed, raising=False)
        model = dataclasses.replace(declare_network(tmp_path / kind, kind), network="tiny_networks:load_changed")
        return export_network(model, store)

    return export


@pytest.mark.parametrize("kind", ["history", "adaptor", "score", "text"])
def test_a_network_is_exported_with_the_proof_of_it(store, tmp_path, kind):
    lines = []
    model = declare_network(tmp_path / "trained", kind)
    artifact = export_network(model, store, report=lines.append)
    manifest = artifact.manifest
    assert manifest.parity["max_abs_diff"] <= 1e-5
    assert manifest.parity["shuffled_max_abs_diff"] <= 1e-5
    assert manifest.parity["examples"] >= 8
    assert manifest.source["source"] == model.source
    assert "torch" in manifest.versions
    artifact.verify()
    assert store.current_id(kind) == artifact.id
    assert any("largest difference" in line for line in lines)
    golden = np.load(artifact.path("golden.npy"))
    rows = json.loads(artifact.path("golden.rows.json").read_text())
    assert {len(cells) for cells in rows.values()} == {len(golden)}
    # The same weights give the same bytes; others another network.
    assert export_network(declare_network(tmp_path / "again", kind, name=kind), store).id == artifact.id
    assert export_network(declare_network(tmp_path / "other", kind, name=kind, seed=1), store).id != artifact.id


def test_vocabularies_quality_and_neighbors_are_in_the_artifact(store, tmp_path):
    artifact = export_network(declare_network(tmp_path, "history"), store)
    assert json.loads(artifact.path("vocabulary.items.json").read_text()) == list(ITEMS)
    assert artifact.manifest.quality == {"ndcg_at_10": 0.5}
    assert artifact.manifest.source["data"] == "random"
    assert artifact.manifest.parity["neighbors"] == 9
    assert artifact.manifest.space == "one training"


class Padded(torch.nn.Module):
    """Sums over padding, too."""

    def __init__(self, bias=1.0):
        super().__init__()
        self.items = torch.nn.Embedding(len(ITEMS) + 1, DIMS)
        self.bias = bias

    def forward(self, history):
        return self.items(history).sum(1) + self.bias * history.shape[1]


class Branching(Padded):
    def forward(self, history):
        weights = (history != 0).float()[:, :, None]
        total = (self.items(history) * weights).sum(1)
        return total if int(history.max()) < 15 else -total


def of_length(network, module):
    return dataclasses.replace(network, module=module, normalized=False, candidates=None)


def test_a_module_that_reads_padding_is_refused(export_with, store):
    with pytest.raises(ParityError, match=r"in PyTorch itself a row's value changes by .* padding"):
        export_with("history", lambda network: of_length(network, Padded()))
    assert not list(store)


@pytest.mark.parametrize("made", [Branching])
def test_a_module_that_tracing_freezes_is_refused(export_with, store, made):
    with pytest.raises(ParityError, match=r"off from PyTorch|in PyTorch itself"):
        export_with("history", lambda network: of_length(network, made()))
    assert not list(store)


class Wrong(torch.nn.Module):
    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, vector):
        return self.give(vector)


@pytest.mark.parametrize(
    ("give", "error", "message"),
    [
        (lambda vector: vector[:, :3], DeclarationError, r"must return float32 \(3, 8\), got torch.float32 \(3, 3\)"),
        (lambda vector: vector.double(), DeclarationError, "torch.float64"),
        (lambda vector: (vector,), DeclarationError, "got tuple"),
        (lambda vector: vector * float("nan"), ParityError, "not finite"),
        (lambda vector: vector * 3, ParityError, "unit norm"),
        (lambda vector: vector[:, [9]], SourceError, "failed on an example"),
    ],
)
def test_a_module_that_gives_something_else(export_with, give, error, message):
    with pytest.raises(error, match=message):
        export_with("adaptor", module=Wrong(give))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "one or more inputs"),
        ({"inputs": (Number(name="a"), Number(name="a"))}, "different names"),
        ({"dims": 0}, "dims must be"),
        ({"dims": None}, "a number has no norm"),
        ({"metric": "taxicab"}, "metric must be one of cosine"),
        ({"vocabularies": {}}, r"name the vocabularies \['items'\]"),
        ({"vocabularies": {"items": ITEMS, "users": ("u",)}}, "it has"),
        ({"vocabularies": {"items": (*ITEMS, "i1")}}, "a key twice"),
        ({"vocabularies": {"items": (*ITEMS, 7)}}, "non-empty strings, got 7"),
        ({"vocabularies": {"items": ()}}, "non-empty strings"),
        ({"tokenizer": "tokenizer.json"}, "tokenizer is needed"),
        ({"examples": [{"history": ["i1"]}] * 7}, "8 examples or more, got 7"),
        ({"examples": [{"history": ["new"]}] * 8}, "4 or more examples that have a value, got 0"),
        ({"examples": [{"events": ["i1"]}] * 8}, "example 0 has the inputs"),
        ({"examples": [{"history": ["i1"]}] * 8 + [{"history": "i1"}]}, "example 8 cannot be read"),
        ({"candidates": np.zeros((3, 5))}, r"candidates must be \(n, 8\)"),
    ],
)
def test_a_network_that_contradicts_itself(export_with, changes, message):
    with pytest.raises(DeclarationError, match=message):
        export_with("history", **changes)


def test_functions_that_cannot_be_called(store, tmp_path, monkeypatch):
    model = declare_network(tmp_path / "adaptor", "adaptor")
    for network in ("no_such_module:load", "tiny_networks:no_such_function"):
        with pytest.raises(SourceError, match="cannot be imported"):
            export_network(dataclasses.replace(model, network=network), store)
    monkeypatch.setattr(tiny_networks, "load_wrong", lambda folder: 3, raising=False)
    with pytest.raises(DeclarationError, match=r"must return a .*Network, got int"):
        export_network(dataclasses.replace(model, network="tiny_networks:load_wrong"), store)
    (tmp_path / "adaptor" / "config.json").unlink()
    with pytest.raises(SourceError, match=r"could not load .* FileNotFoundError"):
        export_network(model, store)
    with pytest.raises(SourceError, match="no such folder"):
        export_network(dataclasses.replace(model, source="path:/no/such/folder"), store)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_neighbors_must_be_the_same_but_for_ties(tmp_path, metric):
    network = dataclasses.replace(load_network_of(tmp_path), metric=metric)
    generator = np.random.default_rng(0)
    candidates = generator.standard_normal((40, DIMS)).astype(np.float32)
    candidates[20:] = candidates[:20]  # each twice: which of both is found does not matter
    network = dataclasses.replace(network, candidates=candidates)
    vectors = generator.standard_normal((5, DIMS)).astype(np.float32)
    network_parity._check_neighbors("model 'a'", network, vectors, vectors)
    network_parity._check_neighbors("model 'a'", network, vectors * (1 + 1e-7), vectors)
    with pytest.raises(ParityError, match="nearest candidates are"):
        network_parity._check_neighbors("model 'a'", network, -vectors, vectors)


def load_network_of(tmp_path):
    declare_network(tmp_path / "adaptor", "adaptor")
    return load_network(tmp_path / "adaptor")


def test_recurrent_layers_and_masks_are_exported(export_with):
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.items = torch.nn.Embedding(len(ITEMS) + 1, 8)
            self.cell = torch.nn.GRU(8, DIMS, batch_first=True)

        def forward(self, history):
            states, _ = self.cell(self.items(history))
            last = (history != 0).sum(1) - 1
            return states[torch.arange(history.shape[0]), last]

    artifact = export_with("history", lambda network: of_length(network, Recurrent()))
    assert artifact.manifest.parity["shuffled_max_abs_diff"] <= 1e-5


def test_an_input_that_changes_nothing_may_be_missing_in_the_graph(export_with):
    class First(torch.nn.Module):
        def forward(self, vector, other, price):
            return vector + price[:, None]

    inputs = (
        Vector(name="vector", dims=8),
        IdSequence(name="other", vocabulary="items", max_length=4),
        Number(name="p"),
    )
    examples = [{"vector": [float(n)] * 8, "other": ["i1"] * n, "p": 1.0} for n in range(1, 9)]
    changes = {"inputs": inputs, "examples": examples, "vocabularies": {"items": ITEMS}, "normalized": False}
    assert export_with("adaptor", module=First(), **changes).manifest.graph_inputs == ("vector", "other", "p")


def test_a_recipe_declares_a_network(store, tmp_path):
    model = declare_network(tmp_path / "adaptor", "adaptor")
    recipe = tmp_path / "adaptor.toml"
    recipe.write_text(f'name = "adaptor"\nsource = "{model.source}"\nnetwork = "{model.network}"\n')
    assert load_recipe(recipe) == model
