"""The LLM as scorer through Feast: scores of pairs every way, the query of a conversation, ranked lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from integration.host import HERE, Repo
from tiny import WORDS

from llmrec_plugin.systems.llm_scorer import listwise_ranking, newest_turns

pytestmark = pytest.mark.feast

FEATURES = """
from feast.types import Array

from llmrec_plugin import EncoderModel
from llmrec_plugin.systems.llm_scorer import conversational_query, listwise_ranking, pointwise_score

pair = Entity(name="pair", join_keys=["pair"])
pair_rows = FeatureView(
    name="pair_rows",
    entities=[pair],
    ttl=timedelta(days=36_500),
    schema=[
        Field(name="pair", dtype=String),
        Field(name="liked", dtype=Array(String)),
        Field(name="disliked", dtype=Array(String)),
        Field(name="candidate", dtype=String),
    ],
    source=FileSource(name="pairs", path="data/pairs.parquet", timestamp_field="event_timestamp"),
)
encoder = EncoderModel(
    name="tiny", source="path:none", pooling="mean", normalize=True, dims=8, max_tokens=16, metric="cosine"
)
pair_yes_score = pointwise_score(model="writer", entity="pair", name="pair_yes_score", status=True)
dialogue_query, dialogue_query_embedding = conversational_query(model="writer", encoder=encoder, max_new_tokens=12)
ranker = listwise_ranking(model="writer", permutations=2, max_candidates=4, max_new_tokens=24)
candidates_order_1, candidates_order_2 = ranker.features
"""
PAIRS: list[dict[str, Any]] = [
    {"liked": [f"{WORDS[n]} yes", "No"], "disliked": [WORDS[n + 1]] * (n % 2), "candidate": f"{WORDS[n + 2]} Yes or No"}
    for n in range(6)
] + [
    {"liked": None, "disliked": None, "candidate": "blue"},  # nothing is known of the person
    {"liked": ["red"], "disliked": [], "candidate": None},
]
SCORE = ["pair_yes_score:pair_yes_score", "pair_yes_score:pair_yes_score_status"]
LABEL = "2026-06-01"


@pytest.fixture(scope="module")
def repo(new_repo: Callable[..., Repo]) -> Repo:
    pytest.importorskip("torch", reason="torch comes with the extra 'export'")
    pytest.importorskip("llguidance", reason="llguidance comes with the extra 'constrained'")
    repo = new_repo("scorer")
    repo.export()
    repo.call(
        "systems_steps:export_writer",
        paths=[HERE.parent],
        where=str(repo.root / "writer"),
        artifacts=str(repo.root / "home" / "artifacts"),
    )
    repo.declare(extra=FEATURES)
    at = pd.Timestamp("2026-01-01", tz="UTC")
    repo.write_items({"item": f"i{n}", "title": word, "at": at} for n, word in enumerate(WORDS[:8]))
    texts = pa.list_(pa.string())
    table = pa.table(
        {
            "pair": pa.array([f"p{n}" for n in range(len(PAIRS))], pa.string()),
            "liked": pa.array([row["liked"] for row in PAIRS], texts),
            "disliked": pa.array([row["disliked"] for row in PAIRS], texts),
            "candidate": pa.array([row["candidate"] for row in PAIRS], pa.string()),
            "event_timestamp": pa.array([at] * len(PAIRS), pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, repo.folder / "data" / "pairs.parquet")
    repo.feast("apply")
    repo.feast("materialize", "2025-01-01", "2027-01-01", LLMREC_CACHE=str(repo.root / "batch"))
    return repo


def test_a_score_is_the_same_stored_on_demand_and_in_training_data(repo: Repo) -> None:
    names = [f"p{n}" for n in range(len(PAIRS))]
    batch = repo.online(SCORE, [{"pair": name} for name in names])
    scores = batch["pair_yes_score"]
    assert batch["pair_yes_score_status"] == ["ok"] * 7 + ["empty"]
    assert all(0 < score < 1 for score in scores[:7])
    assert len(set(scores[:7])) == 7
    assert scores[7] is None

    rows = [{"pair": name, "event_timestamp": LABEL} for name in names]
    historical = repo.historical(SCORE[:1], rows, environ={"LLMREC_CACHE": str(repo.root / "historical")})
    expected = [pytest.approx(score, abs=1e-5) if score is not None else None for score in scores]
    assert [row["pair_yes_score"] for row in historical] == expected
    asked = [{name: value or None for name, value in row.items()} for row in PAIRS]  # Feast refuses empty lists
    on_demand = repo.online(
        ["pair_yes_score_on_demand:pair_yes_score_on_demand"],
        asked,
        environ={"LLMREC_CACHE": str(repo.root / "on-demand")},
        rows_per_request=3,
    )
    assert on_demand["pair_yes_score_on_demand"] == expected


def test_a_ranker_reads_the_score_as_any_other_feature(repo: Repo) -> None:
    """It learns to prefer the two candidates of each person that the model is surest of."""
    pytest.importorskip("lightgbm", reason="the ranker's own package")
    features = ["pair_yes_score_on_demand:pair_yes_score_on_demand"]
    rows = [
        {"liked": [WORDS[person]], "disliked": None, "candidate": word} for person in range(4) for word in WORDS[4:9]
    ]
    scores = np.array(repo.online(features, rows)["pair_yes_score_on_demand"]).reshape(4, 5)
    best = [set(order[:2].tolist()) for order in np.argsort(-scores, axis=1)]
    relevant = [int(candidate in liked) for liked in best for candidate in range(5)]
    orders = repo.call("ranker_steps:rank", features=features, rows=rows, relevant=relevant, group=5)
    assert sum(order[0] in liked for order, liked in zip(orders, best, strict=True)) >= 3


def test_a_conversation_becomes_a_query_and_a_vector_of_the_items_space(repo: Repo) -> None:
    turns = newest_turns([("person", "something red"), ("recommender", "a red database?"), ("person", "no, fast")])
    answer = repo.online(
        ["dialogue_query:dialogue_query", "dialogue_query_embedding:dialogue_query_embedding"], [{"dialogue": turns}]
    )
    (text,), (vector,) = answer["dialogue_query"], answer["dialogue_query_embedding"]
    assert text
    assert vector == pytest.approx(repo.encode([text])[0], abs=1e-6)
    stored = repo.online(["item_text_embedding:item_text_embedding"], [{"item": f"i{n}"} for n in range(8)])
    similarities = np.array(stored["item_text_embedding"]) @ np.array(vector)
    assert np.isfinite(similarities).all()
    assert len(set(similarities.round(4))) > 1


def test_a_list_is_ranked_beside_the_request_and_whatever_is_written_is_counted(repo: Repo) -> None:
    ranker = listwise_ranking(model="writer", permutations=2, max_candidates=4, max_new_tokens=24)
    candidates = [f"{WORDS[n]} {WORDS[n + 1]}" for n in range(4)]
    answer = repo.online(ranker.columns, [ranker.row(["red"], candidates)])
    values = {name: answer[name][0] for name in ("candidates_order_1", "candidates_order_2")}
    for value in values.values():  # random weights, but kept to the form
        assert value is None or all(1 <= number <= 4 for number in json.loads(value))
    ranking = ranker.ranking(values, candidates)
    assert sorted(ranking.order) == [0, 1, 2, 3]
    assert ranking.status in ("ok", "repaired", "partial", "invalid")
    named = [found for found in ranking.answers if found is not None]
    assert ranking.unnamed == sum(4 - len(found.named) for found in named)
