"""GENRE: what its declarations say, what a generator reads, and whose rows have a value."""

import json
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec_plugin import Decoding, Json, ShortText, Tags
from llmrec_plugin.errors import DeclarationError, InputError, MissingColumnError
from llmrec_plugin.specs import from_spec, to_spec
from llmrec_plugin.systems.genre import (
    chain_rows,
    cold_history,
    synthetic_items,
    title_rewrite,
    user_profile,
    with_synthetic_items,
)

TOPICS = ("sports", "science", "food")
ARTIFACT = "a" * 64


def all_features():
    return [
        title_rewrite(model="writer"),
        *user_profile(model="writer", topics=TOPICS, regions=("Skåne", "Uppland")),
        *synthetic_items(model="writer", categories=TOPICS),
        *synthetic_items(model="writer", categories=TOPICS, chained=True, name="user_chained_item"),
    ]


def test_the_features_have_names_of_their_own_and_travel():
    features = all_features()
    assert [feature.name for feature in features] == [
        "item_title_rewrite",
        "user_history_topics",
        "user_history_regions",
        "user_synthetic_item_1",
        "user_synthetic_item_2",
        "user_chained_item_1",
        "user_chained_item_2",
    ]
    assert [from_spec(json.loads(json.dumps(to_spec(feature)))) for feature in features] == features
    assert len({feature.fingerprint(ARTIFACT) for feature in features}) == len(features)


def test_a_title_is_asked_for_behind_its_marker(rendered):
    feature = title_rewrite(model="writer")
    assert feature.output == ShortText(prefix="[newtitle]", max_chars=200)
    assert feature.output.prefix in feature.prompt.system
    text = rendered(
        feature, title="You won't believe this bridge", abstract="The Öresund bridge is 25.", category="news"
    )
    assert text.partition("---\n")[2] == (
        "Heading now: <title>⟦You won't believe this bridge⟧</title>\n"
        "What it says: <abstract>⟦The Öresund bridge is 25.⟧</abstract>\n"
        "Section: <category>⟦news⟧</category>\n"
        "Subsection: <subcategory></subcategory>\n"
    )
    assert rendered(feature, abstract="no title") is None


def test_columns_of_other_names_fill_the_slots(rendered):
    feature = title_rewrite(model="writer", columns={"title": "headline", "abstract": "lead"})
    assert feature.columns == ("headline", "lead", "category", "subcategory")
    assert "<title>⟦Bridge⟧</title>" in rendered(feature, headline="Bridge")
    with pytest.raises(DeclarationError, match="columns_of names"):
        title_rewrite(model="writer", columns={"heading": "headline"})


def test_a_profile_is_made_of_the_given_topics_only(rendered):
    topics, regions = user_profile(model="writer", topics=TOPICS, regions=("Skåne",), max_items=5)
    assert topics.output == Tags(vocabulary=TOPICS, max_items=5)
    assert regions.output == Tags(vocabulary=("Skåne",), max_items=5)
    text = rendered(topics, history=["A new telescope", "Bread at home"])
    assert text.endswith(
        "Topics: sports; science; food\n---\nOpened, the newest first:\n"
        "<history>\n⟦1. A new telescope\n2. Bread at home⟧\n</history>\n"
    )
    assert [feature.name for feature in user_profile(model="writer", topics=TOPICS)] == ["user_history_topics"]


def test_a_profile_needs_topics():
    with pytest.raises(DeclarationError, match="topics must be distinct strings"):
        user_profile(model="writer", topics=())


def test_items_are_made_up_twice_by_two_seeds(rendered):
    first, second = synthetic_items(model="writer", categories=TOPICS)
    assert (first.decoding.method, first.decoding.seed, second.decoding.seed) == ("sample", 1, 2)
    assert first.prompt == second.prompt
    assert first.generation_fingerprint(ARTIFACT) != second.generation_fingerprint(ARTIFACT)
    schema = json.loads(first.output.schema)
    assert first.output == Json(schema=schema)
    assert schema["properties"]["category"] == {"enum": list(TOPICS)}
    assert "Categories: sports; science; food\n---" in rendered(first, cold_history=["Bread at home"])
    with pytest.raises(DeclarationError, match="versions must be a positive integer"):
        synthetic_items(model="writer", categories=TOPICS, versions=0)


def test_a_chained_generator_reads_the_profile_and_writes_nothing_without_it(rendered):
    feature = synthetic_items(model="writer", categories=TOPICS, chained=True)[0]
    assert feature.columns == ("topics", "cold_history")
    assert "<topics>\n⟦1. food⟧\n</topics>" in rendered(feature, topics=["food"], cold_history=["Bread at home"])
    assert rendered(feature, topics=None, cold_history=["Bread at home"]) is None


def test_decoding_and_other_fields_can_be_chosen():
    (item,) = synthetic_items(model="writer", categories=TOPICS, versions=1, temperature=0.5, status=True)
    assert item.status
    assert item.decoding == Decoding(method="sample", temperature=0.5, top_p=0.95, max_new_tokens=160, seed=1)


@given(st.one_of(st.none(), st.just(float("nan")), st.lists(st.text("abc", min_size=1), max_size=9)), st.booleans())
def test_only_users_with_one_to_five_items_are_cold(history, from_parquet):
    value = np.array(history, dtype=object) if isinstance(history, list) and from_parquet else history
    cold = cold_history(value)
    if isinstance(history, list) and 1 <= len(history) <= 5:
        assert cold == history
    else:
        assert cold is None


def test_a_user_who_is_not_cold_has_no_input(rendered):
    feature = synthetic_items(model="writer", categories=TOPICS)[0]
    rows = pd.Series([["a"] * 5, ["a"] * 6, [], None]).map(cold_history)
    assert [rendered(feature, cold_history=value) is not None for value in rows] == [True, False, False, False]


def test_made_up_items_come_after_all_real_ones():
    made_up = ['{"abstract":"x","category":"food","title":"Soup"}', None, float("nan")]
    assert with_synthetic_items(np.array(["newest", "older"], dtype=object), made_up) == ["newest", "older", "Soup"]
    assert with_synthetic_items(None, []) == []


def profiles(*rows):
    return pd.DataFrame(rows, columns=["user_id", "event_timestamp", "topics"])


def histories(*rows):
    return pd.DataFrame(rows, columns=["user_id", "event_timestamp", "cold_history"])


DAYS = st.integers(0, 5).map(lambda day: datetime(2026, 1, 1) + timedelta(days=day))


@settings(max_examples=30)  # pandas is slow on small frames
@given(
    st.lists(st.tuples(st.integers(0, 2), DAYS), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 2), DAYS), max_size=12),
)
def test_a_chain_reads_the_newest_profile_that_existed(rows, made):
    frame = histories(*((user, time, ["x"]) for user, time in rows)).iloc[::-1]
    known = profiles(*((user, time, [str(time)]) for user, time in made)).astype({"user_id": "int64"})
    known["event_timestamp"] = pd.to_datetime(known["event_timestamp"])
    chained = chain_rows(frame, known, entity="user_id", timestamp="event_timestamp")
    assert chained.drop(columns="topics").equals(frame)
    for user, time, topics in zip(chained.user_id, chained.event_timestamp, chained.topics, strict=True):
        earlier = [at for owner, at in made if owner == user and at <= time]
        if earlier:
            assert topics == [str(max(earlier))]
        else:
            assert pd.isna(topics)


def test_a_chain_says_what_is_wrong_with_its_rows():
    rows = histories(("u", "2026-01-01", ["x"]))
    with pytest.raises(InputError, match="already"):
        chain_rows(rows.assign(topics=1), profiles(), entity="user_id", timestamp="event_timestamp")
    with pytest.raises(MissingColumnError, match="'topics'"):
        chain_rows(rows, rows, entity="user_id", timestamp="event_timestamp")
    with pytest.raises(InputError, match="no 'event_timestamp'"):
        chain_rows(histories(("u", None, [])), profiles(), entity="user_id", timestamp="event_timestamp")
