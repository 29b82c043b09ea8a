"""What rows bring into a network: columns of every kind, hostile ones included; shapes and batches."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest

from llmrec_plugin.errors import DeclarationError, InputError, MissingColumnError
from llmrec_plugin.networks import (
    Id,
    IdSequence,
    Image,
    Number,
    Tokens,
    Vector,
    VectorSequence,
    graph_names,
    input_from_spec,
)
from llmrec_plugin.pipeline.networks import Preparer, Row, collate, padded_lengths, plan_rows, read_rows, work_of
from llmrec_plugin.pipeline.packing import pack
from llmrec_plugin.specs import to_spec

KEYS = {"items": {f"i{number}": number for number in range(1, 10)} | {"7": 10, "2.5": 11}}
VECTOR = np.array([[1.5, -2.0, 0.25]], dtype=np.float32)
HALF = (0.5, 0.5, 0.5)


def read(item, cells, source="column"):
    """The values that cells bring in: None for an empty row, a message for an invalid one."""
    rows, invalid = read_rows("feature", [item], {item.name: source}, {"column": cells}, KEYS)
    return [invalid.get(number, None if row is None else row.inputs[0]) for number, row in enumerate(rows)]


def plain(values):
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


def test_a_key_is_its_text_and_an_unknown_one_is_nothing():
    item = Id(name="item", vocabulary="items")
    assert read(item, ["i3", 7, 7.0, np.int64(7), 2.5, "nobody", None, float("nan"), ""]) == [
        3, 10, 10, 10, 11, None, None, None, None,
    ]  # fmt: skip
    assert "expected one key, got a list" in read(item, [["i3"]])[0]


def test_a_sequence_keeps_the_newest_known_keys_and_is_oldest_first():
    item = IdSequence(name="history", vocabulary="items", max_length=3)
    cells = [
        ["i1", "i2"],
        ["new", "i3", None, "i2", "i1", "i9"],
        np.array(["i1", "i2"], dtype=object),
        np.array([7, 7]),
        ("i1",),
        [],
        ["new"],
        None,
        float("nan"),
    ]
    assert plain(read(item, cells)) == [[2, 1], [1, 2, 3], [2, 1], [10, 10], [1], None, None, None, None]
    for cell in ("i1", 3, {"i1"}, b"i1"):
        assert "expected a list of keys" in read(item, [cell])[0]


def test_numbers_are_finite():
    item = Number(name="price")
    assert read(item, [1, 2.5, np.float32(3), True, np.bool_(False), None, float("nan")]) == [
        1.0, 2.5, 3.0, 1.0, 0.0, None, None,
    ]  # fmt: skip
    for cell in ("1", float("inf"), 1e300, [1]):
        assert "number" in read(item, [cell])[0]


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_a_vector_may_be_numbers_or_packed(storage):
    item = Vector(name="vector", dims=3)
    [packed] = pack(VECTOR, storage)
    for cell in (packed, base64.b64encode(packed).decode(), bytearray(packed)):
        assert read(item, [cell])[0] == pytest.approx(VECTOR[0], abs=0.02)
    for cell in (VECTOR[0], VECTOR[0].tolist(), tuple(VECTOR[0].astype(np.float64)), VECTOR[0].astype(object)):
        assert read(item, [cell])[0].tolist() == VECTOR[0].tolist()


def test_a_vector_of_another_length_or_of_nothing_is_invalid():
    item = Vector(name="vector", dims=3)
    assert read(item, [None, [], b"", np.zeros(0)]) == [None] * 4
    for cell in ([1.0, 2.0], [[1.0, 2.0, 3.0]], b"12345", "no base64!", [1, "a", 2], {1: 2}, 4.0, [1.0, None, 2.0],
                 [1, 2, float("nan")], [1, 2, 1e300], [[1.0], [2.0, 3.0]]):  # fmt: skip
        assert "expected" in read(item, [cell])[0], cell
    # Four dims: eight bytes may be float16 or int8, so they are not guessed.
    assert "which may be float16 or int8" in read(Vector(name="vector", dims=4), [b"8 bytes!"])[0]


def test_vectors_come_flat_nested_or_packed_and_are_cut():
    item = VectorSequence(name="reviews", dims=2, max_length=2)
    three = np.arange(6, dtype=np.float32).reshape(3, 2)
    cells = [three, three.tolist(), three.ravel().tolist(), three.tobytes(), np.array([*three, 0], dtype=object)[:3]]
    for value in read(item, cells):
        assert value.tolist() == three[:2].tolist()
    assert read(item, [None, [], b""]) == [None] * 3
    for cell in ([1.0], [[1.0], [2.0]], b"1234", [[[1.0, 2.0]]], "text"):
        assert "expected" in read(item, [cell])[0]


def test_a_text_may_be_a_column_or_a_template():
    item = Tokens(name="text", max_tokens=8)
    for source in ("column", "{column}"):
        assert read(item, ["red", " ", None, 7], source) == ["red", None, None, "7"]
    assert read(item, ["red"], "about {column}.") == ["about red."]


def test_one_input_that_is_missing_empties_a_row_and_a_bad_one_is_named():
    inputs = [Number(name="a"), Id(name="b", vocabulary="items")]
    columns = {"x": [1.0, None, "bad", 1.0], "y": ["i1", "i1", "i1", "new"], "z": [0, 0, 0, 0]}
    rows, invalid = read_rows("feature", inputs, {"a": "x", "b": "y"}, columns, KEYS)
    assert [row is None for row in rows] == [False, True, True, True]
    assert rows[0].inputs == (1.0, 1)
    assert list(invalid) == [2]
    assert invalid[2].startswith("input 'a': expected a number")
    with pytest.raises(MissingColumnError, match="'y'"):
        read_rows("feature", inputs, {"a": "x", "b": "y"}, {"x": [1.0]}, KEYS)


def test_equal_rows_are_equal_however_they_are_typed():
    item = IdSequence(name="history", vocabulary="items", max_length=9)
    rows, _ = read_rows(
        "f", [item], {"history": "c"}, {"c": [["i1", "i2"], np.array(["i1", "i2"]), ["i2", "i1"]]}, KEYS
    )
    assert rows[0] == rows[1] != rows[2]
    assert len({*rows}) == 2
    one = np.zeros(2, dtype=np.float32)
    keys = [Row((1, "a")), Row(("1", "a")), Row((1, b"a")), Row((1, "a", "")), Row((one,)), Row((one.reshape(1, 2),))]
    assert len({*keys}) == len(keys)  # nothing that differs is taken for equal


def test_lengths_are_padded_by_the_row_alone_and_batches_have_one_shape():
    inputs = (
        IdSequence(name="history", vocabulary="items", max_length=20),
        VectorSequence(name="reviews", dims=2, max_length=3),
    )
    made = [
        {"history": np.arange(1, n + 1), "reviews": np.ones((m, 2), np.float32), "reviews_mask": np.ones(m, np.int64)}
        for n, m in [(1, 1), (8, 3), (9, 1), (20, 2), (17, 1), (3, 2)]
    ]
    assert [padded_lengths(inputs, row) for row in made] == [(8, 3), (8, 3), (16, 3), (20, 3), (20, 3), (8, 3)]
    plan = plan_rows(inputs, made, budget=23)
    assert sorted(number for _, batch in plan for number in batch) == list(range(6))
    assert [lengths for lengths, _ in plan] == sorted((lengths for lengths, _ in plan), reverse=True)
    assert all(len(batch) * work_of(inputs, lengths) <= 23 or len(batch) == 1 for lengths, batch in plan)
    batch = collate(inputs, made[:2], (8, 3))
    assert {name: array.shape for name, array in batch.items()} == {
        "history": (2, 8), "reviews": (2, 3, 2), "reviews_mask": (2, 3),
    }  # fmt: skip
    assert batch["history"][0].tolist() == [1, *[0] * 7]
    assert batch["reviews_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["reviews"][0, 1:].tolist() == [[0, 0]] * 2
    assert graph_names(inputs) == tuple(batch)


def test_inputs_travel_as_json():
    inputs = [
        Id(name="a", vocabulary="v"),
        IdSequence(name="b", vocabulary="v", max_length=3),
        Number(name="c"),
        Vector(name="d", dims=2),
        VectorSequence(name="e", dims=2, max_length=3),
        Tokens(name="f", max_tokens=4),
        Image(name="g", size=8, mean=HALF, std=HALF),
    ]
    assert [input_from_spec(to_spec(item)) for item in inputs] == inputs
    with pytest.raises(DeclarationError, match="kind"):
        input_from_spec({"kind": "sound", "name": "a"})
    with pytest.raises(DeclarationError, match="positive"):
        Vector(name="a", dims=0)
    with pytest.raises(DeclarationError, match="std must be three numbers"):
        Image(name="a", size=8, mean=HALF, std=(0.5, 0.0, 0.5))
    with pytest.raises(DeclarationError, match="expected a name"):
        Number(name="a b")


class TestPictures:
    """What Pillow reads, and what must not be read."""

    item = Image(name="picture", size=8, mean=(0.0, 0.5, 0.0), std=(1.0, 0.5, 1.0))

    @pytest.fixture(autouse=True)
    def pillow(self):
        return pytest.importorskip("PIL.Image", reason="needs the extra 'images'")

    def saved(self, picture, kind="PNG", **options):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        return stream.getvalue()

    @pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
    def test_of_every_mode_a_plain_color_stays(self, pillow, mode):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        color = (255, 255, 255) if mode in ("P", "1", "L") else (255, 0, 0)
        picture = pillow.new("RGB", (20, 12), color).convert(mode)
        pixels = self.item.pixels(self.saved(picture, kind))
        assert (pixels.shape, pixels.dtype) == ((3, 8, 8), np.float32)
        expected = np.asarray(picture.convert("RGB"))[0, 0] / 255
        assert pixels[0] == pytest.approx(expected[0], abs=0.02)
        assert pixels[1] == pytest.approx((expected[1] - 0.5) / 0.5, abs=0.04)

    def test_the_middle_is_taken_and_what_is_transparent_is_white(self, pillow):
        picture = pillow.new("RGBA", (30, 10), (0, 0, 0, 0))
        picture.paste((0, 0, 255, 255), (10, 0, 20, 10))
        blue = Image(name="p", size=10, mean=(0, 0, 0), std=(1, 1, 1)).pixels(self.saved(picture))
        assert blue[:, 5, 5].tolist() == [0, 0, 1]
        assert blue[0].max() == 0
        edge = Image(name="p", size=10, mean=(0, 0, 0), std=(1, 1, 1)).pixels(self.saved(picture.crop((0, 0, 10, 10))))
        assert edge.min() == 1

    @pytest.mark.parametrize("side", [9_000, 60_000])  # the second is too much for Pillow, too
    def test_a_bomb_is_refused_before_it_is_decoded(self, side):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        with pytest.raises(InputError, match="pixels"):
            self.item.pixels(bomb)
        with pytest.raises(InputError, match="at most 32 MiB"):
            self.item.pixels(b"\0" * (2**25 + 1))

    def test_a_thin_picture_stays_small(self, pillow):
        assert self.item.pixels(self.saved(pillow.new("L", (30_000, 1)))).shape == (3, 8, 8)

    def test_damaged_and_foreign_files_make_their_rows_invalid(self, pillow):
        whole = self.saved(pillow.effect_noise((64, 64), 50), "JPEG")
        gif = self.saved(pillow.new("L", (4, 4)), "GIF")
        cells = [whole, whole[: len(whole) // 2], whole[:20], b"no picture", gif, whole[::-1], b"\x89PNG\r\n\x1a\n"]
        rows = [row for row in read_rows("f", [self.item], {"picture": "c"}, {"c": cells}, {}).rows if row is not None]
        made = Preparer((self.item,)).arrays(rows)
        assert isinstance(made[0], dict)
        assert all(
            isinstance(reason, str) and "input 'picture': expected a PNG or JPEG" in reason for reason in made[1:]
        )

    def test_cells_that_are_no_bytes(self):
        assert read(self.item, [None, b"", float("nan")]) == [None] * 3
        assert read(self.item, [base64.b64encode(b"abc").decode()]) == [b"abc"]
        for cell in ("not base64", 3, [1, 2]):
            assert "expected" in read(self.item, [cell])[0]
