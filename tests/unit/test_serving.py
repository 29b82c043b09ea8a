"""What the feature server answers, as a matrix; and what is refused."""

import base64
import dataclasses
import json

import numpy as np
import pytest

from llmrec_plugin import serving
from llmrec_plugin.errors import FetchError, FingerprintMismatchError, InputError
from llmrec_plugin.pipeline.packing import pack
from llmrec_plugin.serving import Column, Layout

VECTORS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
LAYOUT = Layout(
    columns=(
        Column(name="price"),
        Column(name="title", dims=4, storage="int8", status="title_status", fingerprint="f", view="title", version=2),
        Column(name="note", dims=4, storage="list"),
    ),
    others=("section",),
    features=("stats:price", "title:title"),
)


def answer(**columns):
    """A server's answer: column -> values, or values and statuses."""
    answer = {
        "metadata": {"feature_names": list(columns), "feature_view_metadata": [{"name": "title", "version": 2}]},
        "results": [],
    }
    for values in columns.values():
        values, statuses = values if isinstance(values, tuple) else (values, ["PRESENT"] * len(values))
        answer["results"].append({"values": values, "statuses": statuses, "event_timestamps": []})
    return answer


def decode(answer, layout=LAYOUT, rows=3):
    return serving.decode_body(layout, rows, json.dumps(answer).encode())


def encoded(vectors, storage):
    return [base64.b64encode(value).decode() for value in pack(vectors, storage)]


def complete(**changes):
    columns = {
        "item": ["i0", "i1", "i2"],  # Feast repeats the keys, and has an order of its own
        "section": ["net", None, "mail"],
        "note": VECTORS.tolist(),
        "title_status": ["ok", "fallback", "ok"],
        "title": encoded(VECTORS, "int8"),
        "price": [1, 2.5, True],
    }
    return answer(**{**columns, **changes})


def test_columns_lie_side_by_side_in_the_order_of_the_layout():
    fetched = decode(complete())
    assert LAYOUT.slices == {"price": slice(0, 1), "title": slice(1, 5), "note": slice(5, 9)}
    assert LAYOUT.dims == 9
    assert (fetched.matrix.shape, fetched.matrix.dtype) == ((3, 9), np.float32)
    assert fetched.matrix.flags.c_contiguous
    np.testing.assert_array_equal(fetched.matrix[:, 0], [1, 2.5, 1])
    np.testing.assert_allclose(fetched.matrix[:, 1:5], VECTORS, atol=0.51 / 127 * np.abs(VECTORS).max())
    np.testing.assert_array_equal(fetched.matrix[:, 5:], VECTORS)
    assert fetched.present.all()
    assert fetched.status.tolist() == [["ok", "ok", "ok"], ["ok", "fallback", "ok"], ["ok", "ok", "ok"]]
    assert fetched.others == {"section": ["net", None, "mail"]}


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_every_storage_is_unpacked(storage):
    layout = Layout(columns=(Column(name="title", dims=4, storage=storage),), features=("title:title",))
    matrix = decode(answer(title=encoded(VECTORS, storage)), layout).matrix
    expected = {"float32": VECTORS, "float16": VECTORS.astype(np.float16), "int8": matrix}[storage]
    np.testing.assert_array_equal(matrix, expected)
    np.testing.assert_allclose(matrix, VECTORS, atol=0.02)


def test_what_is_missing_is_nan_and_says_why():
    _, *packed = encoded(VECTORS, "int8")
    found = ["NOT_FOUND", "PRESENT", "PRESENT"]
    fetched = decode(
        complete(
            price=(["NaN", None, 3], ["PRESENT", "PRESENT", "PRESENT"]),
            title=([None, *packed], found),
            title_status=([None, "ok", "ok"], found),
            note=([None, [], [1, 2, 3, 4]], found),
        )
    )
    assert fetched.present.tolist() == [[False, False, False], [False, True, False], [True, True, True]]
    assert fetched.status.tolist() == [["null", "not_found", "not_found"], ["null", "ok", "null"], ["ok"] * 3]
    np.testing.assert_array_equal(np.isnan(fetched.matrix), np.repeat(~fetched.present, [1, 4, 4], axis=1))


def test_no_rows_need_no_answer():
    fetched = serving.fetch_http("http://127.0.0.1:9", LAYOUT, {"item": []})
    assert fetched.matrix.shape == (0, 9)
    assert fetched.present.shape == fetched.status.shape == (0, 3)
    assert fetched.others == {"section": []}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"title": encoded(VECTORS[:, :3], "int8")}, FingerprintMismatchError, "'title' has 7 bytes, expected 8"),
        ({"note": [[1.0] * 5] * 3}, FingerprintMismatchError, "'note' has 20 bytes, expected 16"),
        ({"note": [[1.0] * 4, [1.0] * 5, None]}, FingerprintMismatchError, "'note' has 20 bytes"),
        ({"note": encoded(VECTORS, "float32")}, FetchError, "'note': expected a list, got str"),
        ({"title": VECTORS.tolist()}, FetchError, "'title': expected bytes in base64, got list"),
    ],
    ids=["packed", "list", "one of a list", "list now packed", "packed now a list"],
)
def test_vectors_of_another_declaration_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        decode(complete(**changes))


def test_another_version_of_a_view_is_refused():
    other = complete()
    other["metadata"]["feature_view_metadata"][0]["version"] = 3
    with pytest.raises(FingerprintMismatchError, match="The declaration of 'title' changed"):
        decode(other)


def test_an_answer_without_a_feature_is_refused():
    layout = dataclasses.replace(LAYOUT, others=("section", "maker"))
    with pytest.raises(FetchError, match=r"stats:price, title:title lacks 'maker', it has 'item', 'section'"):
        decode(complete(), layout)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b"{}"])
def test_what_is_no_answer_of_a_feature_server_is_refused(body):
    with pytest.raises(FetchError, match="Check the URL"):
        serving.decode_body(LAYOUT, 3, body)


@pytest.mark.parametrize("entities", [{}, {"item": ["i0"], "query": []}])
def test_entities_of_different_lengths_are_refused(entities):
    with pytest.raises(InputError, match="as many values each"):
        serving.fetch_http("http://127.0.0.1:9", LAYOUT, entities)


def test_numpy_values_become_json():
    columns, rows = serving.request_columns({"item": np.array([1, 2]), "name": np.array(["a", "b"])})
    assert rows == 2
    body = json.loads(json.dumps(serving.request_body(LAYOUT, columns)))
    assert body["entities"] == {"item": [1, 2], "name": ["a", "b"]}
    assert body["features"] == ["stats:price", "title:title"]
    assert "feature_service" not in body
    assert serving.request_body(dataclasses.replace(LAYOUT, service="pairs"), {})["feature_service"] == "pairs"


def test_a_layout_travels_as_json():
    assert Layout.from_json(LAYOUT.to_json()) == LAYOUT


def test_other_fingerprints_are_refused_whatever_else_changed():
    title = dataclasses.replace(LAYOUT.columns[1], version=7)
    now = dataclasses.replace(LAYOUT, columns=(title, LAYOUT.columns[0], LAYOUT.columns[2]))
    serving.refuse_other_fingerprints(LAYOUT, now)
    title = dataclasses.replace(title, fingerprint="g")
    with pytest.raises(FingerprintMismatchError, match="'title'"):
        serving.refuse_other_fingerprints(LAYOUT, dataclasses.replace(now, columns=(title, *LAYOUT.columns[2:])))
    with pytest.raises(FingerprintMismatchError, match="'title'"):
        serving.refuse_other_fingerprints(LAYOUT, dataclasses.replace(now, columns=LAYOUT.columns[2:]))
