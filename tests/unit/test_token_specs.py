"""Declarations of features that a model writes."""

import json

import pytest
from samples import PROMPT, labelled, written

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs import (
    Choice,
    Decoding,
    EmbeddingFeature,
    GeneratedEmbeddingFeature,
    Json,
    Prompt,
    Scores,
    ShortText,
    Slot,
    Tags,
    from_spec,
    to_spec,
)

OUTPUTS = [
    Tags(vocabulary=("red", "blue"), ids=True),
    Choice(options=("yes", "no")),
    ShortText(prefix="[short]", stop=("\n", ".")),
    Json(schema={"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}),
    Scores(answers=(" yes", " no"), of=" yes"),
]


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda output: output.kind)
def test_a_declaration_survives_json(output):
    feature = written(output=output, decoding=Decoding(method="sample", top_p=0.9), columns_of={"title": "headline"})
    assert from_spec(json.loads(json.dumps(to_spec(feature)))) == feature
    assert feature.columns == ("headline",)


def test_a_generated_embedding_survives_json():
    feature = generated(of=written(output=OUTPUTS[0], fallback=["red"]))
    again = from_spec(json.loads(json.dumps(to_spec(feature))))
    assert again == feature
    assert again.columns == ("title",)


def generated(**changes):
    encoder = {"pooling": "mean", "normalize": True, "prefix": "", "metric": "cosine", "max_tokens": 16, "dims": 8}
    start = {"name": "item_summary_embedding", "entity": "item", "model": "tiny", "of": written(), **encoder}
    return GeneratedEmbeddingFeature(**start | changes)


CHANGES = {
    "prompt": {"prompt": Prompt(name="shorten", version=2, user=PROMPT.user, slots=PROMPT.slots)},
    "slot": {"prompt": Prompt(name="shorten", version=1, user=PROMPT.user, slots=(Slot(name="title", max_tokens=9),))},
    "output": {"output": ShortText(max_chars=20)},
    "decoding": {"decoding": Decoding(max_new_tokens=9)},
    "fallback": {"fallback": "none"},
    "column": {"columns_of": {"title": "headline"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_value_changes_the_fingerprint(change):
    assert written(**CHANGES[change]).fingerprint("a") != written().fingerprint("a")
    assert written().fingerprint("b") != written().fingerprint("a")


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"entity": None}, {"description": "x"}, {"status": True}, {"deadline_ms": 5}]
)
def test_what_changes_no_value_leaves_the_fingerprint(change):
    assert written(**change).fingerprint("a") == written().fingerprint("a")


def test_values_are_shared_by_features_that_generate_alike():
    one, other = written(), written(columns_of={"title": "headline"}, fallback="none", name="other")
    assert one.generation_fingerprint("a") == other.generation_fingerprint("a")
    assert one.generation_fingerprint("a") != written(decoding=Decoding(seed=1)).generation_fingerprint("a")


def test_a_schema_is_one_declaration_however_it_is_written():
    schema = {"type": "array", "items": {"type": "string"}}
    assert Json(schema=schema) == Json(schema=json.dumps(schema, indent=2))


BAD = {
    "no prompt": (lambda: written(prompt=None), "either prompt or text"),
    "both": (lambda: written(text="{title}", prompt=PROMPT), "either prompt or text"),
    "beam without beams": (lambda: Decoding(method="beam"), "beams of 2 or more"),
    "temperature of greedy": (lambda: Decoding(temperature=0.5), "need method='sample'"),
    "one option": (lambda: Choice(options=("yes",)), "2 or more"),
    "repeated tag": (lambda: Tags(vocabulary=("red", "red")), "distinct"),
    "score": (lambda: Tags(min_score=2), "in \\[0, 1\\]"),
    "schema": (lambda: Json(schema="[1]"), "a schema is a mapping"),
    "answer": (lambda: Scores(answers=("yes", "no"), of="maybe"), "of must be one of"),
    "fallback of tags": (lambda: written(output=OUTPUTS[0], fallback=["green"]), "tags of the vocabulary"),
    "fallback of a choice": (lambda: written(output=OUTPUTS[1], fallback="maybe"), "one of"),
    "fallback of a score": (lambda: written(output=OUTPUTS[4], fallback="0.5"), "a number"),
    "unknown slot": (lambda: written(columns_of={"name": "headline"}), "expected slots of the prompt"),
    "slot undeclared": (lambda: Prompt(name="p", version=1, user="{{title}}"), "each slot declared once and used"),
    "slot in system": (
        lambda: Prompt(name="p", version=1, user=PROMPT.user, slots=PROMPT.slots, system="{{title}}"),
        "data",
    ),
    "vector of numbers": (lambda: generated(of=written(output=OUTPUTS[4])), "must write a text"),
    "vector of a vector": (lambda: generated(of="item_title_summary"), "must be a TokenFeature"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_declaration_says_what_was_expected(name):
    declare, expected = BAD[name]
    with pytest.raises(DeclarationError, match=expected):
        declare()


def test_a_newer_field_is_a_clear_error():
    spec = to_spec(labelled())
    spec["output"]["weights"] = 1
    with pytest.raises(DeclarationError, match="output does not fit Tags"):
        from_spec(spec)


def test_embeddings_keep_their_fingerprints():
    """Stored vectors of earlier versions stay valid."""
    feature = EmbeddingFeature(
        name="item_title_embedding", entity="item", model="tiny", text="{title}", pooling="mean", normalize=True,
        prefix="", metric="cosine", max_tokens=16, dims=8,
    )  # fmt: skip
    assert feature.fingerprint("a" * 64)[:16] == "590217bd40b1f65e"
