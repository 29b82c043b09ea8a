"""Scores of answers are log probabilities under the model."""

import numpy as np
import pytest
from generating import request

from llmrec_plugin.errors import InputError
from llmrec_plugin.runtime.generation.scoring import questions_of

ANSWERS = (" yes", " no", " web server", " web client", " web", "?")


def expected_of(generators, encode, name, one, answers, room):
    import torch

    manifest = generators.artifact(name).manifest
    tokenizer = generators.open(name)._tokenizer
    ids = encode(name, one, room)
    scores = []
    for answer in tokenizer.data(answers):
        with torch.inference_mode():
            if manifest.task == "seq2seq":
                start = [manifest.decoder_start_token_id, *answer]
                network = generators.network(name)
                logits = network(torch.tensor([ids]), decoder_input_ids=torch.tensor([start])).logits[0]
            else:
                logits = generators.network(name)(torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 :]
        chances = torch.log_softmax(logits, -1)
        scores.append(sum(float(chances[i, token]) for i, token in enumerate(answer)))
    return scores


@pytest.mark.parametrize("name", ["llama", "llama-plain", "t5"])
def test_scores_are_those_of_a_pass_per_answer(generators, encode, name):
    asked = [request(text, "is this item relevant for the user? ") for text in ("web", "a blue parser", "java " * 8)]
    session = generators.open(name)
    found = session.score(asked, ANSWERS)
    room = max(map(len, session._tokenizer.data(ANSWERS)))
    expected = [expected_of(generators, encode, name, one, ANSWERS, room) for one in asked]
    assert (found.shape, found.dtype) == ((3, len(ANSWERS)), np.float32)
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("name", ["llama", "llama-plain"])
def test_a_score_does_not_depend_on_its_neighbors(generators, name):
    session = generators.open(name)
    asked = [request("web " * (1 + i % 7)) for i in range(20)]
    together = session.score(asked, ANSWERS)
    alone = np.concatenate([session.score([one], ANSWERS) for one in asked])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_answers_of_one_token_need_one_question_and_shared_beginnings_are_asked_once():
    assert [question.path for question in questions_of([[1], [2], [3]])] == [()]
    paths = [question.path for question in questions_of([[1, 2, 3], [1, 2, 4], [5], [1, 6]])]
    assert paths == [(), (1,), (1, 2)]


def test_no_requests_have_no_scores(generators):
    assert generators.open("llama").score([], (" yes", " no")).shape == (0, 2)


def test_an_answer_without_tokens_is_refused(generators):
    with pytest.raises(InputError, match="Answers"):
        generators.open("llama").score([request("web")], ("yes", ""))
