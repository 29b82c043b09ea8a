"""KAR: what its declarations say, and that no knowledge reads the future."""

import json
from dataclasses import replace
from datetime import timedelta

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_plugin.errors import DeclarationError, InputError, MissingColumnError
from llmrec_plugin.specs import from_spec, to_spec
from llmrec_plugin.systems.kar import (
    KNOWLEDGE_ENCODER,
    begin_index,
    history_knowledge_embedding,
    item_facts,
    knowledge_embedding,
    knowledge_rows,
    training_rows,
    user_preferences,
)

FACTORS = ("genre", "director", "mood")
ARTIFACT = "a" * 64
KEYS = {"entity": "user_id", "timestamp": "time"}


def test_the_features_have_names_of_their_own_and_travel():
    user, item = user_preferences(model="writer", factors=FACTORS), item_facts(model="writer", factors=FACTORS)
    features = [user, item, knowledge_embedding(user), knowledge_embedding(item), history_knowledge_embedding()]
    assert [feature.name for feature in features] == [
        "user_preference_text",
        "item_facts_text",
        "user_preference_embedding",
        "item_facts_embedding",
        "user_history_knowledge_embedding",
    ]
    assert [from_spec(json.loads(json.dumps(to_spec(feature)))) for feature in features] == features
    # The two knowledge embeddings differ in what they are of, which the binding adds to the fingerprint.
    assert len({feature.fingerprint(ARTIFACT) for feature in features}) == 4


def test_users_and_items_are_asked_about_the_same_factors(rendered):
    user = rendered(
        user_preferences(model="writer", factors=FACTORS), knowledge_history=["Alien, 5 of 5", "Up, 3 of 5"], about=None
    )
    assert user.endswith(
        "Factors: genre; director; mood\n---\nAbout the person: <about></about>\nIn order of time:\n"
        "<knowledge_history>\n⟦1. Alien, 5 of 5\n2. Up, 3 of 5⟧\n</knowledge_history>\n"
    )
    item = rendered(item_facts(model="writer", factors=FACTORS), title="Alien", details="1979")
    assert item.endswith(
        "Factors: genre; director; mood\n---\nEntry: <title>⟦Alien⟧</title>\n"
        "What the catalogue says: <details>⟦1979⟧</details>\n"
    )
    assert rendered(user_preferences(model="writer", factors=FACTORS), about="a baker") is None


def test_a_vector_of_knowledge_is_the_first_principal_components():
    text = item_facts(model="writer", factors=FACTORS)
    feature = knowledge_embedding(text, dims=48, on_empty="zeros")
    assert (feature.of, feature.entity, feature.model) == (text, "item", "kar-knowledge-encoder")
    assert (feature.pooling, feature.dims, feature.reduction, feature.on_empty) == ("mean", 48, "prefix", "zeros")
    assert knowledge_embedding(text, dims=384).reduction is None


def test_components_without_a_rotation_are_not_cut():
    plain = replace(KNOWLEDGE_ENCODER, name="plain", rotation=None)
    text = item_facts(model="writer", factors=FACTORS)
    assert knowledge_embedding(text, encoder=plain, dims=384).dims == 384
    with pytest.raises(DeclarationError, match="rotation='pca'"):
        knowledge_embedding(text, encoder=plain, dims=64)
    with pytest.raises(DeclarationError, match="gives 384 components, 400 were asked for"):
        history_knowledge_embedding(dims=400)


def test_history_and_answer_are_read_together():
    feature = history_knowledge_embedding(history="films", answer="taste")
    assert (feature.text, feature.columns) == ("{films}\n{taste}", ("films", "taste"))


@pytest.mark.parametrize(
    ("count", "expected"), [(0, 0), (1, 1), (2, 1), (3, 2), (10, 5), (59, 30), (60, 30), (500, 30)]
)
def test_the_first_half_feeds_the_knowledge_but_no_more_than_thirty(count, expected):
    assert begin_index(count) == expected


def frame(events):
    """(user, hour, text) rows; the text is the row's number unless it is None."""
    return pd.DataFrame(
        {
            "user_id": [user for user, _, _ in events],
            "time": [pd.Timestamp("2026-01-01") + pd.Timedelta(hours=hour) for _, hour, _ in events],
            "text": [str(row) if shown else None for row, (_, _, shown) in enumerate(events)],
        }
    ).astype({"user_id": "int64", "time": "datetime64[us]"})


EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 5).map(bool)), max_size=40)


@settings(max_examples=30)  # pandas is slow on small frames
@given(EVENTS, st.integers(1, 8), st.sampled_from([timedelta(0), timedelta(microseconds=1), timedelta(hours=2)]))
def test_no_row_s_knowledge_reads_an_interaction_later_than_its_label(events, most, delay):
    log = frame(events)
    knowledge = knowledge_rows(log, text="text", most=most, delay=delay, **KEYS)
    labels = training_rows(log, most=most, delay=delay, **KEYS)
    labels = labels.assign(time=labels.time.dt.tz_localize("UTC"), label=labels.index).sort_values("time")
    joined = pd.merge_asof(labels, knowledge.sort_values("time"), on="time", by="user_id")
    for row in joined.itertuples():
        if isinstance(row.knowledge_history, list):
            read = log.loc[[int(text) for text in row.knowledge_history]]
            assert (read.user_id == row.user_id).all()
            assert (read.time.dt.tz_localize("UTC") < row.time).all()
            assert row.label not in read.index


@settings(max_examples=30)  # pandas is slow on small frames
@given(EVENTS)
def test_each_label_that_may_be_learned_from_finds_the_knowledge_of_its_user(events):
    log = frame([(user, hour, True) for user, hour, _ in events])
    knowledge = knowledge_rows(log, text="text", **KEYS).set_index("user_id")
    for row in training_rows(log, **KEYS).itertuples():
        assert knowledge.loc[row.user_id, "time"] <= row.time.tz_localize("UTC")


@settings(max_examples=30)  # pandas is slow on small frames
@given(EVENTS)
def test_interactions_feed_the_knowledge_or_are_learned_from_or_tie_with_the_last_that_does(events):
    log = frame([(user, hour, True) for user, hour, _ in events])
    knowledge = knowledge_rows(log, text="text", **KEYS)
    read = {int(text) for texts in knowledge.knowledge_history for text in texts}
    learned = set(training_rows(log, **KEYS).index)
    assert not read & learned
    for user, group in log.groupby("user_id"):
        mine = group.sort_values("time", kind="stable")
        assert set(mine.index[: begin_index(len(mine))]) == read & set(mine.index)
        last = mine.time.iloc[begin_index(len(mine)) - 1]
        assert (log.loc[list(set(mine.index) - read - learned), "time"] == last).all(), user


def test_knowledge_is_read_oldest_first_and_dated_just_after_its_last_interaction():
    log = frame([(7, 5, True), (7, 1, True), (7, 3, False), (7, 9, True), (8, 2, False)])
    knowledge = knowledge_rows(log, text="text", **KEYS)
    assert knowledge.to_dict("list") == {
        "user_id": [7],
        "knowledge_history": [["1"]],
        "time": [pd.Timestamp("2026-01-01 03:00:00.000001", tz="UTC")],
    }
    assert list(training_rows(log, **KEYS).index) == [0, 3]


def test_an_empty_log_gives_empty_frames_of_the_same_types():
    knowledge = knowledge_rows(frame([]), text="text", **KEYS)
    assert list(knowledge.columns) == ["user_id", "knowledge_history", "time"]
    assert str(knowledge.time.dtype) == "datetime64[us, UTC]"
    assert training_rows(frame([]), **KEYS).empty


def test_a_log_that_cannot_be_read_says_why():
    with pytest.raises(MissingColumnError, match="'title'"):
        knowledge_rows(frame([]), text="title", **KEYS)
    with pytest.raises(InputError, match="most >= 1"):
        knowledge_rows(frame([]), text="text", most=0, **KEYS)
    with pytest.raises(InputError, match="delay >= 0"):
        training_rows(frame([]), delay=timedelta(-1), **KEYS)
    with pytest.raises(InputError, match="1 events have no 'time'"):
        training_rows(frame([(1, 1, True)]).assign(time=pd.NaT), **KEYS)
