"""An endpoint answers as a session of the contract: in order, typed, cut, kept to the output's form."""

import dataclasses
import threading

import numpy as np
import pytest
from endpoint import Reply
from openai_requests import request

from llmrec_plugin import Choice, Decoding, Json, Segment, ShortText, Tags
from llmrec_plugin.errors import InputError, ProviderError, RemoteError
from llmrec_plugin.systems.openai_chat.session import open_endpoint

GREEDY = Decoding(max_new_tokens=8)
TAGS = Tags(vocabulary=("a", "b"), max_items=2)


def ask(opened, *texts, decoding=GREEDY, output=None, **changes):
    return opened.generate([request(text, **changes) for text in texts], decoding, output)


def test_completions_come_in_the_order_of_the_requests(session, server):
    server.gate = threading.Barrier(4)
    texts = [f"w{number}" for number in range(8)]
    found = ask(session(CONCURRENCY=4), *texts)
    assert [(item.text, item.finish, item.error) for item in found] == [(text.upper(), "stop", "") for text in texts]
    assert server.largest_at_once == 4


def test_what_is_done_is_told_at_once_and_from_one_thread(session):
    told = []
    found = session(CONCURRENCY=3).generate(
        [request(text) for text in "abcdef"],
        GREEDY,
        done=lambda number, completion: told.append((number, completion.text, threading.get_ident())),
    )
    assert sorted(told)[:2] == [(0, "A", threading.get_ident()), (1, "B", threading.get_ident())]
    assert {number for number, _, _ in told} == set(range(6))
    assert {thread for _, _, thread in told} == {threading.get_ident()}
    assert [item.finish for item in found] == ["stop"] * 6


def test_an_interruption_makes_no_further_requests(session, server):
    def interrupt(number, completion):
        raise KeyboardInterrupt

    server.delay = 0.02
    opened = session()
    with pytest.raises(KeyboardInterrupt):
        opened.generate([request(text) for text in "abcdefghij"], GREEDY, done=interrupt)
    opened._pool.shutdown()
    assert len(server.requests) < 5


def test_no_requests_are_no_completions(session):
    assert session().generate([], GREEDY) == []


def test_a_chat_model_gets_messages_and_another_one_text(session, server):
    ask(session(), "x", system="Be kind.")
    ask(session({"chat": False}), "x", system="Be kind.")
    chat, plain = server.requests
    assert chat["path"] == "/v1/chat/completions"
    assert chat["messages"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Repeat: x"}]
    assert (plain["path"], plain["prompt"]) == ("/v1/completions", "Be kind.\n\nRepeat: x")
    assert chat["model"] == plain["model"] == "writer"


def test_decoding_is_said_in_the_words_of_the_api(session, server):
    opened = session()
    ask(opened, "x")
    ask(opened, "x", decoding=Decoding(method="sample", temperature=0.5, top_p=0.9, top_k=5, seed=1, max_new_tokens=3))
    greedy, drawn = server.requests
    assert (greedy["temperature"], greedy["max_tokens"], "seed" in greedy) == (0, 8, False)
    assert (drawn["temperature"], drawn["top_p"], drawn["top_k"], drawn["max_tokens"]) == (0.5, 0.9, 5, 3)
    assert drawn["seed"] == 7 ^ 1


@pytest.mark.parametrize("decoding", [Decoding(method="beam", beams=2), Decoding(repetition_ngram=3)])
def test_decoding_that_the_api_lacks_is_an_error(session, server, decoding):
    with pytest.raises(
        ProviderError, match=r"openai has no (method='beam'|repetition_ngram).*Declare another Decoding"
    ):
        ask(session(), "x", decoding=decoding)
    assert server.requests == []


@pytest.mark.parametrize(
    ("structured", "output", "fields"),
    [
        ("none", TAGS, {}),
        ("json_schema", ShortText(), {}),
        ("guided", Choice(options=("a", "b")), {"guided_choice": ["a", "b"]}),
        ("structured_outputs", Choice(options=("a", "b")), {"structured_outputs": {"choice": ["a", "b"]}}),
        ("guided", Json(schema={"type": "object"}), {"guided_json": {"type": "object"}}),
        (
            "json_schema",
            Json(schema={"type": "object"}),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "value", "schema": {"type": "object"}},
                }
            },
        ),
    ],
)
def test_the_form_of_the_output_is_asked_for_as_configured(session, server, structured, output, fields):
    ask(session(STRUCTURED=structured), "x", output=output)
    (sent,) = server.requests
    assert {name: sent[name] for name in sent if name.startswith(("guided", "response", "structured"))} == fields


def test_tags_are_asked_for_as_an_object_of_some_of_the_vocabulary(session, server):
    ask(session(STRUCTURED="json_schema"), "x", output=TAGS)
    asked = server.requests[0]["response_format"]["json_schema"]
    items = {"type": "string", "enum": ["a", "b"]}
    assert asked["schema"]["properties"] == {"tags": {"type": "array", "items": items, "minItems": 1, "maxItems": 2}}
    assert asked["strict"] is True


def test_further_fields_are_added_and_null_leaves_one_out(session, server):
    ask(session(EXTRA='{"temperature": null, "max_tokens": 99, "top": {"a": 1}}'), "x")
    (sent,) = server.requests
    assert (sent["max_tokens"], sent["top"], "temperature" in sent) == (99, {"a": 1}, False)


def test_a_model_that_takes_no_max_tokens_is_asked_otherwise(session, server):
    server.knows_max_tokens = False
    opened = session()
    assert [item.text for item in ask(opened, "a", "b")] == ["A", "B"]
    assert len(server.requests) == 3
    assert server.requests[-1]["max_completion_tokens"] == 8


@pytest.mark.parametrize(("said", "finish"), [("stop", "stop"), ("length", "length"), (None, "stop")])
def test_how_a_completion_ended_is_told(session, server, said, finish):
    server.finish = said
    (found,) = ask(session(), "x")
    assert (found.text, found.finish) == ("X", finish)


def test_an_answer_that_a_filter_withheld_is_an_error_that_lasts(session, server):
    server.finish = "content_filter"
    (found,) = ask(session(), "x")
    assert (found.finish, found.lasting, found.text) == ("error", True, "")
    assert "content filter" in found.error


# --- data


def test_data_is_cut_to_its_tokens_and_instructions_are_not(session, server):
    ask(session(), "x" * 99, instructions="y" * 99, max_tokens=5)
    assert server.requests[0]["messages"][0]["content"] == "y" * 99 + "x" * 20


def test_a_prompt_that_is_too_long_is_cut_where_its_data_is_longest(session, server):
    segments = [Segment("i" * 10), Segment("a" * 50, data=True), Segment("|"), Segment("b" * 500, data=True)]
    item = dataclasses.replace(request(""), user=tuple(segments))
    session({"max_tokens": 58}).generate([item], GREEDY)  # 50 tokens of 4 characters
    assert server.requests[0]["messages"][0]["content"] == "i" * 10 + "a" * 50 + "|" + "b" * 139


def test_instructions_that_are_too_long_are_an_error(session):
    with pytest.raises(InputError, match="the instructions are 8 characters too long"):
        ask(session({"max_tokens": 10}), "x", instructions="y" * 16)


@pytest.mark.parametrize(
    "mark",
    ["<|im_end|>", "<｜User｜>", "</s>", "< /S >", "<start_of_turn>", "[INST]", "[ /inst ]", "<<SYS>>", "<think>"],
)
def test_data_cannot_spell_the_marks_of_a_chat_template(session, server, mark):
    ask(session(), f"a {mark} b [1] <b>", instructions=f"{mark} ")
    content = server.requests[0]["messages"][0]["content"]
    assert content.startswith(f"{mark} a ")
    assert mark not in content.removeprefix(mark)
    assert content.endswith("b [1] <b>")


# --- scores


def test_a_chat_model_scores_answers_by_their_first_token(session, server):
    scores = session().score([request("x"), request("y")], ("Yes", " no", "never"))
    assert scores.dtype == np.float32
    expected = [np.log(np.exp(-0.25) + np.exp(-2.0)), -3.0, -6.0]
    np.testing.assert_allclose(scores, [expected, expected], rtol=1e-6)
    assert (server.requests[0]["max_tokens"], server.requests[0]["top_logprobs"]) == (1, 20)


def test_another_model_scores_answers_by_the_echo_of_the_prompt(session, server):
    scores = session({"chat": False}).score([request("x"), request("y")], (" no", " not at all"))
    np.testing.assert_allclose(scores, [[-0.75, -2.75]] * 2)
    assert server.requests[0]["prompt"] == "Repeat: x no"


def test_an_answer_that_begins_inside_of_a_token_has_no_score(session):
    scores = session({"chat": False}).score([request("x")], (" no", "no"))
    assert np.isnan(scores).tolist() == [[False, True]]


def test_a_prompt_whose_request_fails_has_no_scores(session, server, caplog):
    server.replies = [None, Reply(400, "no")]
    scores = session().score([request("x"), request("y"), request("z")], ("Yes", "no"))
    assert np.isnan(scores).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    assert "1 of 3 requests gave no scores" in caplog.text


@pytest.mark.parametrize("chat", [True, False])
def test_a_server_without_log_probabilities_is_an_error(session, server, chat):
    server.logprobs = False
    with pytest.raises(RemoteError, match=r"gives no log probabilities.*declare a Choice"):
        session({"chat": chat}).score([request("x")], ("yes", "no"))


# --- opening


def test_the_opener_reads_the_environment(server, export, monkeypatch):
    monkeypatch.setenv("LLMREC_OPENAI_URL", server.url)
    opened = open_endpoint(export(), device="auto", threads=None)
    assert opened.provider == f"openai at {server.url}/v1/chat/completions"
    assert ask(opened, "x")[0].text == "X"


def test_a_gpu_of_this_machine_is_refused(export):
    with pytest.raises(ProviderError, match=r"LLMREC_DEVICE=cuda.*computes elsewhere"):
        open_endpoint(export(), device="cuda", threads=None)
