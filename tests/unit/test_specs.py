"""Declarations: what they refuse, how they travel, what their fingerprints cover."""

import json
import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import embedding, history, match, model

from llmrec_plugin import specs
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs import (
    EmbeddingFeature,
    HistoryEmbeddingFeature,
    Redaction,
    from_spec,
    template_columns,
    to_spec,
)

ARTIFACT = "a" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(make, changes, *parts):
    with pytest.raises(DeclarationError) as caught:
        make(**changes)
    for part in parts:
        assert part in str(caught.value)


ENCODED = [
    ({"name": "Item"}, "lower-case letters", "'Item'"),
    ({"name": "1item"}, "starting with a letter", "'1item'"),
    ({"name": "item__title"}, "single underscores", "'item__title'"),
    ({"name": "item\n"}, "lower-case letters", r"'item\n'"),
    ({"name": None}, "lower-case letters", "None"),
    ({"entity": ""}, "entity must be a Feast entity's name or None", "got ''"),
    ({"entity": 3}, "entity must be", "got 3"),
    ({"model": ""}, "model must be the name", "got ''"),
    ({"model": None}, "model must be the name", "got None"),
    ({"prefix": None}, "prefix must be a string", "got None"),
    ({"prefix": "q\ud800"}, "prefix holds a lone surrogate", r"'q\ud800'"),
    ({"pooling": "average"}, "pooling must be one of 'mean', 'cls', 'last_token', 'max'", "got 'average'"),
    ({"metric": "l2"}, "metric must be one of 'cosine', 'dot', 'euclidean'", "got 'l2'"),
    ({"normalize": 1}, "normalize must be True or False", "got 1"),
    ({"normalize": "yes"}, "normalize must be True or False", "got 'yes'"),
    ({"reduction": "pca"}, "reduction must be one of None, 'prefix'", "got 'pca'"),
    ({"on_empty": "error"}, "on_empty must be one of 'null', 'zeros'", "got 'error'"),
    *(
        ({field: value}, f"{field} must be a positive integer", f"got {value!r}")
        for field in ("max_tokens", "dims", "max_chars")
        for value in (0, -1, 2.0, "2", True, None)
    ),
]


@pytest.mark.parametrize("make", [embedding, history])
@pytest.mark.parametrize(("changes", "expected", "got"), ENCODED)
def test_an_embedding_that_means_nothing_is_refused(make, changes, expected, got):
    refused(make, changes, expected, got)


@pytest.mark.parametrize("changes", [changes for changes, _, _ in ENCODED if "name" not in changes])
def test_a_refusal_names_the_feature(changes):
    refused(embedding, changes, "feature 'item_title_embedding'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "reads no column"),
        ("no column", "reads no column"),
        ("{{title}}", "reads no column"),
        ("{title", "malformed"),
        ("title}", "malformed"),
        ("{}", "only plain columns"),
        ("{0}", "only plain columns"),
        ("{title.upper}", "{title.upper}"),
        ("{title[0]}", "{title[0]}"),
        ("{title!r}", "{title!r}"),
        ("{title:>9}", "{title:>9}"),
        (None, "text must be a string"),
    ],
)
def test_a_template_with_anything_but_plain_columns_is_refused(text, expected):
    refused(embedding, {"text": text}, "feature 'item_title_embedding'", expected)


def test_template_columns_come_once_each_in_order_of_appearance():
    assert template_columns("{b} {a} {{c}} {b}") == ("b", "a")
    assert embedding(text="{b}: {a}").columns == ("b", "a")


@pytest.mark.parametrize(
    ("changes", "expected", "got"),
    [
        ({"events": "two words"}, "events must be a column name", "got 'two words'"),
        ({"events": None}, "events must be a column name", "got None"),
        ({"order": "random"}, "order must be one of 'newest_first', 'oldest_first'", "got 'random'"),
        ({"combine": "max"}, "combine must be one of 'mean', 'concat'", "got 'max'"),
        ({"last_n": 0}, "last_n must be a positive integer", "got 0"),
        ({"separator": None}, "separator must be a string", "got None"),
        ({"half_life": 0}, "half_life must be a positive number", "half_life=0"),
        ({"half_life": float("nan")}, "half_life must be a positive number", "half_life=nan"),
        ({"half_life": "3"}, "half_life must be a positive number", "half_life='3'"),
        ({"half_life": 3.0, "combine": "concat"}, "needs combine='mean'", "combine='concat'"),
    ],
)
def test_a_history_that_means_nothing_is_refused(changes, expected, got):
    refused(history, changes, "feature 'user_history_embedding'", expected, got)


def test_a_history_reads_its_events_column():
    assert history(events="titles").columns == ("titles",)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "Query"}, "lower-case letters"),
        ({"metric": "l2"}, "metric must be one of 'cosine', 'dot', 'euclidean', got 'l2'"),
        ({"left": ""}, "left must be the name"),
        ({"right": None}, "right must be the name"),
        ({"left": "same", "right": "same"}, "left and right are both 'same'"),
    ],
)
def test_a_similarity_that_means_nothing_is_refused(changes, expected):
    refused(match, changes, expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "-x"}, "expected letters, digits"),
        ({"name": "../x"}, "expected letters, digits"),
        ({"name": None}, "expected letters, digits"),
        ({"source": "weights"}, "must start with 'package:', 'path:' or 'hub:', got 'weights'"),
        ({"source": "path:"}, "must start with"),
        ({"source": None}, "source must be a string, got None"),
        ({"source": "hub:org/name"}, "must pin a full commit"),
        ({"source": "hub:org/name@main"}, "must pin a full commit"),
        ({"source": f"hub:org/name@{COMMIT[:-1]}"}, "must pin a full commit"),
        ({"pooling": "sum"}, "pooling must be one of"),
        ({"metric": "l2"}, "metric must be one of"),
        ({"padding_side": "both"}, "padding_side must be one of 'right', 'left', got 'both'"),
        ({"normalize": 0}, "normalize must be True or False, got 0"),
        ({"dims": 0}, "dims must be a positive integer, got 0"),
        ({"max_tokens": "256"}, "max_tokens must be a positive integer, got '256'"),
        ({"tolerance": 0}, "tolerance must be in (0, 0.01], got 0"),
        ({"tolerance": 0.1}, "tolerance must be in (0, 0.01], got 0.1"),
        ({"tolerance": "1e-5"}, "tolerance must be in (0, 0.01], got '1e-5'"),
        ({"precision": "int4"}, "precision must be one of 'fp32', 'int8', 'fp16', 'bf16', got 'int4'"),
        ({"rotation": "random"}, "rotation must be one of None, 'pca', got 'random'"),
        ({"layers": ()}, "layers must be increasing indices from 0, e.g. (0, 2, 4), or None for all; got ()"),
        ({"layers": (2, 0)}, "layers must be increasing indices"),
        ({"layers": (0, 0)}, "layers must be increasing indices"),
        ({"layers": (-1, 0)}, "layers must be increasing indices"),
        ({"layers": (True,)}, "layers must be increasing indices"),
        ({"layers": 3}, "layers must be increasing indices"),
        ({"min_overlap": 1.5}, "min_overlap must be in [0, 1], got 1.5"),
        ({"min_overlap": "0.9"}, "min_overlap must be in [0, 1], got '0.9'"),
    ],
)
def test_a_model_that_means_nothing_is_refused(changes, expected):
    refused(model, changes, expected)


@pytest.mark.parametrize("source", ["package:module/folder", "path:/weights", f"hub:org/name@{COMMIT}"])
def test_a_model_may_come_from_a_package_a_folder_or_a_pinned_hub_commit(source):
    assert model(source=source).source == source


def test_layers_from_a_recipe_are_the_layers_of_a_declaration():
    assert model(layers=[0, 2]) == model(layers=(0, 2))


@pytest.mark.parametrize("make", [embedding, history, match, model])
def test_a_declaration_cannot_be_changed_and_can_be_a_key(make):
    declaration = make()
    with pytest.raises(FrozenInstanceError):
        declaration.name = "other"
    assert len({declaration, make()}) == 1


def test_declarations_take_keywords_only():
    with pytest.raises(TypeError, match="positional"):
        EmbeddingFeature("name")


# --- travelling

ENCODED_STRATEGY = {
    "name": st.from_regex(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", fullmatch=True),
    "entity": st.none() | st.text(min_size=1),
    "model": st.text(min_size=1),
    "pooling": st.sampled_from(["mean", "cls", "last_token", "max"]),
    "normalize": st.booleans(),
    "prefix": st.text(),
    "metric": st.sampled_from(["cosine", "dot", "euclidean"]),
    "max_tokens": st.integers(1),
    "dims": st.integers(1),
    "reduction": st.sampled_from([None, "prefix"]),
    "on_empty": st.sampled_from(["null", "zeros"]),
    "max_chars": st.integers(1),
    "storage": st.sampled_from(["list", "float32", "float16", "int8"]),
    "status": st.booleans(),
    "deadline_ms": st.none() | st.integers(1),
    "on_deadline": st.sampled_from(["null", "zeros"]),
    "description": st.text(),
}
LITERAL = st.text().map(lambda text: text.replace("{", "{{").replace("}", "}}"))
FEATURES = st.one_of(
    st.builds(EmbeddingFeature, text=st.tuples(LITERAL, LITERAL).map("{title}".join), **ENCODED_STRATEGY),
    st.builds(
        HistoryEmbeddingFeature,
        events=st.sampled_from(["events", "clicks"]),
        order=st.sampled_from(["newest_first", "oldest_first"]),
        last_n=st.integers(1),
        combine=st.just("mean"),
        half_life=st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        separator=st.text(),
        **ENCODED_STRATEGY,
    ),
)


@given(FEATURES)
def test_a_feature_is_the_same_after_travelling_as_json(feature):
    twin = from_spec(json.loads(json.dumps(to_spec(feature))))
    assert twin == feature
    assert type(twin) is type(feature)
    assert twin.fingerprint(ARTIFACT) == feature.fingerprint(ARTIFACT)


@pytest.mark.parametrize("make", [embedding, history, match])
def test_a_spec_tells_its_kind_and_reading_leaves_it_as_it_was(make):
    spec = to_spec(make())
    before = dict(spec)
    assert from_spec(spec) == make()
    assert spec == before
    assert spec["kind"] == make().kind


@pytest.mark.parametrize("kind", [None, "reranker"])
def test_a_spec_of_an_unknown_kind_asks_for_an_upgrade(kind):
    with pytest.raises(DeclarationError, match=rf"got {kind!r}.*upgrade"):
        from_spec({**to_spec(embedding()), "kind": kind})


@pytest.mark.parametrize("change", [{"instruction": "x"}, {"dims": ...}])
def test_a_spec_with_other_fields_asks_for_apply(change):
    spec = {**to_spec(embedding()), **change}
    spec = {key: value for key, value in spec.items() if value is not ...}
    with pytest.raises(DeclarationError, match=f"{next(iter(change))}.*feast apply"):
        from_spec(spec)


# --- fingerprints

LABELS = {
    "name": "other_name",
    "entity": "other",
    "description": "other",
    "model": "other",
    "status": True,
    "deadline_ms": 50,
    "on_deadline": "zeros",
}
NUMERIC = {
    "pooling": "cls",
    "normalize": False,
    "prefix": "query: ",
    "metric": "dot",
    "max_tokens": 15,
    "dims": 7,
    "reduction": "prefix",
    "on_empty": "zeros",
    "max_chars": 19_999,
    "storage": "int8",
    "redact": Redaction(email=True),
}
CASES = [
    (embedding, {**NUMERIC, "text": "{title}."}),
    (
        history,
        {
            **NUMERIC,
            "events": "x",
            "order": "oldest_first",
            "last_n": 2,
            "combine": "concat",
            "half_life": 1.0,
            "separator": " ",
        },
    ),
]
CHANGES = [(make, {field: value}) for make, changes in CASES for field, value in changes.items()]


@pytest.mark.parametrize(("make", "change"), CHANGES)
def test_a_fingerprint_changes_with_whatever_changes_the_numbers(make, change):
    assert make(**change).fingerprint(ARTIFACT) != make().fingerprint(ARTIFACT)


@pytest.mark.parametrize(("make", "changes"), CASES)
def test_every_field_is_known_to_change_the_numbers_or_not_to(make, changes):
    # A new field must be put into one of the two lists. Noise needs other fields, too: see test_noise.py.
    assert {field.name for field in fields(make())} == {*changes, *LABELS, "noise"}


@pytest.mark.parametrize("make", [embedding, history])
@pytest.mark.parametrize("field", LABELS)
def test_a_fingerprint_does_not_change_with_a_label(make, field):
    assert make(**{field: LABELS[field]}).fingerprint(ARTIFACT) == make().fingerprint(ARTIFACT)


@pytest.mark.parametrize("make", [embedding, history])
def test_a_fingerprint_changes_with_the_artifact_and_with_our_own_pipeline(make, monkeypatch):
    feature = make()
    before = feature.fingerprint(ARTIFACT), feature.encoding_fingerprint(ARTIFACT), feature.vector_space(ARTIFACT)
    other = feature.fingerprint("b" * 64), feature.encoding_fingerprint("b" * 64), feature.vector_space("b" * 64)
    monkeypatch.setattr(specs.embeddings, "PIPELINE_VERSION", specs.PIPELINE_VERSION + 1)
    later = feature.fingerprint(ARTIFACT), feature.encoding_fingerprint(ARTIFACT), feature.vector_space(ARTIFACT)
    assert len({*before, *other, *later}) == 9


def test_a_half_life_is_the_same_number_as_an_integer():
    assert history(half_life=2).fingerprint(ARTIFACT) == history(half_life=2.0).fingerprint(ARTIFACT)


def test_features_of_two_kinds_have_two_fingerprints():
    assert embedding().fingerprint(ARTIFACT) != history().fingerprint(ARTIFACT)


@pytest.mark.parametrize(
    "change", [{"prefix": "q: "}, {"normalize": False}, {"max_tokens": 9}, {"dims": 4}, {"reduction": "prefix"}]
)
def test_cached_vectors_are_kept_apart_by_what_maps_a_text_to_a_vector(change):
    assert embedding(**change).encoding_fingerprint(ARTIFACT) != embedding().encoding_fingerprint(ARTIFACT)


def test_cached_vectors_are_shared_by_features_that_encode_alike():
    first = embedding().encoding_fingerprint(ARTIFACT)
    assert embedding(text="{other}", on_empty="zeros", name="x").encoding_fingerprint(ARTIFACT) == first
    assert history(last_n=9).encoding_fingerprint(ARTIFACT) == first


def test_vectors_are_comparable_across_prefixes_and_lengths_but_not_across_scales():
    first = embedding().vector_space(ARTIFACT)
    assert embedding(prefix="query: ", max_tokens=9, text="{q}").vector_space(ARTIFACT) == first
    for change in ({"normalize": False}, {"dims": 4}, {"reduction": "prefix"}):
        assert embedding(**change).vector_space(ARTIFACT) != first


def test_a_similarity_fingerprint_changes_with_metric_and_sides():
    values = {match(metric=metric).fingerprint(*sides) for metric in ("cosine", "dot") for sides in ("ab", "ba", "aa")}
    assert len(values) == 6
    assert match(name="other_name", description="x").fingerprint("a", "b") == match().fingerprint("a", "b")


def test_fingerprints_are_those_of_the_stored_vectors():
    # Vectors are stored under these. When one must change, raise PIPELINE_VERSION and say so in the changelog.
    assert embedding().fingerprint(ARTIFACT) == "590217bd40b1f65e72c05f64a3f213b7d416b7f6b34118b99069e33c0e24b142"
    assert (
        history(half_life=2.0).fingerprint(ARTIFACT)
        == "94621df4da4fde2ce933ccbd7d0649507d511d36a0ec25f5ae4d58e3ccc9f466"
    )
    assert match().fingerprint("a" * 64, "b" * 64) == "55e4e5cd44a1348cfeabbaaeb3811090c37f73f6075c15add7ccab6fb729b131"
    assert (
        embedding().encoding_fingerprint(ARTIFACT) == "8d73a67c551a96bd85dee851e36b8a047568062a3c6f6a7ab9fd1435c65ed8ed"
    )


def test_a_digest_does_not_depend_on_the_order_of_keys_and_takes_any_text():
    assert specs.digest({"a": 1, "b": "é"}) == specs.digest({"b": "é", "a": 1})
    assert re.fullmatch("[0-9a-f]{64}", specs.digest("\ud800"))


def test_a_changed_declaration_is_checked_again():
    with pytest.raises(DeclarationError, match="dims"):
        replace(embedding(), dims=0)
