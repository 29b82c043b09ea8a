"""Sequences of ids from a split, and the full ranking."""

import numpy as np
import pandas as pd
import pytest
from rings import ring

from llmrec_plugin.errors import InputError, SourceError
from llmrec_plugin.interactions import Dataset, Split, temporal_split
from llmrec_plugin.systems.sequences import (
    Questions,
    batches_by_length,
    catalogue_texts,
    example_histories,
    last_out_split,
    measured,
    padded,
    quality_of,
    ranks,
    summary,
    to_sequences,
    windows,
)


def frame(*rows, timed=True):
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    if not timed:
        return table.drop(columns="timestamp")
    return table.assign(timestamp=pd.to_datetime(table["timestamp"], unit="s", utc=True))


def keys(sequences, ids):
    return [sequences.items[number - 1] for number in ids]


def test_a_history_holds_what_happened_earlier_and_nothing_of_the_same_moment():
    split = Split(
        train=frame(("u", "a", 1), ("u", "b", 2), ("v", "c", 1)),
        validation=frame(("u", "c", 3)),
        test=frame(("u", "a", 4), ("u", "new", 5), ("u", "b", 6), ("u", "c", 6), ("w", "a", 6)),
    )
    sequences = to_sequences(split)
    assert sequences.items == ("a", "b", "c")
    assert [keys(sequences, ids) for ids in sequences.train] == [["a", "b"], ["c"]]
    assert [keys(sequences, ids) for ids in sequences.validation.histories] == [["a", "b"]]
    histories = [keys(sequences, ids) for ids in sequences.test.histories]
    assert histories == [["a", "b", "c"], ["a", "b", "c", "a"], ["a", "b", "c", "a"], ["a", "b", "c", "a"]]
    assert sequences.test.targets.tolist() == [1, 0, 2, 3]  # 0: nobody had the new item in training
    assert sequences.test.left_out == 1  # w has no history
    assert sequences.counts().tolist() == [1, 1, 1]


def test_without_times_a_history_is_the_parts_before():
    split = Split(
        train=frame(("u", "b", 0), ("u", "a", 0), timed=False),
        validation=frame(("u", "c", 0), timed=False),
        test=frame(("u", "a", 0), ("u", "b", 0), timed=False),
    )
    sequences = to_sequences(split, ["a", "b", "c"])
    assert [keys(sequences, ids) for ids in sequences.test.histories] == [["b", "a", "c"]] * 2


def test_every_row_of_a_part_is_asked_or_counted():
    split = temporal_split(ring(users=40))
    sequences = to_sequences(split)
    for part, rows in ((sequences.validation, split.validation), (sequences.test, split.test)):
        assert len(part.targets) + part.left_out == len(rows)


def test_events_that_nobody_can_ask_are_refused():
    train = frame(("u", "a", 1), ("u", "b", 2))
    with pytest.raises(InputError, match="1 training users, 0 and 0 such events"):
        to_sequences(Split(train=train, validation=frame(("v", "a", 3)), test=frame(("w", "a", 4))))


def test_leave_one_out_takes_the_last_two_events():
    split = last_out_split(ring(users=5))
    for user, rows in ring(users=5).interactions.groupby("user_id"):
        items = list(rows["item_id"])
        assert list(split.train.item_id[split.train.user_id == user]) == items[:-2]
        assert list(split.validation.item_id[split.validation.user_id == user]) == items[-2:-1]
        assert list(split.test.item_id[split.test.user_id == user]) == items[-1:]


def test_leave_one_out_needs_three_events():
    short = ring(users=3)
    rows = short.interactions.groupby("user_id").head(2).reset_index(drop=True)
    with pytest.raises(InputError, match="three events"):
        last_out_split(Dataset(name="short", interactions=rows, items=short.items, users=short.users))


def test_windows_cover_a_sequence_from_the_newest_end():
    ids = np.arange(1, 12)
    assert [piece.tolist() for piece in windows([ids], 5)] == [[7, 8, 9, 10, 11], [2, 3, 4, 5, 6]]
    overlapping = windows([ids], 5, overlap=1)
    assert [piece.tolist() for piece in overlapping] == [[7, 8, 9, 10, 11], [3, 4, 5, 6, 7], [1, 2, 3]]
    asked = sorted(int(item) for piece in overlapping for item in piece[1:])
    assert asked == list(range(2, 12))  # each event but the first is a target once
    with pytest.raises(InputError, match="two training events"):
        windows([np.array([1])], 5)


def test_padding_is_behind_and_the_newest_stay():
    assert padded([np.array([1, 2, 3]), np.array([4])], 2).tolist() == [[2, 3], [4, 0]]


def test_batches_hold_every_row_once_by_a_seed():
    pieces = [np.arange(length) for length in (5, 2, 9, 3, 3, 8, 1)]
    batches = batches_by_length(pieces, 3, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    again = batches_by_length(pieces, 3, np.random.default_rng(1))
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in again]


def test_ranks_break_ties_by_the_later_key_and_leave_out_what_was_seen():
    scores = np.array([[3, 1, 1, 2]] * 4, dtype=np.float32)
    assert ranks(scores, np.array([2, 3, 0, 4])).tolist() == [4, 3, 5, 2]
    seen = [np.array([1]), np.array([1, 4]), np.array([1]), np.array([4])]
    assert ranks(scores, np.array([2, 3, 0, 4]), seen).tolist() == [3, 1, 5, 2]  # a seen target is still ranked


def test_ranks_agree_with_sorting():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (50, 20)).astype(np.float32)
    targets = rng.integers(1, 21, 50)
    for row, rank in enumerate(ranks(scores, targets)):
        order = sorted(range(20), key=lambda item: (scores[row, item], item), reverse=True)
        assert order.index(targets[row] - 1) + 1 == rank


def test_a_score_without_a_rank_is_refused():
    with pytest.raises(InputError, match="NaN"):
        ranks(np.array([[np.nan, 1]], dtype=np.float32), np.array([1]))


def test_measures_of_known_ranks():
    found = summary(np.array([1, 3, 10, 11, 51]))
    assert found["hr@10"] == pytest.approx(3 / 5)
    assert found["hr@50"] == pytest.approx(4 / 5)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / np.log2(11)) / 5)


def test_batches_do_not_change_what_is_measured():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((30, 30)).astype(np.float32)
    questions = Questions([np.array([item]) for item in rng.integers(1, 31, 70)], rng.integers(0, 31, 70))

    def score(histories):
        return table[[ids[-1] - 1 for ids in histories]]

    one = measured(score, questions, exclude_seen=True, batch=1)
    assert one == pytest.approx(measured(score, questions, exclude_seen=True, batch=256))
    assert len(questions.sample(10, 3).targets) == 10


def test_quality_says_what_was_measured_and_how():
    sequences = to_sequences(last_out_split(ring(users=60)))
    size = len(sequences.items)

    def oracle(histories):
        return np.eye(size, dtype=np.float32)[[ids[-1] % size for ids in histories]]

    quality = quality_of(oracle, sequences, exclude_seen=True, evaluated=20, seed=0)
    assert quality["evaluated_events"] == 20
    assert quality["test"]["hr@10"] == 1
    assert quality["baselines"]["popularity"]["hr@10"] < 1
    assert "but those of the history" in quality["rule"]


def test_texts_of_items_that_have_one():
    data = ring(items=3, users=20)
    data.items.loc[1, "title"] = None
    assert catalogue_texts(data, "{title}") == {"ring00": "ring place 0", "ring02": "ring place 2"}
    with pytest.raises(InputError, match="no column 'plot', only item_id, title"):
        catalogue_texts(data, "{plot}")


def test_examples_are_short_long_and_unknown():
    rows = example_histories([f"i{number}" for number in range(9)], 6)
    assert len(rows) >= 8
    assert {1, 6, 7} <= {len(row) for row in rows}
    assert any(key not in {f"i{number}" for number in range(9)} for row in rows for key in row)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    pytest.importorskip("safetensors")
    from llmrec_plugin.systems.trained import read_trained

    with pytest.raises(SourceError, match="llmrec train bert4rec"):
        read_trained(tmp_path, "bert4rec")
