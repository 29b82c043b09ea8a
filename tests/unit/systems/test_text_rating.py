"""A ranker of texts learns end to end, and serves from texts and from stored vectors alike."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from llmrec_plugin.errors import InputError, MissingColumnError, SourceError
from llmrec_plugin.interactions import Dataset, write_atomic
from llmrec_plugin.systems import text_rating
from llmrec_plugin.systems.text_rating.texts import NOTHING, history_texts, user_texts

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("transformers", reason="the export extra is not installed")

from llmrec_plugin.systems.bert import base_folder as find_base  # noqa: E402
from llmrec_plugin.systems.bert import batches_by_length, open_bert, padded, tokenize  # noqa: E402
from llmrec_plugin.systems.text_rating import exporting  # noqa: E402
from llmrec_plugin.systems.text_rating.commands import text_rating as command  # noqa: E402
from llmrec_plugin.systems.text_rating.training import (  # noqa: E402
    TextRatingSettings,
    labelled_texts,
    load_text_rating,
    score,
    train_text_rating,
)
from llmrec_plugin.training.loop import Plan  # noqa: E402

TOPICS = "quiet loud cafe museum trail beach library market".split()
SETTINGS = TextRatingSettings(item_text="the {title}", user_text="i want {wish}", max_tokens=12, batch_size=32)
PLAN = Plan(epochs=10, patience=10, learning_rate=3e-3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one
    yield
    torch.set_num_threads(threads)


def wishes(rows=800, seed=0):
    """Whoever wants a thing likes items that are it: means of users and of items say nothing."""
    rng = np.random.default_rng(seed)
    wanted, got = rng.integers(0, 8, rows), rng.integers(0, 8, rows)
    got = np.where(rng.random(rows) < 0.4, wanted, got)
    interactions = pd.DataFrame(
        {
            "user_id": [f"u{wish}-{n % 4}" for n, wish in enumerate(wanted)],
            "item_id": [f"i{item}-{n % 3}" for n, item in enumerate(got)],
            "rating": np.where(wanted == got, 5.0, 1.0),
            "timestamp": pd.date_range("2026-01-01", periods=rows, freq="h", tz="UTC").astype("datetime64[us, UTC]"),
        }
    )
    users, items = (pd.DataFrame({key: sorted(set(interactions[key]))}) for key in ("user_id", "item_id"))
    users["wish"] = [TOPICS[int(key[1])] for key in users["user_id"]]
    items["title"] = [TOPICS[int(key[1])] for key in items["item_id"]]
    return Dataset(name="wishes", interactions=interactions, items=items, users=users)


@pytest.fixture(scope="module")
def trained(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text-rating") / "model"
    quality = train_text_rating(
        wishes(), str(base_folder), folder, PLAN, SETTINGS, progress=False, report=lambda line: None
    )
    return folder, quality


# What is read of a user


def test_a_history_says_what_was_liked_strictly_before():
    events = pd.DataFrame(
        {
            "user_id": ["u", "u", "u", "v"],
            "item_id": ["a", "b", "c", "a"],
            "rating": [5.0, 1.0, 4.0, 2.0],
            "moment": [1, 2, 2, 3],
        }
    )
    titles = {"a": "Alpha", "b": "Beta", "c": "Gamma"}
    keys, moments = np.array(["u", "u", "u", "v", "w"], dtype=object), np.array([1, 2, 3, 9, 9])
    texts = history_texts(keys, moments, events, titles, last_n=8, liked=4.0, moment="moment")
    assert texts == [NOTHING, "liked Alpha.", "liked Gamma; Alpha. disliked Beta.", "disliked Alpha.", NOTHING]
    newest = history_texts(keys[2:3], moments[2:3], events, titles, last_n=1, liked=4.0, moment="moment")
    assert newest == ["liked Gamma."]


@pytest.mark.parametrize("seed", range(5))
def test_stored_texts_are_what_training_reads(seed):
    data = wishes(rows=60, seed=seed)
    data.interactions["timestamp"] = data.interactions["timestamp"].dt.floor("3h")
    data.interactions["user_id"] = [f"u{n % 3}" for n in range(60)]
    titles = data.item_texts("{title}")
    table = labelled_texts(data, replace(SETTINGS, user_text="", title="{title}", last_n=3), 0)
    stored = user_texts(data.interactions, titles, last_n=3)
    joined = pd.merge_asof(
        table[["user_id", "timestamp"]],
        stored.rename(columns={"event_timestamp": "timestamp"}).sort_values("timestamp"),
        on="timestamp",
        by="user_id",
    )
    assert joined["user_text"].fillna(NOTHING).tolist() == table["user_text"].tolist()
    assert (table["user_text"] == NOTHING).sum() >= 3


def test_no_label_reads_its_own_event():
    data = wishes(rows=40)
    data.interactions["item_id"] = [f"n{n}" for n in range(40)]  # every item once
    items = pd.DataFrame({"item_id": data.interactions["item_id"], "title": [f"n{n}n" for n in range(40)]})
    data = Dataset(name="x", interactions=data.interactions, items=items, users=data.users)
    for timed in (True, False):
        if not timed:
            del data.interactions["timestamp"]
        table = labelled_texts(data, replace(SETTINGS, user_text=""), 0)
        assert not any(f"{item}n" in text for item, text in zip(table["item_id"], table["user_text"], strict=True))


# Training


def test_it_learns_what_means_cannot(trained):
    folder, quality = trained
    assert quality["test"]["mse"] < 0.25 * quality["test_of_user_and_item_means"]["mse"]
    assert quality["test"]["auc"] > 0.95
    assert quality["test_of_user_and_item_means"]["auc"] < 0.7
    assert json.loads((folder / "quality.json").read_text()) == quality
    assert quality["rows"] == {"train": 640, "validation": 80, "test": 80}


def test_a_frozen_encoder_keeps_its_weights(base_folder, tmp_path):
    quiet = {"progress": False, "report": lambda line: None}
    data, plan = wishes(rows=100), replace(PLAN, epochs=1)
    for name, freeze in (("frozen", True), ("tuned", False)):
        train_text_rating(data, str(base_folder), tmp_path / name, plan, replace(SETTINGS, freeze=freeze), **quiet)
    before = open_bert(base_folder).state_dict()
    frozen, tuned = (load_text_rating(tmp_path / name)[0].bert.state_dict() for name in ("frozen", "tuned"))
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    assert not torch.equal(tuned["encoder.layer.0.output.dense.weight"], before["encoder.layer.0.output.dense.weight"])


def test_equal_seeds_give_equal_bytes_and_a_run_goes_on(base_folder, tmp_path):
    data, plan, lines = wishes(rows=100), replace(PLAN, epochs=2), []
    for name in ("one", "two", "one"):
        train_text_rating(data, str(base_folder), tmp_path / name, plan, SETTINGS, progress=False, report=lines.append)
    for path in ("encoder/model.safetensors", "head.safetensors"):
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    assert sum("resuming" in line for line in lines) == 1
    with pytest.raises(InputError, match="other data or settings"):
        train_text_rating(wishes(rows=101), str(base_folder), tmp_path / "one", plan, SETTINGS, progress=False)


# Serving


def test_texts_and_stored_vectors_give_the_same_rating(trained):
    whole, head = exporting.two_texts(trained[0]), exporting.two_vectors(trained[0])
    network, config = load_text_rating(trained[0])
    rows = whole.examples
    sides = [
        padded(tokenize(whole.tokenizer, [row[name] for row in rows], config["settings"]["max_tokens"]))
        for name in ("user", "item")
    ]
    with torch.inference_mode():
        direct = whole.module(*sides[0], *sides[1])
        vectors = [network.encode(*side) for side in sides]
        stored = head.module(*(torch.from_numpy(side.numpy().astype(np.float32)) for side in vectors))
    torch.testing.assert_close(direct, stored, atol=1e-5, rtol=0)
    texts = {"user_text": [row["user"] for row in rows], "item_text": [row["item"] for row in rows]}
    np.testing.assert_allclose(score(trained[0], texts), direct.numpy(), atol=1e-5)
    np.testing.assert_allclose([len(vector) for vector in vectors[0]], 32)


def test_padding_and_neighbors_never_change_a_rating(trained):
    network, _ = load_text_rating(trained[0])
    texts = ["the quiet", "i want a cafe with museum and trail", "x", "the loud market"]
    tokens = tokenize(trained[0] / "encoder/tokenizer.json", texts, 12)
    ids, mask = padded(tokens)
    wide = [torch.cat([side, torch.zeros(4, 5).long()], 1) for side in (ids, mask)]
    with torch.inference_mode():
        alone = torch.cat([network(*padded([row]), *padded([row])) for row in tokens])
        torch.testing.assert_close(network(ids, mask, ids, mask), alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(network(*wide, ids, mask), alone, atol=1e-5, rtol=0)


def test_the_encoder_folder_states_what_export_must_know(trained):
    from llmrec_plugin.export import read_model

    model = read_model("model", str(trained[0] / "encoder"), {})
    declared = text_rating.text_encoder(trained[0], dims=32, max_tokens=12, name="model")
    fields = ("pooling", "normalize", "dims", "max_tokens", "metric")
    assert [getattr(model, field) for field in fields] == [getattr(declared, field) for field in fields]
    assert declared.source == f"path:{trained[0] / 'encoder'}"


def test_declarations_fit_the_networks(trained):
    encoder = text_rating.text_encoder("m", dims=32, max_tokens=12)
    item = text_rating.text_vector(encoder, name="item_text_vec", entity="item", text="{title}")
    assert item.model == "text-rating-encoder"
    whole, stored = text_rating.text_rating(item="{title}"), text_rating.stored_rating(item=item)
    for feature, network in ((whole, exporting.two_texts(trained[0])), (stored, exporting.two_vectors(trained[0]))):
        assert {name for name, _ in feature.inputs} == {read.name for read in network.inputs}
        assert feature.dims is network.dims is None
        assert len(network.examples) >= 8
    assert whole.columns == ("title", "user_text")
    assert text_rating.rating_network("m").network == f"{exporting.__name__}:two_texts"
    assert text_rating.head_network("m").network == f"{exporting.__name__}:two_vectors"


# Bases


def test_a_new_encoder_takes_only_the_vocabulary(base_folder):
    one, same, other = (open_bert(base_folder, dims=24, layers=1, seed=seed) for seed in (0, 0, 1))
    assert (one.config.hidden_size, one.config.num_hidden_layers, one.config.vocab_size) == (24, 1, 27)
    assert torch.equal(one.embeddings.word_embeddings.weight, same.embeddings.word_embeddings.weight)
    assert not torch.equal(one.embeddings.word_embeddings.weight, other.embeddings.word_embeddings.weight)
    cut = open_bert(base_folder, layers=1)
    assert len(cut.encoder.layer) == 1


def test_a_wrong_base_is_named(base_folder, tmp_path):
    with pytest.raises(SourceError, match=r"config\.json is not there"):
        find_base(str(tmp_path))
    with pytest.raises(SourceError, match="'no_such_package' is not installed"):
        find_base("package:no_such_package/model")
    with pytest.raises(SourceError, match="at most 2 layers, got 3"):
        open_bert(base_folder, layers=3)
    with pytest.raises(SourceError, match="what `llmrec train text-rating` wrote"):
        load_text_rating(tmp_path)


def test_batches_hold_every_row_once_and_are_equally_many():
    lengths = np.random.default_rng(0).integers(1, 50, 1000)
    for seed in (None, 0, 1):
        batches = batches_by_length(lengths, 8, seed)
        assert sorted(np.concatenate(batches)) == list(range(1000))
        assert len(batches) == 125


def test_a_missing_column_is_named(base_folder, tmp_path):
    with pytest.raises(MissingColumnError, match="'plot'"):
        train_text_rating(wishes(rows=40), str(base_folder), tmp_path, PLAN, replace(SETTINGS, item_text="{plot}"))
    data = wishes(rows=40)
    del data.interactions["rating"]
    with pytest.raises(InputError, match="no column 'rating'"):
        train_text_rating(data, str(base_folder), tmp_path, PLAN, SETTINGS)


def test_the_command_trains_from_atomic_files(base_folder, tmp_path):
    write_atomic(wishes(rows=120), tmp_path / "data")
    arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out"), "--base", str(base_folder)]
    options = ["--epochs", "1", "--dims", "16", "--layers", "1", "--max-tokens", "12", "--no-progress"]
    result = CliRunner().invoke(command, [*arguments, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    network, config = load_text_rating(tmp_path / "out")
    assert network.bert.config.hidden_size == 16
    assert config["settings"]["item_text"] == "{title}"
