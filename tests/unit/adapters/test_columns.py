"""Vector columns as float32 columns and back."""

import time

import numpy as np
import pandas as pd
import pytest
from samples import embedding, labelled

from llmrec_plugin.adapters import collapse_columns, expand_columns
from llmrec_plugin.adapters.columns import STATUSES, column_of
from llmrec_plugin.errors import ColumnTypeError, DeclarationError, FingerprintMismatchError, MissingColumnError
from llmrec_plugin.pipeline.packing import pack, unpack
from llmrec_plugin.serving import Column

VECTORS = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "price": [1.0, 2.0, 3.0, 4.0],
            "item_title_embedding": [VECTORS[0].tolist(), None, VECTORS[1], tuple(VECTORS[2].tolist())],
            "item_title_embedding_status": ["ok", "empty", "cached", None],
            "clicked": [0, 1, 0, 1],
        },
        index=[7, 3, 9, 1],
    )


def test_a_vector_takes_its_place_as_float32_columns_with_stable_names(frame):
    expanded = expand_columns(frame, [embedding(status=True)])
    names = [f"item_title_embedding_{number}" for number in range(8)]
    assert list(expanded) == ["price", *names, "item_title_embedding_status", "clicked"]
    assert set(expanded[names].dtypes) == {np.dtype("float32")}
    assert list(expanded.index) == [7, 3, 9, 1]
    np.testing.assert_array_equal(expanded[names].to_numpy()[[0, 2, 3]], VECTORS)
    assert np.isnan(expanded.loc[3, names].to_numpy(dtype=float)).all()


def test_statuses_have_the_same_codes_in_every_frame(frame):
    codes = expand_columns(frame, [embedding(status=True)])["item_title_embedding_status"].cat.codes
    assert codes.tolist() == [STATUSES.index("ok"), STATUSES.index("empty"), STATUSES.index("cached"), -1]
    one = expand_columns(frame.iloc[[1]], [embedding(status=True)])["item_title_embedding_status"].cat.codes
    assert one.tolist() == [STATUSES.index("empty")]


def test_collapsing_gives_back_what_was_expanded(frame):
    before = frame.copy(deep=True)
    back = collapse_columns(expand_columns(frame, [embedding(status=True)]), [embedding(status=True)])
    assert list(back) == list(frame)
    for got, given in zip(back["item_title_embedding"], frame["item_title_embedding"], strict=True):
        assert (got is None) if given is None else np.array_equal(got, np.float32(given))
    assert back["item_title_embedding_status"].tolist() == ["ok", "empty", "cached", None]
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_packed_vectors_are_expanded_as_they_are_read(storage):
    packed = pack(VECTORS, storage)
    cells = pd.DataFrame({"item_title_embedding": [packed[0], float("nan"), packed[1], packed[2]]})
    matrix = expand_columns(cells, [embedding(storage=storage)]).to_numpy()
    np.testing.assert_array_equal(matrix[[0, 2, 3]], unpack(packed, storage, 8))
    assert np.isnan(matrix[1]).all()


def test_no_rows_and_rows_without_vectors_have_the_same_columns():
    empty = expand_columns(pd.DataFrame({"item_title_embedding": []}), [embedding()])
    missing = expand_columns(pd.DataFrame({"item_title_embedding": [None, float("nan")]}), [embedding()])
    assert list(empty) == list(missing)
    assert missing.isna().all(axis=None)
    assert collapse_columns(missing, [embedding()])["item_title_embedding"].tolist() == [None, None]


def test_a_layout_says_as_much_as_a_declaration():
    column = Column(name="item_title_embedding", dims=8, storage="float16", status="item_title_embedding_status")
    assert column_of(embedding(storage="float16", status=True)) == column


@pytest.mark.parametrize(
    ("cells", "error", "message"),
    [
        ([[1.0] * 8, [1.0] * 7], ColumnTypeError, "components, got one of 7 in row 1"),
        (["text"], ColumnTypeError, "expected lists of 8 numbers"),
        ([VECTORS[0], b"bytes"], ColumnTypeError, "components, got one of 5 in row 1"),
    ],
)
def test_cells_that_are_no_such_vectors_are_refused(cells, error, message):
    with pytest.raises(error, match=message):
        expand_columns(pd.DataFrame({"item_title_embedding": cells}), [embedding()])


def test_what_cannot_be_expanded_is_refused(frame):
    with pytest.raises(MissingColumnError, match="'item_title_embedding'"):
        expand_columns(frame[["price"]], [embedding()])
    with pytest.raises(MissingColumnError, match="item_title_embedding_0"):
        collapse_columns(frame, [embedding()])
    with pytest.raises(DeclarationError, match="holds vectors"):
        expand_columns(frame, [labelled()])
    with pytest.raises(DeclarationError, match="holds numbers"):
        expand_columns(frame, [Column(name="price")])
    with pytest.raises(DeclarationError, match="two columns 'item_title_embedding_1'"):
        expand_columns(frame.assign(item_title_embedding_1=1), [embedding()])
    with pytest.raises(ColumnTypeError, match="got 'good'"):
        expand_columns(frame.assign(item_title_embedding_status="good"), [embedding(status=True)])
    with pytest.raises(FingerprintMismatchError, match="3 bytes, expected 16"):
        expand_columns(pd.DataFrame({"item_title_embedding": [b"abc"]}), [embedding(storage="float16")])


def test_a_large_frame_is_expanded_faster_than_row_by_row():
    column = Column(name="v", dims=64, storage="list")
    frame = pd.DataFrame({"v": list(np.ones((2_000, 64), dtype=np.float32))})
    clock = time.perf_counter()
    expanded = expand_columns(frame, [column])
    fast = time.perf_counter() - clock
    clock = time.perf_counter()
    rows = frame["v"].apply(pd.Series)
    slow = time.perf_counter() - clock
    assert rows.shape == expanded.shape
    assert fast < slow / 3


def _labels(expanded):
    return expanded["item_title_embedding_0"].to_numpy() > 0


@pytest.fixture
def training_frame():
    vectors = np.random.default_rng(1).standard_normal((200, 8)).astype(np.float32)
    cells = [None if row % 20 == 0 else vector for row, vector in enumerate(vectors)]
    status = ["empty" if cell is None else "ok" for cell in cells]
    return pd.DataFrame({"item_title_embedding": cells, "item_title_embedding_status": status})


def test_lightgbm_learns_from_an_expanded_frame_and_knows_its_names(training_frame):
    lightgbm = pytest.importorskip("lightgbm", reason="the extra 'evaluate' is not installed")
    expanded = expand_columns(training_frame, [embedding(status=True)])
    data = lightgbm.Dataset(expanded, _labels(expanded))
    booster = lightgbm.train({"objective": "binary", "verbose": -1, "num_threads": 1}, data, num_boost_round=5)
    assert booster.feature_name() == list(expanded)
    scores = booster.predict(expanded)
    assert scores[_labels(expanded)].min() > scores[~_labels(expanded)].max()


def test_xgboost_learns_from_an_expanded_frame_and_knows_its_names(training_frame):
    xgboost = pytest.importorskip("xgboost", reason="xgboost is not installed")
    expanded = expand_columns(training_frame, [embedding(status=True)])
    data = xgboost.DMatrix(expanded, _labels(expanded), enable_categorical=True)
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, data, num_boost_round=5)
    assert booster.feature_names == list(expanded)
    scores = booster.predict(data)
    assert scores[_labels(expanded)].min() > scores[~_labels(expanded)].max()
