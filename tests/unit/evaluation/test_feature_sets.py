"""Built-in feature sets and their controls."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_data import TASTES, dataset, knows

from llmrec_plugin import EmbeddingFeature, HistoryEmbeddingFeature
from llmrec_plugin.errors import InputError
from llmrec_plugin.evaluation.base import BaseColumns
from llmrec_plugin.evaluation.declared import EventList, Inputs, list_columns
from llmrec_plugin.evaluation.features import FunctionSet, Noise, Shuffled, outdated, randomized, shuffled
from llmrec_plugin.evaluation.sets import PairSet, SimilaritySet, TagSet
from llmrec_plugin.evaluation.tables import TableSet
from llmrec_plugin.evaluation.windows import NEVER, Catalogue, Rows, windows
from llmrec_plugin.interactions import split_dataset

ENCODED = {"model": "m", "pooling": "mean", "normalize": True, "prefix": "", "max_tokens": 16, "dims": TASTES}
TITLE = EmbeddingFeature(name="title_embedding", entity="item", text="{title}", metric="cosine", **ENCODED)
HISTORY = HistoryEmbeddingFeature(
    name="history_embedding", entity="user", events="titles", order="oldest_first", last_n=2, metric="cosine", **ENCODED
)


class Tastes:
    """Computes what a text says: ``thing 2`` becomes the third unit vector; a list, the vector of its last."""

    def __init__(self):
        self.asked = []

    def values(self, feature, columns):
        self.asked.append((feature, dict(columns)))
        (column,) = columns.values()
        texts = [value[-1] if isinstance(value, list) and value else value for value in column]
        return [np.eye(TASTES, dtype=np.float32)[int(text[-1])] if text else None for text in texts]

    def vectors(self, feature, columns):
        values = self.values(feature, columns)
        return np.stack([np.full(TASTES, np.nan, np.float32) if value is None else value for value in values])

    def check_space(self, item, user):
        assert (item, user) == (TITLE, HISTORY)

    def seconds(self, feature, columns):
        return 2.0


@pytest.fixture(scope="module")
def test_window():
    data = dataset(timed=True, rated=True)
    return windows(Catalogue.of(data), split_dataset(data), list_events=6)[2]


def everything(window):
    return Rows.of([np.arange(len(window.catalogue.items))] * len(window))


def taste(window, item):
    return int(window.catalogue.items[item][1:]) % TASTES


def test_similarities_are_those_of_the_declared_vectors(test_window):
    computer = Tastes()
    inputs = Inputs(events={"titles": "{title}"}, last_n=2)
    features = SimilaritySet(name="text", computer=computer, item=TITLE, user=HISTORY, inputs=inputs)
    found = features.columns(test_window, everything(test_window))
    assert found.names == ("text_user", "text_history", "text_nearest", "text_disliked")
    assert found.latest.tolist() == np.repeat(test_window.latest(), 120).tolist()
    for query in (0, 3):
        past = test_window.past(query)
        liked = [taste(test_window, item) for item in past.item[past.liked]][:2]
        newest = taste(test_window, past.item[0])
        values = found.values[query * 120 : (query + 1) * 120]
        mean = np.eye(TASTES)[liked].mean(axis=0)
        for item in range(0, 120, 17):
            mine = taste(test_window, item)
            assert values[item, 0] == (mine == newest)  # oldest first: the last of the list is the newest
            assert values[item, 1] == pytest.approx(mean[mine] / np.linalg.norm(mean), abs=1e-6)
            assert values[item, 2] == (mine in liked)
    assert len([feature for feature, _ in computer.asked if feature is TITLE]) == 1  # items are computed once
    assert features.cost().item_bytes == 4 * TASTES


def test_a_list_without_a_history_has_no_similarity_to_it(test_window):
    empty = test_window.with_history(np.zeros(len(test_window.history), dtype=bool))
    features = SimilaritySet(name="text", computer=Tastes(), item=TITLE)
    found = features.columns(empty, everything(empty))
    assert np.isnan(found.values).all()
    assert (found.latest == NEVER).all()


def test_events_are_newest_first_unless_the_feature_says_otherwise(test_window):
    inputs = Inputs(events={"titles": "item_id"}, last_n=3)
    columns = list_columns(HISTORY, test_window, inputs)["titles"]
    past = test_window.catalogue.items[test_window.past_items(0)]
    assert columns[0] == list(past[:3])[::-1]
    only_liked = Inputs(events={"titles": "rating"}, last_n=3, liked_only=True)
    assert all(
        rating >= 4 for ratings in list_columns(HISTORY, test_window, only_liked)["titles"] for rating in ratings
    )


def test_shuffled_features_are_those_of_other_items(test_window):
    features = SimilaritySet(name="text", computer=Tastes(), item=TITLE, with_vectors=True)
    permutation = np.roll(np.arange(120), 1)  # every item gets the text of the one before
    rows = everything(test_window)
    found = Shuffled(inner=features, permutation=permutation).columns(test_window, rows)
    real = features.columns(test_window, rows)
    assert found.names == real.names
    # A shift moves all tastes alike, so similarities are those of the shifted catalogue: unchanged.
    np.testing.assert_allclose(found.values, np.where(np.isnan(found.values), np.nan, real.values), atol=1e-6)
    swapped = np.random.default_rng(0).permutation(120)
    assert not np.allclose(
        Shuffled(inner=features, permutation=swapped).columns(test_window, rows).values, real.values, equal_nan=True
    )
    vectors = Shuffled(inner=features, permutation=permutation).vectors(test_window)
    np.testing.assert_array_equal(vectors.item, features.vectors(test_window).item[permutation])


def test_random_vectors_have_the_shape_and_lengths_of_the_real_ones(test_window):
    features = SimilaritySet(name="text", computer=Tastes(), item=TITLE, with_vectors=True)
    control = randomized(features, 3)
    real, drawn = features.vectors(test_window), control.vectors(test_window)
    assert drawn.item.shape == real.item.shape
    np.testing.assert_allclose(np.linalg.norm(drawn.item, axis=1), np.linalg.norm(real.item, axis=1), rtol=1e-5)
    rows = everything(test_window)
    assert control.columns(test_window, rows).names == features.columns(test_window, rows).names
    again = randomized(features, 3).columns(test_window, rows).values
    np.testing.assert_array_equal(control.columns(test_window, rows).values, again)


def test_noise_does_not_depend_on_the_part_that_is_asked(test_window):
    control = Noise(inner=FunctionSet(name="knows", function=knows, options={}), seed=1)
    whole = control.columns(test_window, everything(test_window)).values
    part = test_window.part(np.array([2]))
    np.testing.assert_array_equal(control.columns(part, everything(part)).values, whole[240:360])
    assert abs(whole.mean()) < 0.05
    assert whole.std() == pytest.approx(1, abs=0.05)


def test_tags_in_common_with_the_history(test_window):
    features = TagSet(name="kinds", tags="kind", inputs=Inputs(last_n=1))
    found = features.columns(test_window, everything(test_window))
    past = test_window.past(0)
    newest = taste(test_window, past.item[past.liked][0])
    mine = np.array([taste(test_window, item) == newest for item in range(120)])
    np.testing.assert_allclose(found.values[:120, 0], mine, atol=1e-6)
    np.testing.assert_array_equal(found.values[:120, 1], mine)
    assert (found.values[:120, 2] == 1).all()
    assert features.cost().item_bytes == 6  # "kind0" and a separator
    drawn = randomized(features, 0).columns(test_window, everything(test_window))
    assert (drawn.values[:, 2] == 1).all()
    assert 0.1 < drawn.values[:120, 0].mean() < 0.5


def test_a_pair_is_asked_with_the_columns_of_both_sides(test_window):
    class Pair:
        columns = ("item_id", "user_id", "seen")

    class Computer:
        def vectors(self, feature, columns):
            return np.array([[item in seen] for item, _, seen in zip(*columns.values(), strict=True)], np.float32)

        def seconds(self, feature, columns):
            return 0.0

    inputs = Inputs(events={"seen": "item_id"}, last_n=100)
    found = PairSet(name="was_there", computer=Computer(), pair=Pair(), inputs=inputs).columns(
        test_window, everything(test_window)
    )
    assert found.names == ("was_there",)
    assert set(np.flatnonzero(found.values[:120, 0])) == set(test_window.past_items(0))


def test_a_pair_has_values_for_the_shortlist_alone(test_window):
    class Pair:
        columns = ("item_id", "seen")

    class Computer:
        asked = 0

        def vectors(self, feature, columns):
            self.asked += len(columns["item_id"])
            return np.array([int(item[1:]) for item in columns["item_id"]], np.float32)[:, None]

    inputs, computer = Inputs(events={"seen": "item_id"}), Computer()
    features = PairSet(name="number", computer=computer, pair=Pair(), inputs=inputs, shortlist=10)
    found = features.columns(test_window, everything(test_window))
    assert computer.asked == 10 * len(test_window)
    shortlist = BaseColumns().shortlist(test_window, 10)
    for query in range(len(test_window)):
        own = found.values[query * 120 : (query + 1) * 120, 0]
        chosen = shortlist.item[shortlist.offsets[query] : shortlist.offsets[query + 1]]
        np.testing.assert_array_equal(np.flatnonzero(~np.isnan(own)), chosen)
        np.testing.assert_array_equal(own[chosen], chosen)
        assert not set(chosen) & set(test_window.past_items(query))
    assert (found.latest[np.isnan(found.values[:, 0])] == NEVER).all()
    some = Rows.of([np.array([3, 7, 50])] * len(test_window))
    features.columns(test_window, Rows.of([np.array([], dtype=np.int64)] * len(test_window)))
    assert features.cost().seconds == 0  # nothing was asked for last
    np.testing.assert_array_equal(
        features.columns(test_window, some).values.reshape(-1, 3), found.values.reshape(-1, 120)[:, [3, 7, 50]]
    )

    permutation = np.random.default_rng(1).permutation(120)
    control = shuffled(features, permutation).columns(test_window, some)
    np.testing.assert_array_equal(np.isnan(control.values), np.isnan(features.columns(test_window, some).values))
    there = ~np.isnan(control.values[:, 0])
    np.testing.assert_array_equal(control.values[there, 0], permutation[some.item[there]])
    control = outdated(features, int(test_window.history.time.min())).columns(test_window, some)  # no history at all
    np.testing.assert_array_equal(control.values, features.columns(test_window, some).values)
    assert (control.latest == NEVER).all()


@pytest.mark.parametrize("liked", [True, False])
def test_a_list_of_one_side_of_the_history(test_window, liked):
    class Lists:
        columns = ("some",)

    inputs = Inputs(events={"some": EventList(shows="item_id", liked=liked)}, last_n=3)
    found = list_columns(Lists(), test_window, inputs)["some"]
    for query, items in enumerate(found):
        past = test_window.past(query)
        assert items == test_window.catalogue.items[past.item[past.liked == liked][:3]].tolist()
    assert any(found)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1_000_000)), min_size=1, max_size=20, unique=True))
def test_a_table_is_joined_as_of_the_moment(tmp_path_factory, test_window, rows):
    path = tmp_path_factory.mktemp("t") / "x.parquet"
    frame = pd.DataFrame(
        {
            "item_id": [f"i{item:03d}" for item, _ in rows],
            "event_timestamp": pd.to_datetime([second for _, second in rows], unit="s", utc=True),
            "value": np.arange(len(rows), dtype=np.float64),
        }
    )
    frame.to_parquet(path)
    window = test_window.part(np.arange(4))
    found = TableSet(name="t", path=path).columns(window, Rows.of([np.arange(6)] * 4))
    for row, (query, item) in enumerate((query, item) for query in range(4) for item in range(6)):
        known = [(second * 1_000_000, number) for number, (each, second) in enumerate(rows)
                 if each == item and second * 1_000_000 <= window.moment[query]]  # fmt: skip
        if known:
            assert (found.latest[row], found.values[row, 0]) == max(known)
        else:
            assert np.isnan(found.values[row, 0])
            assert found.latest[row] == NEVER


def test_a_table_of_users_and_items_is_joined_by_both(tmp_path, test_window):
    path = tmp_path / "x.parquet"
    user = test_window.catalogue.users[test_window.user[1]]
    pd.DataFrame({"user_id": [user], "item_id": ["i003"], "score": [7.0]}).to_parquet(path)
    found = TableSet(name="t", path=path, static=True).columns(test_window, everything(test_window))
    rows = [row for row, value in enumerate(found.values[:, 0]) if value == 7]
    assert {row % 120 for row in rows} == {3}
    assert {test_window.user[row // 120] for row in rows} == {test_window.user[1]}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"value": [1.0]}, "needs item_id or user_id"),
        ({"item_id": ["i001"]}, "numeric columns"),
        ({"item_id": ["i001"], "value": [1.0]}, "static: true"),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused(tmp_path, test_window, frame, message):
    pd.DataFrame(frame).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        TableSet(name="t", path=tmp_path / "x.parquet").columns(test_window, everything(test_window))
