"""From rows to values: the plugins' features through the runner, with an engine that answers as it is told."""

import json

import pandas as pd
import pytest
from tiny import add_generator, export_tiny

from llmrec_plugin import Completion, EncoderModel
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.binding import bind
from llmrec_plugin.pipeline.columns import Written
from llmrec_plugin.runtime import writer
from llmrec_plugin.systems.genre import chain_rows, cold_history, synthetic_items, title_rewrite, user_profile
from llmrec_plugin.systems.kar import item_facts, knowledge_embedding
from llmrec_plugin.systems.mint import query_rows, synthetic_query

TOPICS = ("red", "green", "blue")
TINY = EncoderModel(
    name="tiny",
    source="path:weights",
    pooling="mean",
    normalize=True,
    dims=8,
    max_tokens=16,
    metric="cosine",
    rotation="pca",
)


class Engine:
    """Gives the answers it was told, by a word of the prompt's data; remembers what it was asked."""

    provider = "told"

    def __init__(self):
        self.answers = {}
        self.asked = []

    def generate(self, requests, decoding, output=None, *, done=None):
        completions = []
        for request in requests:
            data = " ".join(part.text for part in request.user if part.data)
            self.asked.append(data)
            (answer,) = [text for word, text in self.answers.items() if word in data]
            completions.append(Completion(answer, "stop"))
        return completions


@pytest.fixture
def engine(monkeypatch):
    engine = Engine()
    monkeypatch.setattr(writer, "open_session", lambda artifact, settings: engine)
    return engine


@pytest.fixture
def values(engine, new_runner, tmp_path):
    """The values of a feature for a frame."""
    store = ArtifactStore([tmp_path / "own"])
    add_generator(store)
    export_tiny(store)
    runner = new_runner(artifact_folders=(tmp_path / "own",))

    def values(feature, frame):
        computed = runner.compute(bind(feature, runner.store), {name: list(frame[name]) for name in frame}, "batch")
        runner.drain()
        return [value.value if isinstance(value, Written) else value for value in computed.values]

    return values


def test_a_rewritten_title_has_no_marker_and_one_without_it_is_none(values, engine):
    engine.answers = {"bridge": "Sure! [newtitle] The bridge is 25\nAnything else?", "boat": "The boat"}
    frame = pd.DataFrame({"title": ["A bridge", "A boat"], "abstract": None, "category": None, "subcategory": None})
    assert values(title_rewrite(model="writer"), frame) == ["The bridge is 25", None]


def test_a_chain_goes_from_history_to_profile_to_an_item_for_cold_users_only(values, engine):
    rows = pd.DataFrame(
        {
            "user_id": ["cold", "warm", "new"],
            "event_timestamp": pd.to_datetime(["2026-01-03"] * 3),
            "history": [["apple"], ["sky"] * 6, []],
        }
    )
    (profile,) = user_profile(model="writer", topics=TOPICS)
    engine.answers = {"apple": "- Red\n- purple\n- green", "sky": "blue"}
    topics = values(profile, rows)
    assert topics == [("red", "green"), ("blue",), None]

    profiles = rows.assign(topics=topics, event_timestamp=pd.Timestamp("2026-01-02"))
    rows["cold_history"] = rows["history"].map(cold_history)
    chained = chain_rows(rows, profiles, entity="user_id", timestamp="event_timestamp")
    item = {"title": "Cherries", "abstract": "", "category": "red"}
    engine.answers, engine.asked = {"apple": f"```json\n{json.dumps(item)}\n```"}, []
    (made_up,) = synthetic_items(model="writer", categories=TOPICS, chained=True, versions=1)
    assert values(made_up, chained) == ['{"abstract":"","category":"red","title":"Cherries"}', None, None]
    assert engine.asked == ["1. red\n2. green 1. apple"]

    early = chain_rows(
        rows.assign(event_timestamp=pd.Timestamp("2026-01-01")), profiles, entity="user_id", timestamp="event_timestamp"
    )
    assert values(made_up, early) == [None] * 3


def test_an_item_of_a_category_that_there_is_not_is_no_value(values, engine):
    engine.answers = {"apple": '{"title": "Cherries", "abstract": "", "category": "fruit"}'}
    feature = synthetic_items(model="writer", categories=TOPICS, versions=1)[0]
    assert values(feature, pd.DataFrame({"cold_history": [["apple"]]})) == [None]


def test_knowledge_is_written_once_for_its_text_and_its_vector(values, engine):
    engine.answers = {"Alien": "A fast red kernel.\nWhite data."}
    text = item_facts(model="writer", factors=("color",))
    frame = pd.DataFrame({"title": ["Alien", None], "details": None})
    assert values(text, frame) == ["A fast red kernel. White data.", None]
    vector, none = values(knowledge_embedding(text, encoder=TINY, dims=4), frame)
    assert (vector.shape, none) == ((4,), None)
    assert float(vector @ vector) == pytest.approx(1)
    assert engine.asked == ["Alien"]


def test_a_request_is_written_from_the_rows_that_were_drawn(values, engine):
    reviews = pd.DataFrame(
        {
            "user_id": ["u"],
            "place_id": ["p"],
            "name": ["The Paper Lantern"],
            "review": ["Quiet corners, and good light. Nice!"],
            "time": pd.to_datetime(["2026-01-01"]),
        }
    )
    rows = query_rows(reviews, entity="user_id", item="place_id", title="name", text="review", timestamp="time")
    engine.answers = {"Paper": "Where can I read in peace all afternoon?\n\nLiked:"}
    assert values(synthetic_query(model="writer"), rows) == ["Where can I read in peace all afternoon?"]
