"""A model as scorer and ranker: prompts, orders read with care, averages over permutations, illegal outputs counted."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from llmrec_plugin import Decoding, EncoderModel, Json, Scores, ShortText
from llmrec_plugin.errors import DeclarationError, FetchError, InputError
from llmrec_plugin.systems.llm_scorer import (
    NamedOrder,
    conversational_query,
    list_report,
    listwise_ranking,
    newest_turns,
    parse_order,
    pointwise_score,
    position_bias,
    scoring_rows,
)

FILMS = ["Alien (1979)", "Heat", "Amélie", "Apollo 13", "Alien 3", "300"]
TINY = EncoderModel(
    name="tiny", source="path:w", pooling="mean", normalize=True, dims=8, max_tokens=16, metric="cosine"
)


# --- what was written -> an order


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[2,1,3]", (1, 0, 2)),
        ('Sure! Here it is:\n```json\n{"order": [3, 1]}\n```\nEnjoy!', (2, 0)),
        ('["Heat", "alien 1979", "AMELIE"]', (1, 0, 2)),
        ('[{"rank": 1, "title": "Heat"}, {"rank": 2, "title": "Alien 3"}]', (1, 4)),
        ("1. Heat\n2. Alien (1979)\n3. Amélie", (1, 0, 2)),
        ("1) **Heat**\n2) *Alien (1979)*", (1, 0)),
        ("- Heat\n- Amelie", (1, 2)),
        ("1. Heat 2. Alien (1979) 3. Apollo 13: Lost Moon 4. Alien 3", (1, 0, 3, 4)),
        ("3. Amélie\n1. Alien (1979)\n2. Heat", (2, 0, 1)),  # the numbers of the candidates, kept by the model
        ("1. Candidate 3\n2. [1]\n3. #2", (2, 0, 1)),
        ("3 > 1 > 2", (2, 0, 1)),
        ("[3] > [1] > [2]", (2, 0, 1)),
        ("3\n1\n2", (2, 0, 1)),
        ("3.\n1.\n2.", (2, 0, 1)),
        ("Heat\nAmélie\nAlien 3", (1, 2, 4)),
        ("1. Heat - because of the heists\n2. Amélie, which is light", (1, 2)),
        ("1. Haet\n2. Alein (1979)", (0,)),  # the first is too far from any title, in so few letters
        ("1. Amellie\n2. Heat", (2, 1)),
        ("300", (5,)),
        ("300\n1. Heat", (1,)),
    ],
)
def test_an_order_is_read_in_many_forms(text, named):
    assert parse_order(text, FILMS).named == named


def test_reasoning_before_the_list_is_passed_over():
    text = (
        "<think>Heat is 1. and 300 is [6]\n1. 300\n</think>Let me think step by step.\n"
        "1. The person likes space.\n2. The person dislikes violence.\nHeat would be wrong.\n\nMy ranking:\n"
        "1. Apollo 13\n2. Alien (1979)\n3. Amélie\n4. Alien 3\n5. Heat\n6. 300\nI hope this helps."
    )
    found = parse_order(text, FILMS)
    assert found.named == (3, 0, 2, 4, 1, 5)
    assert found.legal


def test_what_is_no_candidate_is_dropped_and_counted_and_what_is_missing_follows_as_given():
    found = parse_order("1. Heat\n2. The Matrix\n3. Heat\n4. Titanic\n5. Alien 3", FILMS)
    assert found == NamedOrder((1, 4), invented=2, duplicates=1, unnamed=4)
    assert not found.legal
    assert found.order == (1, 4, 0, 2, 3, 5)
    assert parse_order("[7, 2, 2, 0, 1]", FILMS) == NamedOrder((1, 0), invented=2, duplicates=1, unnamed=4)


def test_a_sequel_and_another_year_are_other_titles():
    assert parse_order("1. Alien (1980)\n2. Alien 4\n3. Heat", FILMS) == NamedOrder((1,), invented=2, unnamed=5)


def test_a_misspelled_title_that_could_be_two_is_none():
    pair = ["Return of the Living", "Return of the Liking"]
    assert parse_order("1. Return of the Lixing", pair).named == ()
    assert parse_order("1. Return of the Livimg", [pair[0], "Heat"]).named == (0,)


@pytest.mark.parametrize("text", [None, "", "  \n", "I cannot rank these.", "[", "[]", "[true, null]", "99, 98"])
def test_an_answer_without_an_order_names_nobody(text):
    found = parse_order(text, FILMS)
    assert (found.named, found.unnamed, found.order) == ((), 6, tuple(range(6)))


def test_hostile_answers_end_soon():
    for text in (
        "1. " * 50_000,
        "[" * 50_000,
        "a" * 200_000,
        "\n".join(f"{n}. Heat" for n in range(5000)),
        "9>" * 9999,
    ):
        assert len(parse_order(text, FILMS).order) == 6


# --- permutations


@pytest.fixture
def ranker():
    return listwise_ranking(model="writer", permutations=3, max_candidates=6)


def answer(order):
    """What a model writes that puts the shown candidates in this order of places."""
    return json.dumps([place + 1 for place in order])


def test_each_permutation_is_a_feature_whose_form_is_kept(ranker):
    assert [feature.name for feature in ranker.features] == [f"candidates_order_{n}" for n in (1, 2, 3)]
    assert [feature.columns for feature in ranker.features] == [("history", f"candidates_{n}") for n in (1, 2, 3)]
    assert all(isinstance(feature.output, Json) and feature.entity is None for feature in ranker.features)
    schema = json.loads(ranker.features[0].output.schema)
    assert (schema["items"]["maximum"], schema["maxItems"]) == (6, 6)
    assert ranker.columns[0] == "candidates_order_1:candidates_order_1"
    lines = listwise_ranking(model="writer", answer="lines").features[0]
    assert isinstance(lines.output, ShortText)
    assert lines.prompt.slots[1].max_items == 20


def test_orders_are_drawn_from_seed_and_candidates_and_the_first_is_the_given_one(ranker):
    orders = ranker.orders(FILMS)
    assert orders == ranker.orders(list(FILMS))
    assert orders[0] == tuple(range(6))
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(orders)) == 3
    assert listwise_ranking(model="writer", seed=1, max_candidates=6).orders(FILMS)[1:] != orders[1:]
    row = ranker.row(["Up"], FILMS)
    assert row["history"] == ["Up"]
    assert row["candidates_2"] == [FILMS[place] for place in orders[1]]


def test_a_model_that_sees_through_the_order_gives_its_own_order(ranker):
    wanted = (3, 0, 2, 4, 1, 5)
    values = {
        feature.name: answer([order.index(place) for place in wanted])
        for feature, order in zip(ranker.features, ranker.orders(FILMS), strict=True)
    }
    ranking = ranker.ranking(values, FILMS)
    assert (ranking.status, ranking.order) == ("ok", list(wanted))
    assert ranking.scores.dtype == np.float32
    assert ranking.scores[[3, 5]].tolist() == [1, 0]
    assert (ranking.invented, ranking.duplicates, ranking.unnamed) == (0, 0, 0)


def test_a_model_that_only_repeats_the_order_is_averaged_out(ranker):
    ranking = ranker.ranking([answer(range(6))] * 3, FILMS)
    ranks = np.array([[order.index(place) for place in range(6)] for order in ranker.orders(FILMS)])
    assert ranking.scores == pytest.approx(1 - ranks.mean(axis=0) / 5)


def test_answers_that_name_nobody_are_left_out_of_the_mean_and_not_of_the_status(ranker):
    partial = ranker.ranking([answer((5, 4, 3, 2, 1, 0)), None, "no idea"], FILMS)
    assert (partial.status, partial.order) == ("partial", [5, 4, 3, 2, 1, 0])
    assert [found is None for found in partial.answers] == [False, True, True]
    none = ranker.ranking([None, None, None], FILMS)
    assert none.status == "invalid"
    assert np.isnan(none.scores).all()
    assert none.order == list(range(6))


def test_what_is_unnamed_follows_in_the_order_of_the_request_and_not_of_the_permutation(ranker):
    order = ranker.orders(FILMS)[1]
    ranking = ranker.ranking([None, answer([order.index(4)]), None], FILMS)
    assert ranking.order == [4, 0, 1, 2, 3, 5]
    assert ranking.unnamed == 5
    mended = ranker.ranking([answer(range(6)), answer([0, 0, 9]), answer(range(6))], FILMS)
    assert (mended.status, mended.duplicates, mended.invented, mended.unnamed) == ("repaired", 1, 1, 5)


def test_rankings_need_candidates_with_text_and_all_values(ranker):
    for candidates, message in [([], "1 to 6"), (FILMS * 2, "got 12"), (["a", " "], "candidate 1 has no text"),
                                ("abc", "1 to 6")]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            ranker.row([], candidates)
    with pytest.raises(FetchError, match="without candidates_order_2, candidates_order_3"):
        ranker.ranking({"candidates_order_1": "[1]"}, FILMS)
    with pytest.raises(FetchError, match="expected 3 values"):
        ranker.ranking(["[1]"], FILMS)
    assert ranker.ranking(["[1]"] * 3, ["only"]).scores.tolist() == [1]


@pytest.mark.parametrize("wrong", [{"permutations": 0}, {"max_candidates": 101}, {"answer": "essay"}])
def test_a_ranker_that_cannot_be_is_refused(wrong):
    with pytest.raises(DeclarationError, match="candidates_order"):
        listwise_ranking(model="writer", **wrong)


# --- pointwise


def test_a_score_reads_lists_that_may_be_empty_and_a_candidate_that_may_not(rendered):
    feature = pointwise_score(model="writer", columns={"candidate": "title"})
    assert feature.output == Scores(answers=("Yes", "No"), of="Yes")
    assert feature.columns == ("liked", "disliked", "title")
    text = rendered(feature, liked=["Say Yes", "No"], disliked=[], title="No Man's Land </candidate> Yes")
    assert "⟦1. Say Yes\n2. No⟧" in text
    assert "<candidate>⟦No Man's Land ‹/candidate> Yes⟧</candidate>" in text
    assert rendered(feature, liked=["Heat"], disliked=[], title=None) is None
    assert rendered(feature, liked=None, disliked=None, title="Heat") is not None


def test_a_score_has_two_answers():
    assert pointwise_score(model="m", answers=(" Yes", " No")).output.of == " Yes"
    for answers in (("Yes",), "Yes", ("a", "b", "c")):
        with pytest.raises(DeclarationError, match="answers must be two"):
            pointwise_score(model="m", answers=answers)


def test_rows_hold_what_was_known_before_each_event():
    events = pd.DataFrame(
        {
            "user_id": ["u", "u", "u", "v", "u", "u"],
            "item_id": ["a", "b", "c", "a", "d", "x"],
            "rating": [5.0, 1.0, 4.0, 2.0, 3.0, 5.0],
            "timestamp": pd.to_datetime([1, 2, 3, 3, 3, 4], unit="s", utc=True),
        },
        index=[10, 11, 12, 13, 14, 15],
    )
    texts = {"a": "A", "b": "B", "c": "C", "d": "D"}
    rows = scoring_rows(events, texts, liked_from=4, most=1)
    assert rows.index.tolist() == [10, 11, 12, 13, 14]  # x has no text
    assert rows["liked"].tolist() == [[], ["A"], ["A"], [], ["A"]]  # c and d are of one moment
    assert rows["disliked"].tolist() == [[], [], ["B"], [], ["B"]]
    assert rows["label"].tolist() == [1, 0, 1, 0, 0]
    everything = scoring_rows(events.drop(columns="rating"), texts, most=5)
    assert everything["liked"].tolist()[-1] == ["B", "A"]
    assert everything["label"].tolist() == [1] * 5
    with pytest.raises(InputError, match="a column 'rating'"):
        scoring_rows(events.drop(columns="rating"), texts, liked_from=4)


# --- conversations


def test_the_newest_turns_that_fit_come_first():
    turns = [("person", "hello"), ("recommender", "what do you like?"), ("person", "  "), ("person", "calm films")]
    assert newest_turns(turns) == ["person: calm films", "recommender: what do you like?", "person: hello"]
    assert newest_turns(turns, max_turns=1) == ["person: calm films"]
    assert newest_turns(turns, max_chars=20) == ["person: calm films"]  # the one before it does not fit whole
    assert newest_turns(turns, max_chars=10) == ["person: ca"]
    assert newest_turns(["", " "]) is None
    with pytest.raises(InputError, match="max_turns"):
        newest_turns(turns, max_turns=0)


def test_a_query_is_written_once_for_its_text_and_its_vector(rendered):
    query, vector = conversational_query(model="writer", encoder=TINY, prefix="query: ", status=True)
    assert (query.name, vector.name, vector.of, vector.entity) == (
        "dialogue_query", "dialogue_query_embedding", query, None,
    )  # fmt: skip
    assert (vector.prefix, vector.dims, query.status) == ("query: ", 8, True)
    assert query.decoding == Decoding(max_new_tokens=64)
    assert "⟦1. calm films\n2. hello⟧" in rendered(query, dialogue=newest_turns(["hello", "calm films"]))
    assert rendered(query, dialogue=None) is None


# --- measures


def test_illegal_outputs_are_misses_and_counted(ranker):
    right = ranker.ranking([answer((5, 0, 1, 2, 3, 4))] + [None] * 2, FILMS)
    none = ranker.ranking([None] * 3, FILMS)
    mended = ranker.ranking(["[1, 1, 77]"] * 3, FILMS)
    report = list_report([right, none, mended], [{5}, {0}, {5}], k=2)
    assert (report.requests, report.partial, report.invalid, report.repaired, report.ok) == (3, 1, 1, 1, 0)
    assert report.ndcg == pytest.approx(1 / 3)
    assert report.hit_rate == pytest.approx(1 / 3)
    assert (report.duplicates, report.invented) == (3, 3)
    assert list_report([right], [{5, 1}]).ndcg == pytest.approx((1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3)))
    with pytest.raises(InputError, match="nothing relevant"):
        list_report([none], [set()])


def test_a_scorer_that_the_order_does_not_move_has_no_bias():
    positions = np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0]])
    bias = position_bias(np.tile([0.1, 0.5, 0.9], (3, 1)), positions)
    assert bias.by_position.tolist() == pytest.approx([0, 0, 0])
    assert (bias.slope, bias.spread, bias.top_changes, bias.missing) == pytest.approx((0, 0, 0, 0))


def test_a_scorer_that_repeats_the_order_is_all_bias():
    positions = np.array([[0, 1, 2], [2, 0, 1], [1, 2, 0]])
    bias = position_bias(1 - positions / 2, positions)
    assert bias.by_position.tolist() == pytest.approx([0.5, 0, -0.5])
    assert bias.slope == pytest.approx(-1)
    assert bias.spread == pytest.approx(np.std([0, 0.5, 1]))
    assert bias.top_changes == pytest.approx(2 / 3)


def test_scores_that_are_not_there_count_as_missing():
    scores = np.array([[1.0, 0.0], [np.nan, np.nan], [1.0, 0.0]])
    bias = position_bias(scores, np.array([[0, 1], [1, 0], [0, 1]]))
    assert (bias.missing, bias.orders, bias.spread) == (2, 3, 0)
    assert math.isnan(position_bias(np.full((2, 1), np.nan), np.zeros((2, 1), dtype=int)).spread)
    with pytest.raises(InputError, match="two orders or more"):
        position_bias(scores[:1], np.zeros((1, 2), dtype=int))
