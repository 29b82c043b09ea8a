import numpy as np
import pytest

from llmrec_plugin.errors import ParityError
from llmrec_plugin.export import parity

TEXTS = ["one", "two words", "three words now"]


@pytest.fixture
def compare(declare, encoding, tmp_path):
    """Runs the gate on three texts of 1, 2 and 3 tokens with functions in place of the models."""

    def compare(reference, graph, **changes):
        encodings = [encoding(range(1, count + 2)) for count in range(3)]
        return parity.compare(
            declare(tmp_path, dims=2, **changes), TEXTS, encodings, reference=reference, graph=graph,
            inputs=["input_ids", "attention_mask"], pad_token_id=0,
        )  # fmt: skip

    return compare


def total(inputs):
    """A model whose vectors depend on real tokens only."""
    tokens = (inputs["input_ids"] * inputs["attention_mask"]).sum(1)
    return np.stack([tokens, np.ones_like(tokens)], axis=1).astype(np.float32)


def test_equal_models_pass_with_a_complete_record(compare):
    record = compare(total, total)
    assert record.passed
    assert record.texts == 3
    assert record.longest_tokens == 3
    assert (record.max_abs_diff, record.ragged_max_abs_diff, record.batching_max_abs_diff) == (0, 0, 0)
    assert record.mean_cosine == pytest.approx(1)
    assert record.min_cosine == pytest.approx(1)
    assert record.to_dict()["tolerance"] == 1e-5


def test_a_difference_names_number_tolerance_and_worst_text(compare):
    def wrong_for_two_tokens(inputs):
        vectors = total(inputs)
        vectors[inputs["attention_mask"].sum(1) == 2] += 0.25
        return vectors

    with pytest.raises(ParityError, match=r"off by 0\.25, the tolerance is 1e-05; worst text: 'two words'"):
        compare(total, wrong_for_two_tokens)


def test_a_difference_within_the_tolerance_passes(compare):
    assert compare(total, lambda inputs: total(inputs) + np.float32(1e-3), tolerance=1e-2).passed


def test_a_turned_vector_is_refused_though_the_tolerance_would_let_it_pass(compare):
    def short(inputs):
        return total(inputs) * np.float32(1e-3)

    def turned(inputs):
        return short(inputs)[:, ::-1]

    with pytest.raises(ParityError, match=r"smallest cosine: 0\.\d+, at least 0\.9999 is asked\. .*smaller one"):
        compare(short, turned, tolerance=1e-2)


def test_a_vector_that_depends_on_its_neighbours_is_refused(compare):
    def reads_padding(inputs):
        return total(inputs) + inputs["input_ids"].shape[1]

    with pytest.raises(ParityError, match=r"depends on the batch it is in: .* padding on the right"):
        compare(reads_padding, reads_padding)


def test_not_a_number_is_refused(compare):
    with pytest.raises(ParityError, match="off by inf"):
        compare(total, lambda inputs: total(inputs) * np.float32(np.nan))


def test_texts_without_tokens_are_left_out(declare, encoding, tmp_path):
    record = parity.compare(
        declare(tmp_path), ["", "a"], [encoding([]), encoding([5])], reference=total, graph=total,
        inputs=["input_ids", "attention_mask"], pad_token_id=0,
    )  # fmt: skip
    assert record.texts == 1


def test_inputs_are_padded_on_the_declared_side(declare, encoding, tmp_path):
    encodings = [encoding([7, 8, 9]), encoding([5])]
    left = parity.collate(encodings, declare(tmp_path, padding_side="left"), 1, ["input_ids", "position_ids"])
    assert left["input_ids"].tolist() == [[7, 8, 9], [1, 1, 5]]
    assert left["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    right = parity.collate(encodings, declare(tmp_path), 1, ["input_ids", "attention_mask", "token_type_ids"])
    assert right["input_ids"].tolist() == [[7, 8, 9], [5, 1, 1]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert not right["token_type_ids"].any()
    assert right["token_type_ids"].dtype == np.int64


def test_the_corpus_holds_short_long_and_hostile_texts():
    texts = parity.corpus()
    assert len(texts) >= 120
    assert len(set(texts)) == len(texts)
    words = [len(text.split()) for text in texts]
    assert min(words) == 1
    assert max(words) > 256
    joined = "".join(texts)
    for character in "\u200b\u202e\u0301\x00\n🎬שم字":
        assert character in joined
    assert "\\u" not in joined
    assert any("[MASK]" in text for text in texts)


def test_the_golden_texts_hold_a_long_one_an_emoji_and_right_to_left():
    golden = parity.corpus()[: parity.GOLDEN_COUNT]
    assert max(len(text.split()) for text in golden) > 150
    assert any("🎬" in text for text in golden)
    assert any("\u0633" in text for text in golden)
