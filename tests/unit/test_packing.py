"""Packed vectors: what goes in comes out, within what each storage can hold."""

import numpy as np
import pyarrow as pa
import pytest
from samples import embedding

from llmrec_plugin.errors import FingerprintMismatchError
from llmrec_plugin.pipeline.packing import pack, packed_bytes, stored_values, unpack, value_array, value_type

VECTORS = np.random.default_rng(0).standard_normal((7, 24)).astype(np.float32)


def test_float32_keeps_every_bit():
    np.testing.assert_array_equal(unpack(pack(VECTORS, "float32"), "float32", 24), VECTORS)


@pytest.mark.parametrize(("storage", "tolerance"), [("float16", 2**-11), ("int8", 0.5 / 127)])
def test_a_component_is_off_by_at_most_half_a_step(storage, tolerance):
    unpacked = unpack(pack(VECTORS, storage), storage, 24)
    step = np.abs(VECTORS).max(axis=1, keepdims=True)
    assert (np.abs(unpacked - VECTORS) <= tolerance * step * 1.001).all()
    assert np.abs(unpacked - VECTORS).max() > 0


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_edges(storage):
    zeros = np.zeros((2, 5), np.float32)
    np.testing.assert_array_equal(unpack(pack(zeros, storage), storage, 5), zeros)
    assert unpack([], storage, 5).shape == (0, 5)
    assert {len(value) for value in pack(VECTORS, storage)} == {packed_bytes(storage, 24)}
    alone = [pack(row[None], storage)[0] for row in VECTORS]
    assert alone == pack(VECTORS, storage), "a row's bytes depend on that row alone"


def test_a_value_of_another_length_is_refused():
    with pytest.raises(FingerprintMismatchError, match=r"'title'.* 48 bytes, expected 96 \(24 dims as float32\)"):
        unpack(pack(VECTORS, "float16"), "float32", 24, owner="title")


@pytest.mark.parametrize("storage", ["list", "float32", "float16", "int8"])
def test_a_column_keeps_its_nulls(storage):
    feature = embedding(storage=storage)
    vectors = [None, *np.ones((2, feature.dims), np.float32), None]
    column = value_array(feature, vectors)
    assert column.type == value_type(feature)
    assert column.is_null().to_pylist() == [True, False, False, True]
    values = stored_values(feature, vectors)
    assert [value is None for value in values] == [True, False, False, True]
    plain = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    assert pa.array(plain, value_type(feature)).equals(column)
    assert value_array(feature, []).type == value_type(feature)
