"""U-BERT and the text rating model through Feast: trained, exported, stored, read with and without a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import HERE, Repo

pytestmark = pytest.mark.feast

FEATURES = """
from feast.types import Array, Float32

from llmrec_plugin.systems import text_rating, ubert


def view(entity, **columns):
    name = entity.name + "_rows"
    fields = [Field(name=column, dtype=dtype) for column, dtype in columns.items()]
    source = FileSource(name=name, path=f"data/{name}.parquet", timestamp_field="event_timestamp")
    return FeatureView(
        name=name, entities=[entity], ttl=timedelta(days=36_500), source=source,
        schema=[Field(name=entity.join_key, dtype=String), *fields],
    )


review, user, film = (Entity(name=name, join_keys=[name]) for name in ("review", "user", "film"))
review_rows = view(review, text=String, author=String)
user_rows = view(user, user_reviews=Array(Float32), user_text=String)
film_rows = view(film, item_reviews=Array(Float32), film_title=String)

review_vec = ubert.review_vector(dims=16, review="text", user="author")
user_review_vec = ubert.side_vector("user", dims=16, reviews="user_reviews")
ubert_rating = ubert.pair_rating(status=True)
ubert_pair_vec = ubert.pair_vector(dims=8)

encoder = text_rating.text_encoder("none", dims=16, max_tokens=24)
user_text_vec = text_rating.text_vector(encoder, name="user_text_vec", entity="user", text="{user_text}")
item_text_vec = text_rating.text_vector(encoder, name="item_text_vec", entity="film", text="{film_title}")
text_rating_now = text_rating.text_rating(item="{film_title}")
text_rating_stored = text_rating.stored_rating(name="text_rating_stored")
"""
PUBLISH = """, sources={
    "ubert_rating": [user_rows, film_rows], "ubert_pair_vec": [user_rows, film_rows],
    "text_rating": [user_rows, film_rows],
}"""
PAIRS = [{"user": user, "film": item} for user in ("u0", "u1") for item in ("i0", "i3")]


@pytest.fixture(scope="module")
def trained(new_repo: Callable[..., Repo]) -> tuple[Repo, dict[str, Any]]:
    pytest.importorskip("torch", reason="torch comes with the extra 'export'")
    pytest.importorskip("transformers", reason="transformers comes with the extra 'export'")
    repo = new_repo("reviews")
    repo.export()
    expected = repo.call(
        "review_steps:train",
        paths=[HERE.parent],
        where=str(repo.root / "trained"),
        artifacts=str(repo.root / "home" / "artifacts"),
    )
    return repo, expected


@pytest.fixture(scope="module")
def repo(trained: tuple[Repo, dict[str, Any]]) -> Repo:
    from integration.review_steps import dataset

    from llmrec_plugin.systems.text_rating.texts import user_texts
    from llmrec_plugin.systems.ubert import review_matrices

    repo, expected = trained
    data = dataset()
    log = data.interactions.rename(columns={"timestamp": "event_timestamp"}).assign(review_vec=expected["vectors"])
    users = review_matrices(log, key="user_id", last_n=3, name="user_reviews")
    users["user_text"] = user_texts(data.interactions, data.item_texts("{title}"), last_n=3)["user_text"]
    films = review_matrices(log, key="item_id", last_n=4, name="item_reviews")
    titles = data.items.set_index("item_id")["title"]
    films["film_title"] = [titles[item] for item in films["item_id"]]
    reviews = log.assign(review=[f"r{n}" for n in range(len(log))], text=log["review"], author=log["user_id"])
    tables = {
        "user": users.rename(columns={"user_id": "user"}),
        "film": films.rename(columns={"item_id": "film"}),
        "review": reviews[["review", "text", "author", "event_timestamp"]],
    }
    types = {"user_reviews": pa.list_(pa.float32()), "item_reviews": pa.list_(pa.float32())}
    for name, table in tables.items():
        arrow = pa.Table.from_pandas(table, preserve_index=False)
        for column in types.keys() & set(table.columns):
            place = arrow.column_names.index(column)
            arrow = arrow.set_column(place, column, arrow.column(column).cast(types[column]))
        pq.write_table(arrow, repo.folder / "data" / f"{name}_rows.parquet")
    repo.declare(extra=FEATURES, publish=PUBLISH)
    repo.write_items([{"item": "i", "title": "red", "at": pd.Timestamp("2026-01-01", tz="UTC")}])
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2027-01-01")
    return repo


def test_review_vectors_are_those_of_training(repo: Repo, trained: tuple[Repo, dict[str, Any]]) -> None:
    rows = [{"review": f"r{n}"} for n in range(60)]
    stored = repo.online(["review_vec:review_vec"], rows)["review_vec"]
    np.testing.assert_allclose(stored, trained[1]["vectors"], atol=1e-4)


def test_a_pair_is_rated_from_stored_matrices(repo: Repo, trained: tuple[Repo, dict[str, Any]]) -> None:
    features = ["ubert_rating:ubert_rating", "ubert_rating:ubert_rating_status", "ubert_pair_vec:ubert_pair_vec"]
    answer = repo.online(features, [*PAIRS, {"user": "u0", "film": "new"}])
    assert answer["ubert_rating"] == [*map(close, trained[1]["pairs"].values()), None]
    assert answer["ubert_rating_status"] == ["ok"] * 4 + ["empty"]
    assert {len(vector) for vector in answer["ubert_pair_vec"][:4]} == {8}
    assert answer["ubert_pair_vec"][4] is None


def test_texts_and_stored_vectors_give_what_training_gives(repo: Repo, trained: tuple[Repo, dict[str, Any]]) -> None:
    answer = repo.online(["text_rating:text_rating", "text_rating_stored:text_rating_stored"], PAIRS)
    expected = [*map(close, trained[1]["texts"].values())]
    assert answer["text_rating"] == expected
    assert answer["text_rating_stored"] == expected


def test_a_ranker_reads_them_as_any_other_feature(repo: Repo) -> None:
    """It learns to prefer the two films of each user that U-BERT rates best, from two columns of Feast."""
    pytest.importorskip("lightgbm", reason="the ranker's own package")
    features = ["text_rating:text_rating", "ubert_rating:ubert_rating"]
    rows = [{"user": f"u{user}", "film": f"i{film}"} for user in range(4) for film in range(5)]
    ratings = np.array(repo.online(features, rows)["ubert_rating"]).reshape(4, 5)
    best = [set(order[:2].tolist()) for order in np.argsort(-ratings, axis=1)]
    relevant = [int(film in liked) for liked in best for film in range(5)]
    orders = repo.call("ranker_steps:rank", features=features, rows=rows, relevant=relevant, group=5)
    assert sum(order[0] in liked for order, liked in zip(orders, best, strict=True)) >= 3


def test_a_label_sees_no_review_of_its_own_moment(repo: Repo) -> None:
    """The fifth review of u0 is of hour 16; the label there sees the three before it, and one later sees it too."""
    moment = pd.Timestamp("2026-01-01T16:00:00Z")
    times = [moment - pd.Timedelta("1us"), moment, moment + pd.Timedelta("1us")]
    rows = [{"user": "u0", "event_timestamp": time.isoformat()} for time in times]
    found = repo.historical(["user_review_vec:user_review_vec"], rows)
    before, at, after = (row["user_review_vec"] for row in found)
    assert before == at
    assert after != at


def close(value: float) -> Any:
    return pytest.approx(value, abs=1e-4)
