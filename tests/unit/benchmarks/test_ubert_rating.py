"""U-BERT in the evaluation gives what the trained network gives, and reads nothing of the list's moment or later."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from llmrec_plugin.evaluation.features import FunctionSet, Shuffled
from llmrec_plugin.evaluation.windows import Catalogue, Rows, check_no_future, stale, windows
from llmrec_plugin.interactions import Dataset, divide, read_atomic, split_dataset, write_atomic
from llmrec_plugin.testing.tiny import WORDS, tiny_tokenizer

torch = pytest.importorskip("torch", reason="the export extra is not installed")
transformers = pytest.importorskip("transformers", reason="the export extra is not installed")

from benchmarks.evaluation import debian, movielens  # noqa: E402
from benchmarks.evaluation.systems import PRETRAINED, WORK, trained  # noqa: E402
from llmrec_plugin.systems.bert import tokenize  # noqa: E402
from llmrec_plugin.systems.ubert.commands import ubert_reviews  # noqa: E402
from llmrec_plugin.systems.ubert.finetuning import FinetuningSettings, finetune, load_pair_network  # noqa: E402
from llmrec_plugin.systems.ubert.pretraining import (  # noqa: E402
    PretrainingSettings,
    encode_reviews,
    load_encoder,
    pretrain,
)
from llmrec_plugin.training.loop import Plan  # noqa: E402

PLAN = Plan(epochs=1, patience=1, learning_rate=1e-2)
QUIET = {"progress": False, "report": lambda line: None}
USERS, ITEMS, SILENT = 8, 30, "u7"  # the last user writes nothing, and nobody writes of the last items


def reviewed(*, timed, seed=0):
    """Users meet items, an hour apart; two in three write about it."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation([(user, item) for user in range(USERS) for item in range(ITEMS)])[:160]
    rows = pd.DataFrame(
        {
            "user_id": [f"u{user}" for user, _ in pairs],
            "item_id": [f"i{item:02d}" for _, item in pairs],
            "rating": rng.choice([2.0, 5.0], len(pairs)),
            "timestamp": pd.date_range("2026-01-01", periods=len(pairs), freq="h", tz="UTC").astype(
                "datetime64[us, UTC]"
            ),
            "review": [
                " ".join(rng.choice(WORDS, 3)) if rng.random() < 0.7 and user < USERS - 1 and item < ITEMS - 3 else None
                for user, item in pairs
            ],
        }
    )
    users = [f"u{user}" for user in range(USERS)]
    return Dataset(
        name="reviewed",
        interactions=rows if timed else rows.drop(columns=["timestamp", "rating", "review"]),
        items=pd.DataFrame({"item_id": [f"i{item:02d}" for item in range(ITEMS)]}),
        users=pd.DataFrame({"user_id": users, "synopsis": [" ".join(rng.choice(WORDS, 4)) for _ in users]}),
    )


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Trained on what comes before the ranker's events; reads five reviews of a user and three of an item."""
    folder = tmp_path_factory.mktemp("ubert")
    base = folder / "base"
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(["[MASK]"])
    transformers.BertConfig(vocab_size=tokenizer.get_vocab_size()).save_pretrained(base)
    tokenizer.save(str(base / "tokenizer.json"))
    systems, _ = divide(reviewed(timed=True))
    small = PretrainingSettings(dims=16, layers=1, max_tokens=16)
    pretrain(systems, str(base), folder / PRETRAINED, PLAN, small, words=WORDS, **QUIET)
    sizes = FinetuningSettings(user_reviews=5, item_reviews=3, hidden=8)
    finetune(systems, folder / PRETRAINED, folder / "ubert", PLAN, sizes, **QUIET)
    return folder


@pytest.fixture
def work(networks, tmp_path, monkeypatch):
    """Trained systems of both data sets, and all reviews of films."""
    monkeypatch.setenv(WORK, str(tmp_path))
    for name in ("movielens", "debian"):
        trained(name).mkdir(parents=True)
        for network in (PRETRAINED, "ubert"):
            (trained(name) / network).symlink_to(networks / network)
    write_atomic(reviewed(timed=True), trained("movielens") / movielens.WRITTEN)
    return tmp_path


@pytest.fixture
def films():
    return ranked(reviewed(timed=True))


def ranked(data):
    """The window of the test lists."""
    return windows(Catalogue.of(data), split_dataset(data), list_events=4)[2]


def expected(networks, user, item, of_user, of_item):
    """The trained network's rating of one pair, from (author, text) of each side."""
    encoder, _, authors = load_encoder(networks / PRETRAINED)
    network, _ = load_pair_network(networks / "ubert")
    users, items = (json.loads((networks / "ubert" / f"{name}.json").read_text()) for name in ("users", "items"))

    def number(key, keys):
        return keys.index(key) + 1 if key in keys else 0

    def matrix(reviews):
        tokens = tokenize(networks / PRETRAINED / "tokenizer.json", [text for _, text in reviews], 16)
        found = encode_reviews(encoder, tokens, np.array([number(author, authors) for author, _ in reviews]))
        return torch.from_numpy(found)[None], torch.ones(1, len(reviews)).long()

    ids = torch.tensor([number(user, users)]), torch.tensor([number(item, items)])
    with torch.inference_mode():
        return network(*matrix(of_user), *matrix(of_item), *ids).item()


def film_reviews(window, query, item):
    """What a list may read: the user's before the list, of the item before the snapshot; (author, text) each."""
    rows = window.catalogue.data.interactions
    rows = rows[rows["review"].notna()].iloc[::-1]
    time = rows["timestamp"].astype("datetime64[us, UTC]").astype("int64")
    own = (rows["user_id"] == window.catalogue.users[window.user[query]]) & (time < window.moment[query])
    others = (rows["item_id"] == item) & (time < window.start)
    return [list(zip(part["user_id"], part["review"], strict=True)) for part in (rows[own][:5], rows[others][:3])]


def test_films_have_the_ratings_of_the_trained_network_and_nothing_where_a_side_has_no_review(work, networks, films):
    rows = Rows.everything(films)
    found = movielens.ubert_rating(films, rows)
    assert found.names == ("ubert_rating",)
    check_no_future(films.moment[rows.query] - 1, found.latest, "u-bert")
    missing = 0
    for query, item, value in zip(rows.query, rows.item, found.values[:, 0], strict=True):
        user, key = films.catalogue.users[films.user[query]], films.catalogue.items[item]
        sides = film_reviews(films, query, key)
        if all(sides):
            assert value == pytest.approx(expected(networks, user, key, *sides), abs=1e-5)
        else:
            assert np.isnan(value)
            missing += 1
    silent = films.catalogue.users[films.user] == SILENT
    assert silent.any()
    assert silent.sum() * ITEMS < missing < len(rows) / 2


@pytest.mark.parametrize("which", [0, -1])
def test_a_review_of_the_lists_moment_or_later_is_not_read(work, films, monkeypatch, which):
    writing = np.flatnonzero(films.catalogue.users[films.user] != SILENT)
    window = films.part(writing[np.argsort(films.moment[writing], kind="stable")[[which]]])
    rows = Rows.everything(window)
    data = reviewed(timed=True)
    time = data.interactions["timestamp"].astype("int64")

    def values(changed, name):
        other = data.interactions.assign(review=data.interactions["review"].where(~changed, "green kernel"))
        write_atomic(replace(data, interactions=other), trained("movielens") / name)
        monkeypatch.setattr(movielens, "WRITTEN", name)
        return movielens.ubert_rating(window, rows).values

    before = movielens.ubert_rating(window, rows).values
    assert np.isfinite(before).any()
    np.testing.assert_allclose(values(time >= window.moment[0], "later"), before, atol=1e-5)
    assert not np.allclose(values(time < window.start, "earlier"), before, atol=1e-5, equal_nan=True)


def test_the_stale_control_knows_no_review_after_its_moment(work, films):
    rows = Rows.everything(films)
    found = movielens.ubert_rating(stale(films, 0), rows)
    assert np.isnan(found.values).all()


def test_the_shuffled_control_has_reviews_of_another_item_beside_the_users_own(work, films):
    rows = Rows.everything(films)
    features = FunctionSet(name="u-bert", function=movielens.ubert_rating, options={})
    permutation = np.random.default_rng(0).permutation(ITEMS)
    shuffled = Shuffled(inner=features, permutation=permutation).columns(films, rows).values.reshape(-1, ITEMS)
    real = features.columns(films, rows).values.reshape(-1, ITEMS)
    np.testing.assert_allclose(shuffled, real[:, permutation], atol=1e-5)


def test_packages_read_synopses_and_never_that_of_the_labels_own_event(work, networks):
    window = ranked(reviewed(timed=False))
    rows = Rows.everything(window)
    found = debian.ubert_rating(window, rows).values[:, 0]
    users, items = window.catalogue.users, window.catalogue.items
    texts = window.catalogue.data.user_texts("{synopsis}")
    compared = 0
    for query, item, value in zip(rows.query, rows.item, found, strict=True):
        own = users[window.user[query]]
        of_item = [(users[user], texts[users[user]]) for user in window.snapshot.user[window.snapshot.item == item]]
        of_user = [(own, texts[own])] * min(len(window.past_items(query)), 5)
        if item in window.relevant[query]:
            assert own not in {author for author, _ in of_item}
        if not of_item:
            assert np.isnan(value)
        elif len(of_item) <= 3:  # of more, three are drawn
            assert value == pytest.approx(expected(networks, own, items[item], of_user, of_item), abs=1e-5)
            compared += 1
    assert compared > 10
    no_history = window.with_history(np.zeros(len(window.history), dtype=bool))
    assert np.isnan(debian.ubert_rating(no_history, rows).values).all()


def test_what_systems_learn_from_has_no_rating_and_no_tag_after_their_events(tmp_path):
    source, systems = tmp_path / "source", tmp_path / "systems"
    source.mkdir()
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,7,4.0,100\n1,8,3.0,200\n2,7,5.0,300\n")
    (source / "tags.csv").write_text('userId,movieId,tag,timestamp\n1,7,"dark, slow",150\n1,7,late,250\n1,8,fun,200\n')
    (source / "movies.csv").write_text("movieId,title,genres\n7,Seven,Crime\n8,Eight,Drama\n")
    rows = pd.DataFrame({"user_id": ["1", "1"], "item_id": ["7", "8"], "rating": [4.0, 3.0]})
    rows["timestamp"] = pd.to_datetime([100, 200], unit="s", utc=True).astype("datetime64[us, UTC]")
    items = pd.DataFrame({"item_id": ["7", "8"]})
    users = rows[["user_id"]].drop_duplicates()
    write_atomic(Dataset(name="movielens", interactions=rows, items=items, users=users), systems)
    reviews, encoder, everything = movielens.review_commands(source, systems, tmp_path / "work")
    written = train(reviews, everything)
    assert written[0]["review"].tolist() == ["dark, slow", "fun"]
    assert len(written[1]) == 3
    assert encoder[encoder.index("--data") + 1] == reviews[reviews.index("--output") + 1]


def test_what_systems_learn_from_has_no_relation_of_the_rankers_users(tmp_path):
    packages = [
        {"name": f"p{n}", "synopsis": f"package {n}", "tags": [], "depends": [f"p{m}" for m in range(8) if m != n]}
        for n in range(8)
    ]
    (tmp_path / "packages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in packages))
    data = reviewed(timed=False)
    rows = data.interactions.assign(user_id=data.interactions["user_id"].str.replace("u", "p"))
    users = rows[["user_id"]].drop_duplicates()
    systems, ranker = divide(Dataset(name="debian", interactions=rows, items=data.items, users=users))
    write_atomic(systems, tmp_path / "systems")
    reviews, encoder = debian.review_commands(tmp_path / "packages.jsonl", tmp_path / "systems", tmp_path / "work")
    (written,) = train(reviews)
    assert set(written["user_id"]) == set(systems.users["user_id"])
    assert not set(written["user_id"]) & set(ranker.users["user_id"])
    assert encoder[encoder.index("--opinions") + 1].endswith("opinions.txt")


def train(*commands):
    """Runs `llmrec train ubert-reviews`; the interactions that each command wrote."""
    for name, *arguments in commands:
        assert name == "ubert-reviews"
        done = CliRunner().invoke(ubert_reviews, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return [read_atomic(Path(command[command.index("--output") + 1])).interactions for command in commands]
