"""BERT4Rec learns a rule, goes on where it stopped, and gives the networks that are exported."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from rings import ring

from llmrec_plugin.errors import SourceError
from llmrec_plugin.interactions import write_atomic
from llmrec_plugin.training.commands import train

torch = pytest.importorskip("torch", reason="the export extra is not installed")

from network_runs import check, run  # noqa: E402

from llmrec_plugin.systems.bert4rec import candidate_score, item_embedding, models, sequence_embedding, similarity  # noqa: E402
from llmrec_plugin.systems.bert4rec.export import item_network, score_network, user_network  # noqa: E402
from llmrec_plugin.systems.bert4rec.network import Bert4Rec, Size  # noqa: E402
from llmrec_plugin.systems.bert4rec.training import Cloze, cloze_batches, train_bert4rec  # noqa: E402
from llmrec_plugin.systems.trained import read_trained  # noqa: E402
from llmrec_plugin.training import loop  # noqa: E402
from llmrec_plugin.training.loop import Plan  # noqa: E402

SMALL = {"hidden": 16, "inner": 16, "layers": 1, "heads": 2, "max_length": 8, "dropout": 0.1}
OUTPUTS = ("model.safetensors", "items.json", "config.json", "quality.json")


def fit(output, plan, **options):
    settings = {"cloze": Cloze(batch=16), "split": "leave-one-out", "progress": False, **SMALL, **options}
    return train_bert4rec(ring(items=20, users=60), output, plan, report=lambda line: None, **settings)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert4rec")
    fit(folder, Plan(epochs=50, patience=50, learning_rate=2e-2), dropout=0.0)
    return folder


def test_it_learns_what_follows_what(folder):
    quality = json.loads((folder / "quality.json").read_text())
    assert quality["test"]["ndcg@10"] > 0.7
    assert quality["baselines"]["popularity"]["ndcg@10"] < 0.5


def test_a_resumed_run_ends_with_the_same_bytes_and_another_seed_with_others(tmp_path, monkeypatch):
    plan = Plan(epochs=3, patience=3, learning_rate=1e-2)
    fit(tmp_path / "whole", plan)
    save = loop._save

    def stop(state, path):
        save(state, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", plan)
    monkeypatch.setattr(loop, "_save", save)
    fit(tmp_path / "parts", plan)
    for name in OUTPUTS:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    fit(tmp_path / "other", Plan(epochs=3, patience=3, learning_rate=1e-2, seed=1))
    assert read_trained(tmp_path / "whole", "bert4rec").space != read_trained(tmp_path / "other", "bert4rec").space


@pytest.mark.parametrize("network_of", [user_network, item_network, score_network])
def test_networks_keep_the_contract(folder, network_of):
    check(network_of(folder))


def test_dot_products_are_logits_and_candidate_scores(folder):
    user, item, score = user_network(folder), item_network(folder), score_network(folder)
    assert user.space == item.space != ""
    items = user.vocabularies["items"]
    rows = [{"history": [items[place] for place in (7, 6, 5, 4, 3)], "candidate": key} for key in items]
    users, vectors = run(user, rows), run(item, [{"item": key} for key in items])
    np.testing.assert_allclose(vectors, user.candidates)
    np.testing.assert_allclose((users * vectors).sum(1), run(score, rows), atol=1e-5)
    assert (users[:, -1] == 1).all()
    assert 8 in np.argsort(users[0] @ vectors.T)[-2:]  # the ring goes on


def test_the_mask_stands_behind_the_last_item():
    network = Bert4Rec(Size(items=9, hidden=8, heads=2, inner=8, max_length=4)).eval()
    read = []
    network.states, states = lambda ids: read.append(ids) or states(ids), network.states
    with torch.no_grad():
        network.user(torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6], [0, 0, 0, 0]]))
    assert read[0].tolist() == [[1, 2, 10, 0, 0], [3, 4, 5, 6, 10], [10, 0, 0, 0, 0]]


def test_padding_gives_nothing_and_learns_nothing(folder):
    trained = read_trained(folder, "bert4rec")
    assert trained.weights["items.weight"].shape == (len(trained.items) + 2, 16)
    assert not trained.weights["items.weight"][0].any()


def test_unknown_and_new_items_are_left_out_of_a_history(folder):
    network = user_network(folder)
    items = network.vocabularies["items"]
    known = {"history": [items[5], items[4]]}
    mixed = {"history": ["new", items[5], "newer", items[4]]}
    np.testing.assert_array_equal(run(network, [known]), run(network, [mixed]))


def test_masks_are_drawn_by_probability_and_some_rows_mask_the_last_only():
    pieces = [np.arange(1, 21)] * 400
    batches = cloze_batches(pieces, 99, Cloze(mask_share=0.3, last_share=0.25, batch=50), seed=1)
    ids, masked = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert ((ids == 99) == (masked > 0)).all()
    assert (np.where(masked > 0, masked, ids) == np.arange(1, 21)).all()
    only_last = ((masked > 0).sum(1) == 1) & (masked[:, -1] > 0)
    assert 0.18 < only_last.mean() < 0.33
    assert 0.27 < (masked[~only_last] > 0).mean() < 0.33
    again = cloze_batches(pieces, 99, Cloze(mask_share=0.3, last_share=0.25, batch=50), seed=1)
    assert all((left[0] == right[0]).all() for left, right in zip(batches, again, strict=True))


def test_rows_that_drew_no_mask_are_asked_for_their_last_item():
    ((ids, masked),) = cloze_batches([np.array([4, 5]), np.array([1, 2, 3])], 9, Cloze(mask_share=0, last_share=0), 0)
    assert masked.tolist() == [[0, 5, 0], [0, 0, 3]]
    assert ids.tolist() == [[4, 9, 0], [1, 2, 9]]


def test_a_changed_folder_is_refused(folder, tmp_path):
    for name in OUTPUTS:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    items = json.loads((tmp_path / "items.json").read_text())
    (tmp_path / "items.json").write_text(json.dumps(items[::-1]))
    with pytest.raises(SourceError, match="not those that were trained together"):
        user_network(tmp_path)
    with pytest.raises(SourceError, match="expected a unisrec or whitening model, got 'bert4rec'"):
        read_trained(folder, "unisrec", "whitening")


def test_declarations_name_the_networks():
    user, item, score = models("films", name="films")
    assert [model.name for model in (user, item, score)] == ["films-user", "films-item", "films-score"]
    assert user.source == "path:films"
    assert models("package:mine/films")[0].source == "package:mine/films"
    session = sequence_embedding(dims=17, model=user.name)
    stored = sequence_embedding(dims=17, model=user.name, entity="user")
    assert (session.name, stored.name) == ("session_items_embedding", "user_items_embedding")
    assert session.columns == ("recent_items",)
    score_feature = similarity(session, item_embedding(dims=17, model=item.name))
    assert (score_feature.left, score_feature.right) == ("session_items_embedding", "item_id_embedding")
    assert set(candidate_score(model=score.name).columns) == {"recent_items", "candidate_id"}
    for model in (user, item, score):
        module, function = model.network.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_command_trains_from_a_folder(tmp_path):
    write_atomic(ring(items=12, users=30), tmp_path / "data")
    small = "--hidden 8 --inner 8 --layers 1 --max-length 6 --epochs 1 --device cpu --no-progress"
    arguments = ["bert4rec", "--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), *small.split()]
    result = CliRunner().invoke(train, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "popularity" in result.output
    assert "vectors: 9 dims" in result.output
    assert user_network(tmp_path / "out").dims == 9
    wrong = CliRunner().invoke(train, [*arguments, "--heads", "3"])
    assert "--heads must divide --hidden" in str(wrong.exception or wrong.output)
