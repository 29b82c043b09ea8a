"""JSON Schema of outputs."""

import sys

import pytest

from llmrec_plugin import Json
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs.schemas import check_schema, misfit

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    },
}


@pytest.mark.parametrize(
    ("schema", "fitting", "others"),
    [
        ({}, [None, 1, "a", [], {}], []),
        ({"type": "integer"}, [1, 1.0, -3], [1.5, True, "1", None]),
        ({"enum": ["a", 1, None]}, ["a", 1, None], [True, "b", []]),
        ({"items": {"type": "string"}, "minItems": 1, "uniqueItems": True}, [["a"], ["a", "b"]], [[], [1], ["a", "a"]]),
        ({"required": ["a"], "properties": {"a": {"type": "null"}}}, [{"a": None}], [{}, {"a": 1}]),
        (TREE, [{}, {"next": {"next": {}}}], [{"next": 1}, {"prev": {}}]),
    ],
)
def test_a_value_fits_or_it_is_said_where_not(schema, fitting, others):
    check_schema("json", schema)
    for value in fitting:
        assert misfit(value, schema) == ""
    for value in others:
        assert misfit(value, schema).startswith("$")


def test_the_place_in_the_value_is_named(monkeypatch):
    schema = {"properties": {"a": {"items": {"type": "string"}}}}
    assert misfit({"a": ["x", 3]}, schema) == "$.a[1]: does not fit 'type'"  # the value may be somebody's
    monkeypatch.setenv("LLMREC_LOG_TEXTS", "1")
    assert misfit({"a": ["x", 3]}, schema) == "$.a[1]: 3 is not of type 'string'"


def test_a_reference_to_itself_ends():
    assert "nested too deep" in misfit(1, {"$ref": "#"})


def test_a_value_nested_without_end_is_a_misfit():
    value = []
    for _ in range(sys.getrecursionlimit()):
        value = [value]
    assert "nested too deep" in misfit(value, {"items": {"$ref": "#"}})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "text"}, r"schema at \$.type: 'text'"),
        ({"properties": {"a": {"type": 3}}}, r"schema at \$.properties.a.type: 3"),
        ({"minLength": -1}, "schema at"),
        ({"$ref": "http://example.com/x"}, r"\$ref must name a part of this schema"),
    ],
)
def test_a_wrong_schema_is_refused_with_its_place(schema, message):
    with pytest.raises(DeclarationError, match=message):
        Json(schema=schema)
