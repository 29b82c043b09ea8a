"""A training frame as a PyTorch dataset."""

import numpy as np
import pandas as pd
import pytest
from samples import embedding, labelled

from llmrec_plugin.errors import ColumnTypeError, DeclarationError, MissingColumnError

torch = pytest.importorskip("torch", reason="the extra 'export' is not installed")
from torch.utils.data import DataLoader  # noqa: E402

from llmrec_plugin.adapters import RankerDataset, collate_rows  # noqa: E402

VECTORS = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "price": [1.5, np.nan, 3.0, 4.0],
            "on_sale": [True, False, True, False],
            "item_title_embedding": [VECTORS[0].tolist(), VECTORS[1].tolist(), None, VECTORS[2]],
            "kind": ["tool", "game", None, "new kind"],
            "item_title_tags": [["web", "fast"], [], None, ["fast", "new tag", "web"]],
            "clicked": [0, 1, 0, 1],
        },
        index=[7, 3, 9, 1],
    )


@pytest.fixture
def dataset(frame):
    return RankerDataset(
        frame,
        numbers=["price", "on_sale"],
        vectors=[embedding()],
        categories={"kind": ["game", "tool"]},
        tags={"item_title_tags": ["web", "fast"]},
        label="clicked",
    )


def test_a_batch_holds_what_the_frame_holds(dataset):
    (batch,) = DataLoader(dataset, batch_size=4, collate_fn=collate_rows)
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "numbers": ((4, 2), torch.float32),
        "numbers_present": ((4, 2), torch.bool),
        "item_title_embedding": ((4, 8), torch.float32),
        "item_title_embedding_present": ((4,), torch.bool),
        "kind": ((4,), torch.int64),
        "item_title_tags": ((4, 3), torch.int64),
        "item_title_tags_mask": ((4, 3), torch.bool),
        "label": ((4,), torch.float32),
    }
    assert batch["numbers"].tolist() == [[1.5, 1], [0, 0], [3, 1], [4, 0]]
    assert batch["numbers_present"].tolist() == [[True, True], [False, True], [True, True], [True, True]]
    expected = np.stack([VECTORS[0], VECTORS[1], np.zeros(8, dtype=np.float32), VECTORS[2]])
    np.testing.assert_array_equal(batch["item_title_embedding"].numpy(), expected)
    assert batch["item_title_embedding_present"].tolist() == [True, True, False, True]
    assert batch["kind"].tolist() == [3, 2, 1, 1]
    assert batch["item_title_tags"].tolist() == [[2, 3, 0], [0, 0, 0], [0, 0, 0], [3, 1, 2]]
    assert batch["item_title_tags_mask"].sum(dim=1).tolist() == [2, 0, 0, 3]
    assert batch["label"].tolist() == [0, 1, 0, 1]


def test_tags_are_padded_to_the_longest_of_their_batch(dataset):
    widths = [batch["item_title_tags"].shape[1] for batch in DataLoader(dataset, 1, collate_fn=collate_rows)]
    assert widths == [2, 1, 1, 3]


def test_worker_processes_give_the_same_rows(dataset):
    def batches(workers):
        loader = DataLoader(dataset, 2, collate_fn=collate_rows, num_workers=workers)
        return [{name: value.numpy() for name, value in batch.items()} for batch in loader]

    for here, there in zip(batches(0), batches(1), strict=True):
        for name in here:
            np.testing.assert_array_equal(here[name], there[name])


def test_a_ranker_learns_from_it():
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((256, 8)).astype(np.float32)
    frame = pd.DataFrame({"item_title_embedding": list(vectors), "clicked": vectors[:, 0] > 0})
    dataset = RankerDataset(frame, vectors=[embedding()], label="clicked")
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(10):
        for batch in DataLoader(dataset, 64, shuffle=True, collate_fn=collate_rows):
            scores = layer(batch["item_title_embedding"]).squeeze(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    guessed = layer(torch.from_numpy(vectors)).squeeze(1) > 0
    assert (guessed.numpy() == (vectors[:, 0] > 0)).mean() > 0.9


def test_rows_are_counted_from_both_ends(dataset):
    assert dataset[-1]["item_title_tags"].tolist() == dataset[3]["item_title_tags"].tolist() == [3, 1, 2]
    with pytest.raises(IndexError, match="row 4 of 4"):
        dataset[4]


def test_a_frame_without_rows_gives_no_batches(frame):
    empty = RankerDataset(frame.iloc[:0], numbers=["price"], vectors=[embedding()], tags={"item_title_tags": ["web"]})
    assert list(DataLoader(empty, 2, collate_fn=collate_rows)) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"numbers": ["height"]}, MissingColumnError, "'height'"),
        ({"numbers": ["kind"]}, ColumnTypeError, "'kind': expected numbers"),
        ({"vectors": [labelled()]}, DeclarationError, "holds vectors"),
        ({"tags": {"price": ["a"]}}, ColumnTypeError, "expected lists of strings"),
        ({"categories": {"kind": ["tool", "tool"]}}, DeclarationError, "has 'tool' twice"),
        ({"label": "price"}, ColumnTypeError, "1 of 4 rows have no label"),
        ({"categories": {"kind": []}, "tags": {"kind": []}}, DeclarationError, "'kind' is named twice"),
    ],
)
def test_what_cannot_become_a_tensor_is_refused(frame, options, error, message):
    with pytest.raises(error, match=message):
        RankerDataset(frame, **options)
