"""MINT: rows of the prompt, the filter, the retriever's declarations, and NDCG as trec_eval computes it."""

import json
import math
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_plugin import Decoding, EncoderModel
from llmrec_plugin.errors import DeclarationError, InputError, MissingColumnError
from llmrec_plugin.specs import from_spec, to_spec
from llmrec_plugin.systems.mint import (
    Pair,
    bi_encoder,
    keep_likely,
    mean_ndcg,
    ndcg,
    query_likelihood,
    query_pairs,
    query_rows,
    ranked,
    retriever,
    split_pairs,
    synthetic_query,
)
from llmrec_plugin.systems.mint.queries import sentences

COLUMNS = {"entity": "user_id", "item": "item_id", "title": "title", "text": "review", "timestamp": "time"}


def log(*events):
    """(user, item, hour, review) rows."""
    return pd.DataFrame(
        {
            "user_id": [user for user, *_ in events],
            "item_id": [item for _, item, *_ in events],
            "title": [f"Place {item}" for _, item, *_ in events],
            "review": [review for *_, review in events],
            "time": [pd.Timestamp("2026-01-01") + pd.Timedelta(hours=hour) for _, _, hour, _ in events],
        }
    ).astype({"time": "datetime64[us]"})


REVIEWS = st.sampled_from(
    [None, "", "Nice.", "A quiet place with good tea. Too short.", "One two three four five\nsix"]
)
EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15), st.integers(0, 9), REVIEWS), min_size=1, max_size=40)


@settings(max_examples=30)  # pandas is slow on small frames
@given(EVENTS, st.integers(1, 10), st.integers(0, 3))
def test_rows_hold_only_what_the_user_did_before_their_date(events, most, seed):
    frame = log(*events)
    for row in query_rows(frame, most=most, seed=seed, **COLUMNS).itertuples():
        mine = frame[frame.user_id == row.user_id]
        assert 1 <= len(row.liked_ids) == len(set(row.liked_ids)) <= most
        assert len(row.liked_ids) == min(most, mine.item_id.nunique())
        assert row.liked_items == [f"Place {item}" for item in row.liked_ids]
        newest = mine.sort_values("time", kind="stable").drop_duplicates("item_id", keep="last").set_index("item_id")
        times = newest.loc[row.liked_ids, "time"]
        assert times.is_monotonic_increasing
        assert (times.dt.tz_localize("UTC") < row.time).all()
        said = {text for review in newest.loc[row.liked_ids, "review"] for text in sentences(review, 5, 20)}
        assert set(row.liked_sentences) <= said
        assert bool(row.liked_sentences) == bool(said)


@settings(max_examples=30)  # pandas is slow on small frames
@given(EVENTS, st.randoms(use_true_random=False))
def test_what_is_drawn_for_a_user_depends_on_no_other_user_and_on_no_order(events, shuffle):
    frame = log(
        *(event for event in {(user, item): (user, item, item, text) for user, item, _, text in events}.values())
    )
    rows = query_rows(frame, most=3, **COLUMNS)
    alone = pd.concat([query_rows(part, most=3, **COLUMNS) for _, part in frame.groupby("user_id")], ignore_index=True)
    pd.testing.assert_frame_equal(rows, alone)
    order = shuffle.sample(range(len(frame)), len(frame))
    pd.testing.assert_frame_equal(rows, query_rows(frame.iloc[order], most=3, **COLUMNS))


def test_another_seed_draws_others():
    frame = log(*((1, item, item, None) for item in range(40)))
    drawn = {tuple(query_rows(frame, seed=seed, **COLUMNS).liked_ids[0]) for seed in range(5)}
    assert len(drawn) == 5


def test_users_who_liked_the_same_do_not_draw_the_same():
    frame = log(*((user, item, item, None) for user in range(5) for item in range(40)))
    assert len({tuple(ids) for ids in query_rows(frame, **COLUMNS).liked_ids}) == 5


def test_sentences_of_five_to_twenty_words_are_taken():
    text = "Too short. This one has exactly five words!  And so\nhere is one more of them? " + "word " * 21 + "."
    assert sentences(text, 5, 20) == ["This one has exactly five words!", "here is one more of them?"]
    assert sentences(None, 1, 9) == sentences(float("nan"), 1, 9) == sentences(b"bytes", 1, 9) == []


def test_a_log_that_cannot_be_read_says_why():
    with pytest.raises(MissingColumnError, match="'body'"):
        query_rows(log(), **{**COLUMNS, "text": "body"})
    for wrong in ({"most": 0}, {"words": (0, 5)}, {"words": (6, 5)}, {"delay": timedelta(-1)}):
        with pytest.raises(InputError, match="query_rows: expected"):
            query_rows(log((1, 1, 1, None)), **COLUMNS, **wrong)
    assert query_rows(log(), **COLUMNS).empty


def test_a_request_is_asked_for_after_three_examples(rendered):
    feature = synthetic_query(model="writer", seed=3)
    assert from_spec(json.loads(json.dumps(to_spec(feature)))) == feature
    assert feature.decoding == Decoding(method="sample", temperature=0.7, max_new_tokens=160, seed=3)
    text = rendered(feature, liked_items=["Place 1"], liked_sentences=["A quiet place with good tea."])
    assert text.count("Request:") == 4
    assert text.endswith(
        "\n\nLiked:\n<liked_items>\n⟦1. Place 1⟧\n</liked_items>\n"
        "Said about them:\n<liked_sentences>\n⟦1. A quiet place with good tea.⟧\n</liked_sentences>\nRequest:\n"
    )
    assert rendered(feature, liked_items=["Place 1"], liked_sentences=[]) is None


def test_the_examples_look_like_what_is_asked(rendered):
    text = rendered(synthetic_query(model="writer"), liked_items=["x"], liked_sentences=["y"])
    for tag in ("liked_items", "liked_sentences"):
        assert text.count(f"<{tag}>\n") == text.count(f"\n</{tag}>\n") == 4


def test_requests_are_paired_with_what_they_were_written_from():
    documents = {1: "one", 2: "two"}
    assert query_pairs(["q", None, float("nan"), " "], [[1, 2, 3], [1], [1], [1]], documents) == [
        Pair("q", "one"),
        Pair("q", "two"),
    ]


def test_the_likelihood_of_a_request_is_that_of_its_tokens_after_the_document(session):
    scores = query_likelihood(session, "quiet cafe", ["quiet cafe", "loud cafe", "beach", ""])
    np.testing.assert_array_equal(scores, np.array([-1.0, -2.5, -4.0, np.nan], dtype=np.float32))
    before, data, after = session.requests[0].user
    assert (data.text, data.data, data.max_tokens) == ("quiet cafe", True, 256)
    assert not before.data
    assert not after.data
    assert after.text.strip()


def test_the_more_likely_half_of_each_request_is_kept(session):
    pairs = [
        Pair("quiet cafe", "beach"),
        Pair("loud market", "beach"),
        Pair("quiet cafe", "loud cafe"),
        Pair("quiet cafe", "quiet cafe"),
        Pair("quiet cafe", "loud cafe"),
        Pair("quiet cafe", "museum"),
        Pair("loud market", ""),
    ]
    assert keep_likely(session, pairs) == [pairs[1], pairs[2], pairs[3]]
    assert keep_likely(session, pairs, share=1.0) == [*pairs[:4], pairs[5]]
    assert keep_likely(session, [Pair("quiet cafe", "beach"), Pair("quiet cafe", "trail")]) == [pairs[0]]
    assert keep_likely(session, []) == []
    for share in (0, 1.5, -1, math.nan):
        with pytest.raises(InputError, match="share in"):
            keep_likely(session, pairs, share=share)


def test_the_retriever_compares_by_euclidean_distance_and_normalizes_nothing():
    encoder = bi_encoder("/models/mint", dims=384, max_tokens=128)
    features = retriever(encoder, document="{title}. {description}")
    item, query, distance = features
    assert [from_spec(json.loads(json.dumps(to_spec(feature)))) for feature in features] == list(features)
    assert (item.entity, item.columns) == ("item", ("title", "description"))
    assert (query.entity, query.columns) == (None, ("narrative_query",))
    assert (distance.left, distance.right, distance.metric) == (query.name, item.name, "euclidean")
    for feature in (item, query):
        assert (feature.metric, feature.normalize, feature.dims, feature.prefix) == ("euclidean", False, 384, "")
    assert item.vector_space("a" * 64) == query.vector_space("a" * 64)


@pytest.mark.parametrize("wrong", [{"metric": "cosine"}, {"normalize": True}])
def test_an_encoder_for_another_metric_is_no_retriever(wrong):
    values = {
        "name": "other", "source": "path:x", "pooling": "mean", "normalize": False, "dims": 8, "max_tokens": 16,
        "metric": "euclidean",
    }  # fmt: skip
    with pytest.raises(DeclarationError, match="model 'other' has metric"):
        retriever(EncoderModel(**{**values, **wrong}), document="{title}")


@given(st.lists(st.tuples(st.integers(0, 30).map(str), st.text("ab")).map(Pair._make), max_size=60), st.integers(0, 3))
def test_no_request_is_on_both_sides_of_a_split(pairs, seed):
    train, dev = split_pairs(pairs, 0.3, seed=seed)
    assert sorted(train + dev) == sorted(pairs)
    assert not {query for query, _ in train} & {query for query, _ in dev}
    assert (train, dev) == split_pairs(pairs, 0.3, seed=seed)


def test_a_split_takes_about_the_share():
    pairs = [Pair(str(number), "x") for number in range(2000)]
    assert 500 < len(split_pairs(pairs, 0.3)[1]) < 700
    assert split_pairs(pairs, 0.3)[1] != split_pairs(pairs, 0.3, seed=1)[1]
    assert split_pairs(pairs, 0.0) == (pairs, [])
    with pytest.raises(InputError, match="share in"):
        split_pairs(pairs, 1.0)


# --- evaluation. Expected numbers are worked out by hand: 1 / log2(r + 1) is 1, .63093, .5, .43068, .38685.


def test_tied_documents_are_ranked_by_number_downwards():
    assert ranked({"a": 1.0, "c": 1.0, "b": 2.0, "d10": 1.0, "d9": 1.0}) == ["b", "d9", "d10", "c", "a"]
    assert ranked({}) == []
    with pytest.raises(InputError, match="1 documents have the score NaN"):
        ranked({"a": math.nan})


def test_ndcg_of_graded_relevance():
    relevance = {"a": 3, "b": 2, "c": 1, "d": 0, "e": -1}
    assert ndcg(["a", "b", "c"], relevance, 3) == pytest.approx(1.0)
    # (2 + 3 * .63093) / (3 + 2 * .63093) = 3.89279 / 4.26186
    assert ndcg(["b", "a", "c"], relevance, 2) == pytest.approx(0.91340, abs=1e-5)
    # (0 + 0 + 1 * .5 + 0 + 3 * .38685) / (3 + 2 * .63093 + 1 * .5) = 1.66056 / 4.76186
    assert ndcg(["d", "e", "c", "unjudged", "a"], relevance, 5) == pytest.approx(0.34872, abs=1e-5)


def test_ndcg_at_its_borders():
    assert ndcg([], {"a": 1}, 5) == 0.0
    assert ndcg(["a"], {"a": 0, "b": -1}, 5) == 0.0
    assert ndcg(["b", "a"], {"a": 1}, 1) == 0.0
    assert ndcg(["a"], {"a": 2, "b": 2}, 5) == pytest.approx(1 / 1.63093, abs=1e-5)
    for ranking, k in ((["a"], 0), (["a", "a"], 2)):
        with pytest.raises(InputError, match="k >= 1 and each document once"):
            ndcg(ranking, {"a": 1}, k)


def test_the_order_of_ties_moves_the_result():
    scores = dict.fromkeys(["d1", "d2", "d3"], 1.0)
    assert mean_ndcg({"t": scores}, {"t": {"d3": 1}}, 3) == 1.0
    assert mean_ndcg({"t": scores}, {"t": {"d1": 1}}, 3) == 0.5


def test_a_topic_without_a_ranking_counts_zero():
    run = {"t1": {"a": 2.0, "b": 1.0}, "unjudged": {"a": 1.0}}
    assert mean_ndcg(run, {"t1": {"a": 1}, "t2": {"a": 1}}, 5) == 0.5
    with pytest.raises(InputError, match="at least one topic"):
        mean_ndcg(run, {}, 5)


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(-2, 3), max_size=6),
    st.dictionaries(st.text("abc", min_size=1, max_size=2), st.integers(-1, 2), max_size=8),
    st.integers(1, 6),
)
def test_ndcg_is_a_share_and_a_perfect_ranking_has_all_of_it(scores, relevance, k):
    assert 0 <= ndcg(ranked(scores), relevance, k) <= 1 + 1e-12
    best = ndcg(ranked(relevance), relevance, k)
    assert best == pytest.approx(1.0 if max(relevance.values(), default=0) > 0 else 0.0)
