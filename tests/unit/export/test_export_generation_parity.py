"""What the gate accepts and what it refuses, on logits made by hand."""

import numpy as np
import pytest

from llmrec_plugin.errors import ParityError
from llmrec_plugin.export import generation_parity
from llmrec_plugin.export.generation_parity import compare_generator, golden, parity_prompts
from llmrec_plugin.export.greedy import write
from llmrec_plugin.specs import GeneratorModel

MODEL = GeneratorModel(name="tiny", source="path:/models/tiny", task="causal", max_tokens=64)
PROMPTS = [[3], [4, 5], [6, 7, 8]]
END = 0


class Scripted:
    """A decoder with given logits, (rows of `PROMPTS`, steps, vocabulary)."""

    def __init__(self, logits):
        self.logits = logits

    def start(self, prompts):
        self.rows, self.done = [PROMPTS.index(prompt) for prompt in prompts], 0
        return self.logits[self.rows, 0]

    def step(self, tokens):
        self.done += 1
        return self.logits[self.rows, self.done]


@pytest.fixture(autouse=True)
def _all_tokens(monkeypatch):
    monkeypatch.setattr(generation_parity, "NEW_TOKENS", 24)  # other tests take fewer


@pytest.fixture
def logits():
    """24 steps over five tokens, of which the first ends the second row at its third step."""
    values = np.random.default_rng(0).standard_normal((3, 24, 5)).astype(np.float32)
    values[:, :, END] = -9
    values[1, 2, END] = 9
    return values


@pytest.fixture
def expected(logits):
    return write(Scripted(logits), PROMPTS, 24, [END])


def compare(expected, logits, pieces=None):
    return compare_generator(MODEL, PROMPTS, expected, Scripted(logits), [END], pieces)


def test_a_row_stops_at_its_end(expected, logits):
    assert [len(item.tokens) for item in expected] == [24, 3, 24]
    assert expected[1].tokens[-1] == END
    assert expected[1].logits.shape == (3, 5)


def test_equal_tokens_pass_with_the_largest_difference(expected, logits):
    record = compare(expected, logits + np.float32(1e-4), Scripted(logits))
    assert record.passed
    assert record.max_abs_diff == pytest.approx(1e-4, rel=0.01)
    assert (record.pieces_max_abs_diff, record.ties) == (0, ())
    assert record.written_tokens == 51 * 2 + 27  # the prompt of one token has no pieces


def test_a_difference_beyond_the_tolerance_is_refused(expected, logits):
    with pytest.raises(ParityError, match=r"off by 0\.002 \(alone, after the prompt \[3\]"):
        compare(expected, logits + np.float32(2e-3))


def test_a_number_that_is_none_is_refused(expected, logits):
    logits = logits.copy()
    logits[2, 5, END] = np.nan
    with pytest.raises(ParityError):
        compare(expected, logits)


def test_another_token_is_refused(expected, logits):
    logits = logits.copy()
    first = logits[0, 7].argmax()
    logits[0, 7, first] -= 5
    with pytest.raises(
        ParityError, match=rf"token 8 of the export is \d, PyTorch's is {first}, .*after the prompt \[3\] of 1"
    ):
        compare(expected, logits)


def test_equally_probable_tokens_are_a_tie_and_recorded(expected, logits):
    best, second = np.argsort(logits[0, 7])[[-1, -2]]
    logits[0, 7, second] = logits[0, 7, best] - np.float32(5e-5)
    expected = write(Scripted(logits), PROMPTS, 24, [END])
    actual = logits.copy()
    actual[0, 7, second] += np.float32(1e-4)
    actual[0, 8:] += 100  # what follows is not compared
    record = compare(expected, actual)
    assert [(tie["way"], tie["step"], tie["expected"], tie["got"]) for tie in record.ties] == [
        ("alone", 7, best, second),
        ("ragged", 7, best, second),
    ]
    assert record.ties[0]["difference"] == pytest.approx(5e-5, rel=0.1)


def test_an_end_that_comes_earlier_is_refused(expected, logits):
    logits = logits.copy()
    logits[0, 3, END] = 99
    with pytest.raises(ParityError):
        compare(expected, logits)


def test_golden_prompts_are_those_least_in_doubt_without_their_end(expected):
    content = golden(PROMPTS, expected, [END], 24)
    assert [item["ids"] for item in content["prompts"]] == PROMPTS
    assert [len(item["tokens"]) for item in content["prompts"]] == [24, 2, 24]
    assert content["max_new_tokens"] == 24


def test_prompts_leave_room_for_the_output():
    prompts = parity_prompts(MODEL, lambda text: [ord(letter) % 100 for letter in text], 100)
    assert max(map(len, prompts)) == 40
    assert min(map(len, prompts)) == 1
    assert all(0 <= token < 100 for prompt in prompts for token in prompt)
