"""UniSRec learns from texts, pre-trains over domains, and gives new items vectors; whitening whitens."""

import json
import zlib

import numpy as np
import pytest
from click.testing import CliRunner
from rings import ring

from llmrec_plugin import EncoderModel
from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import write_atomic
from llmrec_plugin.training.commands import train

torch = pytest.importorskip("torch", reason="the export extra is not installed")

from network_runs import check, run  # noqa: E402

from llmrec_plugin.artifacts import ArtifactStore  # noqa: E402
from llmrec_plugin.export import export_network  # noqa: E402
from llmrec_plugin.systems.trained import read_trained  # noqa: E402
from llmrec_plugin.systems.unisrec import (  # noqa: E402
    item_embedding,
    models,
    sequence_embedding,
    similarity,
    text_vector,
    vector_sequence_embedding,
)
from llmrec_plugin.systems.unisrec.export import item_network, user_network, user_of_vectors_network  # noqa: E402
from llmrec_plugin.systems.unisrec.network import Adaptor, Size, UniSRec  # noqa: E402
from llmrec_plugin.systems.unisrec.pretraining import Contrast, _in_batch, pretrain_unisrec, without_words  # noqa: E402
from llmrec_plugin.systems.unisrec.training import train_unisrec  # noqa: E402
from llmrec_plugin.systems.unisrec.whitening import fit_whitening, train_whitening  # noqa: E402
from llmrec_plugin.training import loop, vectors  # noqa: E402
from llmrec_plugin.training.loop import Plan  # noqa: E402

SMALL = {"hidden": 16, "inner": 16, "layers": 1, "experts": 2, "max_length": 8, "dropout": 0.1, "adaptor_dropout": 0.1}
ENCODER = {"name": "words", "artifact": "1" * 64}
DATA = ring(items=20, users=60)
NETWORKS = (item_network, user_network, user_of_vectors_network)


def encode(texts):
    """The sum of a random vector for each word, with unit norm, (n, 24) float32."""
    found = np.stack(
        [
            sum(np.random.default_rng(zlib.crc32(word.encode())).standard_normal(24) for word in text.split())
            for text in texts
        ]
    )
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


SHARED = {
    "template": "{title}",
    "encoder": ENCODER,
    "split": "leave-one-out",
    "progress": False,
    "report": lambda line: None,
}


def fit(output, epochs=30, data=DATA, seed=0, **options):
    plan = Plan(epochs=epochs, patience=epochs, learning_rate=1e-2, seed=seed)
    return train_unisrec(data, encode, output, plan, **{"batch": 16, **SHARED, **SMALL, **options})


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def inductive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unisrec")
    fit(folder)
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    domains = [DATA, ring(items=15, users=40, name="wheel", seed=1)]
    plan = Plan(epochs=10, patience=10, learning_rate=1e-2)
    pretrain_unisrec(domains, encode, folder, plan, contrast=Contrast(batch=32), **SHARED, **SMALL)
    return folder


@pytest.fixture(scope="module")
def transductive(tmp_path_factory, pretrained):
    folder = tmp_path_factory.mktemp("transductive")
    fit(folder, epochs=3, pretrained=pretrained, transductive=True)
    return folder


@pytest.fixture(scope="module")
def whitened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whitened")
    options = {name: value for name, value in SHARED.items() if name != "progress"}
    train_whitening(DATA, encode, folder, dims=8, **options)
    return folder


def quality_of(folder):
    return json.loads((folder / "quality.json").read_text())


def test_it_learns_what_follows_what_from_texts(inductive):
    quality = quality_of(inductive)
    assert quality["test"]["ndcg@10"] > 0.8
    assert quality["baselines"]["popularity"]["ndcg@10"] < 0.5


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, monkeypatch):
    fit(tmp_path / "whole", epochs=3)
    save = loop._save

    def stop(state, path):
        save(state, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", epochs=3)
    monkeypatch.setattr(loop, "_save", save)
    fit(tmp_path / "parts", epochs=3)
    for name in ("model.safetensors", "items.json", "config.json", "quality.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_pretraining_learns_and_fine_tuning_starts_from_it(pretrained, transductive):
    losses = [epoch["validation_loss"] for epoch in quality_of(pretrained)["epochs"]]
    assert losses[-1] < 0.5 * losses[0]
    tuned = quality_of(transductive)
    assert tuned["test"]["ndcg@10"] > 0.8  # after three epochs
    assert tuned["pretrained"] == read_trained(pretrained, "unisrec-pretrained").space
    before, after = (read_trained(pretrained, "unisrec-pretrained"), read_trained(transductive, "unisrec"))
    frozen = [name for name in before.weights if not name.startswith("adaptor.")]
    assert frozen
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in frozen)
    assert not torch.equal(before.weights["adaptor.weight"], after.weights["adaptor.weight"])


def test_pretrained_weights_of_another_encoder_are_refused(pretrained, tmp_path):
    with pytest.raises(InputError, match="name the same --encoder"):
        fit(tmp_path, pretrained=pretrained, encoder={"name": "other", "artifact": "2" * 64})


@pytest.mark.parametrize("kind", ["inductive", "transductive", "whitened"])
@pytest.mark.parametrize("network_of", NETWORKS)
def test_networks_keep_the_contract(kind, network_of, request):
    check(network_of(request.getfixturevalue(kind)))


@pytest.mark.parametrize("kind", ["inductive", "transductive", "whitened"])
def test_users_by_keys_and_by_stored_vectors_are_the_same(kind, request):
    folder = request.getfixturevalue(kind)
    item, by_keys, by_vectors = (network_of(folder) for network_of in NETWORKS)
    assert item.space == by_keys.space == by_vectors.space != ""
    items = read_trained(folder, "unisrec", "whitening").items
    texts = encode([f"ring place {number}" for number in range(20)])
    rows = [{"text": texts[number].tolist(), "item": key} for number, key in enumerate(items)]
    stored = run(item, rows)
    np.testing.assert_allclose(stored, item.candidates, atol=1e-5)
    history = [7, 6, 5]  # newest first
    keys = run(by_keys, [{"history": [items[place] for place in history]}])
    read = run(by_vectors, [{"vectors": stored[history].ravel().tolist()}])
    np.testing.assert_allclose(keys, read, atol=1e-5)
    if kind != "whitened":
        cosines = (stored / np.linalg.norm(stored, axis=1, keepdims=True)) @ keys[0]
        assert int(np.argmax(cosines)) == 8  # the ring goes on


@pytest.mark.parametrize(("kind", "part"), [("transductive", "item"), ("whitened", "item"), ("whitened", "user")])
def test_graphs_give_the_networks_values(kind, part, request, tmp_path):
    model = getattr(models(request.getfixturevalue(kind), name=kind), part)
    artifact = export_network(model, ArtifactStore([tmp_path]), report=lambda line: None)
    assert artifact.manifest.parity["max_abs_diff"] < 1e-5
    assert artifact.manifest.parity["neighbors"] > 0


def test_an_item_that_nobody_has_touched_has_a_vector(tmp_path):
    data = ring(items=20, users=60)
    data.items.loc[len(data.items)] = {"item_id": "zz-new", "title": "ring place 4"}  # as a known one is described
    fit(tmp_path, epochs=8, data=data)
    trained = read_trained(tmp_path, "unisrec")
    assert trained.items[-1] == "zz-new"
    table = trained.weights["catalogue.table"]
    np.testing.assert_allclose(table[-1], table[4], atol=1e-6)


def test_noise_and_dropout_are_for_training_only():
    adaptor = Adaptor(24, 16, 3, dropout=0.5)
    texts = torch.from_numpy(encode(["a b", "c d"]))
    with torch.no_grad():
        adaptor.train()
        assert not torch.equal(adaptor(texts), adaptor(texts))
        adaptor.eval()
        assert torch.equal(adaptor(texts), adaptor(texts))


def test_the_adaptor_is_a_mixture_of_whitenings():
    adaptor = Adaptor(5, 3, 2, dropout=0.0).eval()
    torch.nn.init.normal_(adaptor.bias)
    torch.nn.init.normal_(adaptor.gate)
    texts = torch.randn(4, 5)
    with torch.no_grad():
        gates = (texts @ adaptor.gate).softmax(-1)
        parts = [(texts - adaptor.bias[k]) @ adaptor.weight[k] for k in range(2)]
        expected = sum(gates[:, k : k + 1] * parts[k] for k in range(2))
        torch.testing.assert_close(adaptor(texts), expected)


def test_a_state_reads_nothing_later():
    network = UniSRec(Size(dims=5, hidden=8, heads=2, inner=8, max_length=6)).eval()
    torch.manual_seed(0)
    short, later = torch.randn(1, 3, 8), torch.randn(1, 2, 8)
    with torch.no_grad():
        longer = network.states(torch.cat([short, later], 1))
        torch.testing.assert_close(network.states(short), longer[:, :3])


def test_rows_with_the_same_target_are_no_negatives():
    left = torch.eye(3)
    same = _in_batch(left, left, np.array([5, 5, 6]), 0.07)
    apart = _in_batch(left, left[[0, 0, 2]], np.array([5, 4, 6]), 0.07)
    assert same < 1e-4 < apart


def test_words_are_left_out_and_one_stays():
    rng = np.random.default_rng(0)
    words = " ".join(str(number) for number in range(2000))
    assert 0.8 < len(without_words(words, 0.15, rng).split()) / 2000 < 0.9
    assert without_words("only", 1.0, rng) == "only"


@pytest.mark.parametrize(("kind", "dims"), [("pca", 6), ("pca", 3), ("zca", 6)])
def test_whitened_vectors_have_no_mean_and_the_covariance_one(kind, dims):
    rng = np.random.default_rng(0)
    texts = (rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 3).astype(np.float32)
    mean, matrix = fit_whitening(texts, dims, kind)
    white = (texts - mean) @ matrix
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(dims), atol=1e-3)
    if kind == "zca":
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-5)


def test_whitening_blows_no_rounding_up():
    rng = np.random.default_rng(0)
    flat = np.concatenate([rng.standard_normal((100, 3)), np.zeros((100, 3))], 1).astype(np.float32)
    _, matrix = fit_whitening(flat, 6)
    assert np.abs(matrix).max() < 1e3
    with pytest.raises(InputError, match="for zca"):
        fit_whitening(flat, 3, "zca")


def test_whitening_is_measured_beside_no_whitening(whitened):
    assert set(quality_of(whitened)["baselines"]) == {"popularity", "no whitening"}


def test_declarations_name_the_networks():
    found = models("films", name="films")
    assert [model.name for model in found] == ["films-item", "films-user", "films-user-of-vectors"]
    encoder = EncoderModel(
        name="words", source="path:x", pooling="mean", normalize=True, dims=24, max_tokens=16, metric="cosine"
    )
    text = text_vector(encoder, "{title}. {genres}")
    item = item_embedding(text, dims=16, model=found.item.name)
    assert item.columns == ("title", "genres")
    assert item_embedding(text, dims=16, item="item_id").columns == ("item_id", "title", "genres")
    session = sequence_embedding(dims=16, model=found.user.name)
    assert similarity(session, item).right == "item_universal_embedding"
    assert vector_sequence_embedding(dims=16, entity="user").name == "user_universal_embedding"
    for model in found:
        module, function = model.network.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_commands_train_from_folders(tmp_path, monkeypatch):
    frozen = vectors.FrozenEncoder(name="words", artifact="1" * 64, encode=encode)
    monkeypatch.setattr(vectors, "frozen_encoder", lambda model, folder, *, progress: frozen)
    write_atomic(ring(items=12, users=30), tmp_path / "data")
    write_atomic(ring(items=10, users=30, name="wheel"), tmp_path / "more")
    small = "--hidden 8 --inner 8 --layers 1 --max-length 6 --epochs 1 --device cpu".split()

    def call(command, *arguments):
        named = [command, "--output", str(tmp_path / command), "--no-progress", "--data", str(tmp_path / "data")]
        result = CliRunner().invoke(train, [*named, *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    call("unisrec-pretraining", "--data", str(tmp_path / "more"), *small)
    assert "popularity" in call("unisrec", "--pretrained", str(tmp_path / "unisrec-pretraining"), *small)
    assert "no whitening" in call("whitening", "--dims", "4")
    assert item_network(tmp_path / "unisrec").source["encoder"] == "words"
    assert [domain["name"] for domain in quality_of(tmp_path / "unisrec-pretraining")["domains"]] == ["ring", "wheel"]
