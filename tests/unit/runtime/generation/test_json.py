"""JSON of a schema, kept by llguidance."""

import json
import sys

import pytest
from generating import manifest, request, tokenizer_text

from llmrec_plugin.errors import DeclarationError, MissingExtraError
from llmrec_plugin.runtime.generation.constraints import constraint_of
from llmrec_plugin.runtime.generation.prompts import PromptTokenizer
from llmrec_plugin.specs import Decoding, Json

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["web", "game", "tool"]},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["kind", "tags"],
    "additionalProperties": False,
}


def test_without_llguidance_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"llmrec-plugin\[constrained\]"):
        constraint_of(Json(schema=SCHEMA), manifest(), PromptTokenizer(tokenizer_text()), tokenizer_text)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=60),
        Decoding(method="sample", temperature=3.0, max_new_tokens=60),
        Decoding(method="beam", beams=2, max_new_tokens=60),
    ],
    ids=["greedy", "sample", "beam"],
)
def test_a_model_that_knows_nothing_writes_json_of_the_schema(generators, decoding):
    pytest.importorskip("llguidance", reason="the constrained extra is not installed")
    asked = [request(text, seed=i) for i, text in enumerate(("web", "red blue", "a game engine", "java"))]
    found = generators.open("llama").generate(asked, decoding, Json(schema=SCHEMA))
    for one in found:
        value = json.loads(one.text)
        assert value["kind"] in ("web", "game", "tool")
        assert 1 <= len(value["tags"]) <= 2
        assert set(value["tags"]) <= {"red", "blue"}
        assert one.finish == "stop"


def test_a_schema_that_cannot_be_followed_is_refused():
    pytest.importorskip("llguidance", reason="the constrained extra is not installed")
    schema = Json(schema={"type": "object", "unevaluatedProperties": {"not": {}}, "$ref": "#/nowhere"})
    with pytest.raises(DeclarationError, match="schema"):
        constraint_of(schema, manifest(), PromptTokenizer(tokenizer_text()), tokenizer_text)


OPEN_ENDED = {
    "type": "object",
    "properties": {"words": {"type": "array", "items": {"type": "string"}}, "note": {"type": "string"}},
    "required": ["words", "note"],
}


@pytest.mark.parametrize("room", [40, 45, 60])
@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_values_without_bounds_are_closed_before_the_room_ends(generators, method, room):
    pytest.importorskip("llguidance", reason="the constrained extra is not installed")
    beams = 2 if method == "beam" else 1
    decoding = Decoding(method=method, temperature=2.0 if method == "sample" else 1.0, beams=beams, max_new_tokens=room)
    asked = [request(text, seed=i) for i, text in enumerate(("web", "red blue", "a game engine", "java"))]
    for one in generators.open("llama").generate(asked, decoding, Json(schema=OPEN_ENDED)):
        assert set(json.loads(one.text)) == {"words", "note"}
        assert one.finish == "stop"


def test_without_room_for_any_value_the_output_is_cut(generators):
    pytest.importorskip("llguidance", reason="the constrained extra is not installed")
    [one] = generators.open("llama").generate([request("web")], Decoding(max_new_tokens=4), Json(schema=OPEN_ENDED))
    assert one.finish == "length"
