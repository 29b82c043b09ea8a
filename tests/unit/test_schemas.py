"""JSON Schema, as far as outputs need it."""

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
        (False, [], [None, 1]),
        ({"type": "integer"}, [1, 1.0, -3], [1.5, True, "1", None]),
        ({"type": "number"}, [1, 1.5], [True, "1"]),
        ({"type": ["string", "null"]}, ["a", None], [1, []]),
        ({"enum": ["a", 1, None]}, ["a", 1, 1.0, None], [True, "b", []]),
        ({"const": [1, {"a": 2}]}, [[1, {"a": 2}], [1.0, {"a": 2}]], [[True, {"a": 2}], [1]]),
        ({"minimum": 1, "exclusiveMaximum": 3}, [1, 2.9, "x"], [0, 3]),
        ({"multipleOf": 0.1}, [0.3, 2], [0.25]),
        ({"minLength": 1, "maxLength": 2}, ["a", "ab", 5], ["", "abc"]),
        ({"pattern": "^a"}, ["ab"], ["ba"]),
        ({"items": {"type": "string"}, "minItems": 1, "uniqueItems": True}, [["a"], ["a", "b"]], [[], [1], ["a", "a"]]),
        ({"prefixItems": [{"type": "string"}], "items": False}, [["a"], []], [[1], ["a", "b"]]),
        (
            {"required": ["a"], "properties": {"a": {"type": "null"}}},
            [{"a": None}, {"a": None, "b": 1}],
            [{}, {"a": 1}],
        ),
        ({"additionalProperties": {"type": "integer"}, "maxProperties": 1}, [{"a": 1}], [{"a": "x"}, {"a": 1, "b": 2}]),
        ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["a", 6], [4]),
        ({"oneOf": [{"type": "integer"}, {"minimum": 5}]}, [1, 5.5], [6, 1.5]),
        ({"allOf": [{"minimum": 1}, {"maximum": 2}]}, [1, 2], [0, 3]),
        ({"not": {"type": "string"}}, [1], ["a"]),
        (TREE, [{}, {"next": {"next": {}}}], [{"next": 1}, {"prev": {}}]),
    ],
)
def test_a_value_fits_or_it_is_said_where_not(schema, fitting, others):
    check_schema("json", schema)
    for value in fitting:
        assert misfit(value, schema) == ""
    for value in others:
        assert misfit(value, schema).startswith("$")


def test_the_place_in_the_value_is_named():
    schema = {"properties": {"a": {"items": {"type": "string"}}}}
    assert misfit({"a": ["x", 3]}, schema) == "$.a[1]: expected string, got 3"


def test_a_reference_to_itself_ends():
    assert "nested deeper" in misfit(1, {"$ref": "#"})


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "text"}, "schema at #: type must be of null, boolean"),
        ({"properties": {"a": {"type": 3}}}, "schema at #/properties/a: type must be"),
        ({"properties": {"a": 3}}, "schema at #/properties/a: expected a mapping, got 3"),
        ({"properties": []}, "properties must map names to schemas"),
        ({"anyOf": []}, "anyOf must be a list of schemas"),
        ({"enum": []}, "enum must be a list of values"),
        ({"minLength": -1}, "minLength must be an integer of at least 0"),
        ({"minimum": "1"}, "minimum must be a number"),
        ({"multipleOf": 0}, "multipleOf must be a number"),
        ({"required": "a"}, "required must be a list of names"),
        ({"uniqueItems": 1}, "uniqueItems must be true or false"),
        ({"pattern": "("}, "pattern must be a regular expression"),
        ({"pattern": 3}, "pattern must be a regular expression"),
        ({"$ref": "http://example.com/x"}, r"\$ref must name a part of this schema"),
        ({"$ref": "#/$defs/none"}, r"\$ref must name a part of this schema"),
        ({"patternProperties": {}}, "'patternProperties' is not understood here"),
    ],
)
def test_a_schema_that_is_not_understood_is_refused_with_its_place(schema, message):
    with pytest.raises(DeclarationError, match=message):
        Json(schema=schema)


def test_a_schema_nested_without_end_is_refused():
    schema = {}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(DeclarationError, match="nested deeper than 64 levels"):
        Json(schema=schema)
