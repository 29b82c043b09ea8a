"""U-BERT reads reviews, never a label's own, and padding changes nothing."""

import json
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from llmrec_plugin.errors import InputError, MissingColumnError, SourceError
from llmrec_plugin.interactions import Dataset, read_atomic, write_atomic
from llmrec_plugin.systems import ubert

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("transformers", reason="the export extra is not installed")

from llmrec_plugin.systems.past import MOMENT  # noqa: E402
from llmrec_plugin.systems.ubert import exporting, standins  # noqa: E402
from llmrec_plugin.systems.ubert.commands import ubert as train_command  # noqa: E402
from llmrec_plugin.systems.ubert.commands import ubert_pretrain, ubert_reviews  # noqa: E402
from llmrec_plugin.systems.ubert.finetuning import (  # noqa: E402
    FinetuningSettings,
    finetune,
    load_pair_network,
    rated_rows,
    read_pairs,
)
from llmrec_plugin.systems.ubert.network import CoMatching, Fusion, PairNetwork  # noqa: E402
from llmrec_plugin.systems.ubert.opinions import ids_by_rating, ids_of_words, opinion_places, read_words  # noqa: E402
from llmrec_plugin.systems.ubert.pretraining import (  # noqa: E402
    PretrainingSettings,
    encode_reviews,
    load_encoder,
    pretrain,
)
from llmrec_plugin.systems.ubert.tables import review_matrices  # noqa: E402
from llmrec_plugin.training.loop import Plan  # noqa: E402

GOOD, BAD = "quiet books music beach".split(), "loud rain cheap market".split()
PLAN = Plan(epochs=6, patience=6, learning_rate=3e-3)
SMALL = PretrainingSettings(max_tokens=16, least_count=3, batch_size=32)
PAIR = FinetuningSettings(user_reviews=4, item_reviews=4, hidden=16, batch_size=64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one
    yield
    torch.set_num_threads(threads)


def rated(rows=600, users=20, items=60, seed=0, tells=True):
    """Each item is good or bad. Reviews say which; without `tells` ratings are noise, and a review says its own."""
    rng = np.random.default_rng(seed)
    quality = rng.integers(0, 2, items)
    who, what = rng.integers(0, users, rows), rng.integers(0, items, rows)
    good = quality[what] if tells else rng.integers(0, 2, rows)
    texts = [f"the {rng.choice(GOOD if kind else BAD)} and {rng.choice(GOOD if kind else BAD)}" for kind in good]
    interactions = pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in who],
            "item_id": [f"i{n}" for n in what],
            "rating": np.where(good, 5.0, 1.0),
            "timestamp": pd.date_range("2026-01-01", periods=rows, freq="h", tz="UTC").astype("datetime64[us, UTC]"),
            "review": texts,
        }
    )
    tables = {key: pd.DataFrame({key: sorted(set(interactions[key]))}) for key in ("user_id", "item_id")}
    return Dataset(name="rated", interactions=interactions, items=tables["item_id"], users=tables["user_id"])


@pytest.fixture(scope="module")
def pretrained(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ubert") / "pretrained"
    quality = pretrain(rated(), str(base_folder), folder, PLAN, SMALL, progress=False, report=lambda line: None)
    return folder, quality


@pytest.fixture(scope="module")
def tuned(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ubert") / "tuned"
    plan = Plan(epochs=10, patience=10, learning_rate=3e-3)
    quality = finetune(rated(seed=1), pretrained[0], folder, plan, PAIR, progress=False, report=lambda line: None)
    return folder, quality


# Networks


def sides(rng, batch=3, n=4, m=2, dims=8):
    a, b = (torch.from_numpy(rng.standard_normal((batch, size, dims)).astype(np.float32)) for size in (n, m))
    return a, torch.ones(batch, n).long(), b, torch.ones(batch, m).long()


def padded(rows, mask, more, rng):
    extra = torch.from_numpy(rng.standard_normal((rows.shape[0], more, rows.shape[2])).astype(np.float32)) * 100
    return torch.cat([rows, extra], 1), torch.cat([mask, torch.zeros(mask.shape[0], more).long()], 1)


@pytest.mark.parametrize("more", [(1, 0), (0, 3), (5, 2)])
def test_padding_never_changes_a_value(more):
    rng = np.random.default_rng(0)
    network = PairNetwork(8, 5, 5, hidden=6).eval()
    a, a_mask, b, b_mask = sides(rng)
    ids = torch.tensor([1, 0, 3]), torch.tensor([2, 5, 0])
    wide = (*padded(a, a_mask, more[0], rng), *padded(b, b_mask, more[1], rng))
    with torch.inference_mode():
        for compute in (network, network.vector):
            torch.testing.assert_close(compute(*wide, *ids), compute(a, a_mask, b, b_mask, *ids), atol=1e-5, rtol=0)
        torch.testing.assert_close(network.user(*wide[:2], ids[0]), network.user(a, a_mask, ids[0]), atol=1e-5, rtol=0)


def test_a_side_without_reviews_is_read_as_one_learned_row():
    rng = np.random.default_rng(0)
    network = PairNetwork(8, 5, 5, hidden=6).eval()
    a, a_mask, b, b_mask = sides(rng)
    ids = torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3])
    with torch.inference_mode():
        nothing = network(a[:, :0], a_mask[:, :0], b, b_mask, *ids)
        masked = network(a, torch.zeros_like(a_mask), b, b_mask, *ids)
        both = network(a[:, :0], a_mask[:, :0], b[:, :0], b_mask[:, :0], *ids)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(masked, nothing, atol=1e-5, rtol=0)


def test_the_order_of_reviews_does_not_matter_and_each_review_does():
    rng = np.random.default_rng(0)
    matching = CoMatching(8).eval()
    a, a_mask, b, b_mask = sides(rng)
    who = torch.zeros(3, 8)
    with torch.inference_mode():
        user, item = matching(a, a_mask, b, b_mask, who, who)
        turned = matching(a.flip(1), a_mask, b.flip(1), b_mask, who, who)
        torch.testing.assert_close((user, item), turned, atol=1e-5, rtol=0)
        changed = a.clone()
        changed[:, 2] += 1
        other = matching(changed, a_mask, b, b_mask, who, who)
    assert (other[0] - user).abs().max() > 1e-4
    assert (other[1] - item).abs().max() > 1e-5  # the item's side read it


def test_co_matching_learns_whether_two_sides_share_a_topic():
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((6, 8)).astype(np.float32)
    network = PairNetwork(8, 1, 1, hidden=16, dropout=0.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    nobody, ones = torch.zeros(128).long(), torch.ones(128, 2).long()

    def draw():
        left, right = rng.integers(0, 6, (128, 2)), rng.integers(0, 6, (128, 2))
        shared = (left[:, :, None] == right[:, None]).any((1, 2))
        return torch.from_numpy(topics[left]), torch.from_numpy(topics[right]), torch.from_numpy(shared).float()

    torch.manual_seed(0)
    for _ in range(250):
        left, right, shared = draw()
        loss = torch.nn.functional.mse_loss(network(left, ones, right, ones, nobody, nobody), shared)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    left, right, shared = draw()
    with torch.inference_mode():
        error = torch.nn.functional.mse_loss(network.eval()(left, ones, right, ones, nobody, nobody), shared).item()
    assert error < 0.4 * shared.var().item()


def test_a_user_encoder_finds_what_the_user_asks_for():
    fusion = Fusion(4).eval()
    with torch.no_grad():
        fusion.query.weight.copy_(torch.eye(4) * 50)
        fusion.key.weight.copy_(torch.eye(4))
        fusion.key.bias.zero_()
    rows = torch.eye(4).unsqueeze(0)
    with torch.inference_mode():
        first, second = (fusion(torch.eye(4)[[n]], rows, torch.ones(1, 4).long()) for n in (0, 1))
        alone = fusion(torch.eye(4)[[0]], rows[:, :1], torch.ones(1, 1).long())
    torch.testing.assert_close(first, alone, atol=1e-4, rtol=0)
    assert (first - second).abs().max() > 1e-2


# What is read for a label


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("timed", [True, False])
def test_no_label_reads_its_own_review_or_a_later_one(seed, timed):
    rng = np.random.default_rng(seed)
    dataset = rated(rows=80, users=4, items=5, seed=seed)
    rows = dataset.interactions
    rows.loc[rng.random(len(rows)) < 0.3, "review"] = None
    if timed:  # many events of one moment
        rows["timestamp"] = rows["timestamp"].dt.floor("12h")
    else:
        del rows["timestamp"]
    table = rated_rows(dataset, "review", seed)
    table["label"] = range(len(table))
    reviews = table[table["review"].notna()].sample(frac=1, random_state=seed).reset_index(drop=True)
    pairs = read_pairs(table, reviews, ["u0"], ["i0"], FinetuningSettings(user_reviews=3, item_reviews=100))
    for key, found in (("user_id", pairs.of_user), ("item_id", pairs.of_item)):
        label, column = np.nonzero(found >= 0)
        read = reviews.iloc[found[label, column]]
        assert (read[MOMENT].to_numpy() < table[MOMENT].to_numpy()[label]).all()
        assert (read["label"].to_numpy() != label).all()
        assert (read[key].to_numpy() == table[key].to_numpy()[label]).all()
    whole = [
        ((reviews["item_id"] == item) & (reviews[MOMENT] < moment)).sum()
        for item, moment in zip(table["item_id"], table[MOMENT], strict=True)
    ]
    assert (pairs.of_item >= 0).sum(1).tolist() == whole


def test_reviews_that_give_away_their_own_rating_alone_help_nothing(pretrained, tmp_path):
    plan = Plan(epochs=6, patience=2, learning_rate=1e-3)
    data = rated(rows=800, tells=False, seed=3)
    quality = finetune(data, pretrained[0], tmp_path / "x", plan, PAIR, progress=False, report=lambda line: None)
    assert quality["test"]["mse"] > 0.9 * quality["test_of_mean"]["mse"]


@pytest.mark.parametrize("seed", range(5))
def test_stored_matrices_are_what_training_reads(seed):
    rng = np.random.default_rng(seed)
    dataset = rated(rows=60, users=3, items=4, seed=seed)
    dataset.interactions["timestamp"] = dataset.interactions["timestamp"].dt.floor("4h")
    table = rated_rows(dataset, "review", 0)
    vectors = rng.standard_normal((60, 5)).astype(np.float32)
    pairs = read_pairs(table, table, [], [], FinetuningSettings(user_reviews=3, item_reviews=3))
    log = table.assign(review_vec=list(vectors))
    for key, found in (("user_id", pairs.of_user), ("item_id", pairs.of_item)):
        stored = review_matrices(log, key=key, last_n=3, timestamp="timestamp")
        assert not stored.duplicated([key, "timestamp"]).any()
        joined = pd.merge_asof(
            table[[key, "timestamp"]], stored.sort_values("timestamp"), on="timestamp", by=key, direction="backward"
        )
        for row, flat in zip(found, joined["reviews"], strict=True):
            expected = vectors[row[row >= 0]].ravel().tolist()
            assert (flat if isinstance(flat, list) else []) == expected


def test_matrices_name_what_is_wrong():
    log = pd.DataFrame({"user_id": ["u"], "review_vec": [[1.0]], "event_timestamp": [pd.Timestamp("2026-01-01")]})
    (row,) = review_matrices(log, key="user_id").to_dict("records")
    assert row["event_timestamp"] == pd.Timestamp("2026-01-01 00:00:00.000001", tz="UTC")
    assert row["reviews"] == [1.0]
    with pytest.raises(MissingColumnError, match="review_vec"):
        review_matrices(log.drop(columns="review_vec"), key="user_id")
    with pytest.raises(InputError, match="one length"):
        review_matrices(pd.concat([log, log.assign(review_vec=[[1.0, 2.0]])]), key="user_id")
    with pytest.raises(InputError, match="1 reviews have no 'event_timestamp'"):
        review_matrices(log.assign(event_timestamp=pd.NaT), key="user_id")


# Opinion words


def test_opinion_words_are_those_that_go_with_ratings():
    good, bad, neutral, rare = 5, 6, 7, 8
    reviews = [np.array([2, good if n % 2 else bad, neutral, 3]) for n in range(40)]
    reviews[1] = np.array([2, rare, good, good, 3])
    ratings = np.array([5.0 if n % 2 else 1.0 for n in range(40)])
    words = np.array([good, bad, neutral, rare])
    assert ids_by_rating(reviews, ratings, words, most=10, least_count=5).tolist() == [good, bad]
    assert len(ids_by_rating(reviews, ratings, words, most=1, least_count=5)) == 1
    with pytest.raises(InputError, match="--opinions FILE"):
        ids_by_rating(reviews, np.full(40, 3.0), words, most=10, least_count=5)


def test_a_word_that_goes_on_is_no_opinion_word():
    is_opinion, continues = np.zeros(10, dtype=bool), np.zeros(10, dtype=bool)
    is_opinion[[4, 5]], continues[9] = True, True
    assert opinion_places(np.array([2, 4, 9, 5, 4, 3]), is_opinion, continues).tolist() == [3, 4]


def test_opinion_words_from_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("; a comment\nGood\n\nbad\ngood\nunheard-of\n")
    assert read_words(path) == ["good", "bad", "unheard-of"]
    assert ids_of_words(read_words(path), {"good": 7, "bad": 3}).tolist() == [3, 7]
    with pytest.raises(InputError, match="None of 1 opinion words"):
        ids_of_words(["good"], {})


# Training


def test_pretraining_learns_both_tasks(pretrained):
    folder, quality = pretrained
    test = quality["test"]
    assert test["rating_mse"] < 0.2 * test["rating_mse_of_mean"]
    assert test["opinion_accuracy"] > 1.3 * test["opinion_accuracy_of_most_frequent"]
    assert set(json.loads((folder / "opinions.json").read_text())) == {*GOOD, *BAD}
    assert json.loads((folder / "quality.json").read_text()) == quality
    assert quality["reviews"]["train"] == 480


def test_the_author_is_read(pretrained):
    encoder, _, users = load_encoder(pretrained[0])
    tokens = [np.array([2, 6, 11, 3])] * 3
    vectors = encode_reviews(encoder, tokens, np.array([1, 2, 1]))
    assert (vectors[0] == vectors[2]).all()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    assert len(users) == 20


def test_a_review_vector_does_not_depend_on_its_batch(pretrained):
    encoder, _, _ = load_encoder(pretrained[0])
    rng = np.random.default_rng(0)
    tokens = [np.array([2, *rng.integers(5, 20, length), 3]) for length in range(1, 12)]
    users = np.arange(len(tokens))
    alone = np.concatenate([encode_reviews(encoder, [row], users[[n]]) for n, row in enumerate(tokens)])
    np.testing.assert_allclose(encode_reviews(encoder, tokens, users), alone, atol=1e-5)


def test_reviews_of_others_tell_what_an_item_is_worth(tuned):
    folder, quality = tuned
    assert quality["test"]["mse"] < 0.3 * quality["test_of_mean"]["mse"]
    assert quality["test_without_reviews"]["mse"] > 2 * quality["test"]["mse"]
    assert quality["labels"] == {"train": 480, "validation": 60, "test": 60}
    assert json.loads((folder / "quality.json").read_text()) == quality


def test_a_stopped_run_ends_with_the_same_bytes(pretrained, base_folder, tmp_path):
    quiet = {"progress": False, "report": lambda line: None}
    data = rated(rows=150)
    short, plan = Plan(epochs=2, patience=9, learning_rate=1e-3), Plan(epochs=2, patience=9, learning_rate=1e-3, seed=1)
    for name in ("one", "two", "three"):
        seeded = plan if name == "three" else short
        pretrain(data, str(base_folder), tmp_path / name / "pre", seeded, SMALL, words=[*GOOD, *BAD], **quiet)
        finetune(data, tmp_path / "one" / "pre", tmp_path / name / "tuned", seeded, PAIR, **quiet)
    paths = ("pre/review_encoder.safetensors", "tuned/pair.safetensors")
    for path in paths:
        one, two, three = ((tmp_path / name / path).read_bytes() for name in ("one", "two", "three"))
        assert one == two
        assert one != three
    # All epochs are in the checkpoint, so going on computes no epoch.
    lines = []
    finetune(
        data, tmp_path / "one" / "pre", tmp_path / "one" / "tuned", short, PAIR, progress=False, report=lines.append
    )
    assert any("resuming after epoch 2" in line for line in lines)
    assert (tmp_path / "one/tuned/pair.safetensors").read_bytes() == (
        tmp_path / "two/tuned/pair.safetensors"
    ).read_bytes()


def test_a_wrong_folder_is_named(tmp_path, pretrained):
    with pytest.raises(SourceError, match="expected a folder of `llmrec train`"):
        load_encoder(tmp_path)
    with pytest.raises(SourceError, match="'ubert-pretrained'"):
        load_pair_network(pretrained[0])


def test_a_data_set_without_reviews_is_refused(tmp_path, base_folder):
    data = rated(rows=60)
    with pytest.raises(InputError, match="no column 'text'"):
        pretrain(data, str(base_folder), tmp_path, PLAN, SMALL, review="text")
    data.interactions["review"] = None
    with pytest.raises(InputError, match="expected two training reviews or more"):
        pretrain(data, str(base_folder), tmp_path, PLAN, SMALL)


# Export


@pytest.mark.parametrize("function", ["review_encoder", "review_encoder_anonymous"])
def test_the_review_encoder_can_be_exported(pretrained, function):
    network = getattr(exporting, function)(pretrained[0])
    assert network.dims == 32
    assert len(network.examples) >= 8
    ids, mask = torch.tensor([[2, 6, 11, 3]]), torch.ones(1, 4).long()
    user = () if function.endswith("anonymous") else (torch.tensor([0]),)
    encoder, _, _ = load_encoder(pretrained[0])
    with torch.inference_mode():
        assert torch.equal(network.module(ids, mask, *user), encoder(ids, mask, torch.tensor([0])))
    assert [item.name for item in network.inputs] == (["review"] if not user else ["review", "user"])
    assert network.tokenizer.is_file()


@pytest.mark.parametrize("function", ["user_vector", "item_vector", "pair_vector", "pair_rating"])
@pytest.mark.parametrize("ids", [True, False])
def test_the_trained_networks_can_be_exported(tuned, function, ids):
    network = getattr(exporting, function + ("" if ids else "_anonymous"))(tuned[0])
    pair = function.startswith("pair")
    assert network.dims == (None if function == "pair_rating" else 16 if pair else 32)
    names = [item.name for item in network.inputs]
    keys = {"user", "item"} if pair else {function.split("_")[0]}
    assert all(example.keys() == set(names) for example in network.examples)
    assert (set(names) & {"user", "item"}) == (keys if ids else set())
    with torch.inference_mode():
        for example in network.examples[:3]:
            arguments = []
            for item in network.inputs:
                if item.name in ("user", "item"):
                    arguments.append(
                        torch.tensor([network.vocabularies[item.vocabulary].index(example[item.name]) + 1])
                    )
                else:
                    rows = torch.tensor(example[item.name]).view(1, -1, 32)[:, : item.max_length]
                    arguments += [rows, torch.ones(rows.shape[:2]).long()]
            value = network.module(*arguments)
            assert value.shape == ((1,) if network.dims is None else (1, network.dims))
            assert torch.isfinite(value).all()


def test_declarations_name_these_functions(tuned):
    encoder = ubert.review_encoder(tuned[0])
    models = ubert.pair_networks(tuned[0], ids=True)
    assert [model.name for model in models] == ["ubert-user", "ubert-item", "ubert-pair", "ubert-rating"]
    for model in (encoder, *models, *ubert.pair_networks(tuned[0])):
        assert callable(getattr(exporting, model.network.split(":")[1]))
        assert model.network.startswith(exporting.__name__ + ":")
    assert models[0].network.endswith(":user_vector")
    assert ubert.pair_networks(tuned[0])[3].network.endswith(":pair_rating_anonymous")


def test_features_read_what_the_networks_need(tuned):
    features = {
        "user_vector": ubert.side_vector("user", dims=32, key="user_id"),
        "item_vector_anonymous": ubert.side_vector("item", dims=32),
        "pair_vector": ubert.pair_vector(dims=16, keys=("user_id", "item_id")),
        "pair_rating_anonymous": ubert.pair_rating(),
    }
    for function, feature in features.items():
        network = getattr(exporting, function)(tuned[0])
        assert {name for name, _ in feature.inputs} == {item.name for item in network.inputs}
        assert feature.dims == network.dims
    assert ubert.side_vector("item", dims=32).name == "item_review_vec"
    assert ubert.pair_rating().entity is None
    assert dict(ubert.review_vector(dims=8, user=None).inputs) == {"review": "review"}


# Stand-ins and commands


def movielens(folder):
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,7,4.5,100\n2,7,3.0,50\n1,8,2.0,60\n")
    (folder / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,7,slow,120\n1,7,sad,90\n3,7,none,10\n")
    (folder / "movies.csv").write_text("movieId,title,genres\n7,Seven,Crime\n8,Eight,War\n")
    return folder


def test_tags_stand_in_for_reviews_once_rating_and_tags_are_known(tmp_path):
    data = standins.movielens_reviews(movielens(tmp_path / "ml"))
    rows = data.interactions
    assert rows["review"].tolist() == [None, None, "sad, slow"]
    assert rows["timestamp"].astype("int64").tolist() == [50_000_000, 60_000_000, 120_000_000]
    assert rows["rating"].tolist() == [3.0, 2.0, 4.5]
    with pytest.raises(InputError, match=r"ratings\.csv is not there"):
        standins.movielens_reviews(tmp_path)


def debian(path, packages=12):
    names = [f"p{n}" for n in range(packages)]
    lines = [
        {"name": name, "synopsis": f"tool {name}", "depends": names[:3], "recommends": [names[0], "elsewhere"]}
        for name in names
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"name": "last", "depends": names[5:9]}]))
    return path


def test_relations_and_drawn_ones_stand_in_for_ratings(tmp_path):
    rows = standins.debian_reviews(debian(tmp_path / "p.jsonl"), packages=100).interactions
    liked = rows[rows["rating"] == 1]
    assert not rows.duplicated(["user_id", "item_id"]).any()
    assert set(liked[liked["user_id"] == "p5"]["item_id"]) == {"p0", "p1", "p2"}
    assert liked[liked["user_id"] == "p5"]["review"].eq("tool p5").all()
    assert rows[rows["rating"] == 0]["review"].isna().all()
    assert (rows["rating"] == 0).any()
    words = standins.frequent_words(Dataset(name="x", interactions=rows, items=rows[["item_id"]].drop_duplicates(),
                                            users=rows[["user_id"]].drop_duplicates()))  # fmt: skip
    assert words[0] == "tool"


def test_the_commands_train_from_atomic_files(tmp_path, base_folder):
    runner = CliRunner()
    write_atomic(rated(rows=120), tmp_path / "data")
    common = ["--data", str(tmp_path / "data"), "--no-progress", "--epochs", "1"]
    pre = ["--base", str(base_folder), "--output", str(tmp_path / "pre"), "--dims", "16", "--layers", "1"]
    (tmp_path / "words.txt").write_text("\n".join([*GOOD, *BAD]))
    result = runner.invoke(
        ubert_pretrain, [*common, *pre, "--opinions", str(tmp_path / "words.txt"), "--max-tokens", "12"],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert load_encoder(tmp_path / "pre")[0].users.embedding_dim == 16
    result = runner.invoke(
        train_command, [*common, "--pretrained", str(tmp_path / "pre"), "--output", str(tmp_path / "out")],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert re.search(r'"mse": [\d.]+', result.output)


def test_the_stand_in_command_writes_atomic_files(tmp_path):
    runner = CliRunner()
    source = movielens(tmp_path / "ml")
    result = runner.invoke(ubert_reviews, ["movielens", str(source), "--output", str(tmp_path / "a")])
    assert "3 interactions, 1 with a stand-in" in result.output
    assert read_atomic(tmp_path / "a").interactions["review"].notna().sum() == 1
    path = debian(tmp_path / "p.jsonl")
    result = runner.invoke(
        ubert_reviews, ["debian", str(path), "--output", str(tmp_path / "b")], catch_exceptions=False
    )
    assert result.exit_code == 0
    counts = Counter(read_atomic(tmp_path / "b").interactions["rating"])
    assert counts[1.0] >= counts[0.0] > 0
    assert (tmp_path / "b" / "opinions.txt").read_text().startswith("tool")


def test_the_plugin_gives_its_commands():
    assert [command.name for command in ubert.llmrec_register_trainers()] == [
        "ubert",
        "ubert-pretrain",
        "ubert-reviews",
    ]
