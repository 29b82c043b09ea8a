"""What a model wrote, as values."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_plugin import Choice, Json, Scores, ShortText, Tags
from llmrec_plugin.pipeline.outputs import InvalidOutput, columns_of_output, ids_of, parse
from llmrec_plugin.specs.schemas import misfit

TAGS = Tags(
    vocabulary=("action", "Sci-Fi", "C", "C#", "C++", ".NET", "rock, pop", "2. Bundesliga", "IT", "it"), max_items=3
)
CHOICE = Choice(options=("yes", "no", "not sure"))
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
JSON = Json(schema=SCHEMA)


# --- tags


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ('["action", "Sci-Fi"]', ("action", "Sci-Fi")),
        ('```json\n["action", "sci-fi"]\n```', ("action", "Sci-Fi")),
        ('{"tags": ["action"]}', ("action",)),
        ('["action", 3, null]', ("action",)),
        ("action, Sci-Fi", ("action", "Sci-Fi")),
        ("Action; SCI-FI.", ("action", "Sci-Fi")),
        ("Genres: action, sci-fi", ("action", "Sci-Fi")),
        ("- action\n- **Sci-Fi**\n", ("action", "Sci-Fi")),
        ("1. action\n2) 'sci-fi'\n", ("action", "Sci-Fi")),
        ("Here they are:\n• “action”\n", ("action",)),
        ("action, action, ACTION", ("action",)),
        ("action, comedy, Sci-Fi", ("action", "Sci-Fi")),
        ("C#, C++, C", ("C#", "C++", "C")),
        ("# C#\n", ("C#",)),
        (".NET.", (".NET",)),
        ("Rock, Pop, action", ("rock, pop", "action")),
        ("action, rock, pop", ("action", "rock, pop")),
        ("2. Bundesliga", ("2. Bundesliga",)),
        ("1. 2. Bundesliga", ("2. Bundesliga",)),
        ("IT, it", ("IT", "it")),
        ("[action, Sci-Fi]", ("action", "Sci-Fi")),
        ("C, C++, C#, .NET, action", ("C", "C++", "C#")),
        ("<think>action or C?</think>\nsci-fi", ("Sci-Fi",)),
        ("action、sci-fi", ("action", "Sci-Fi")),
    ],
)
def test_tags_are_read_however_they_are_written(text, tags):
    assert parse(TAGS, text) == tags


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing was written"),
        ("[]", "nothing was written"),
        ("comedy, drama", "no tag of the vocabulary, but e.g. <6 long"),
        ("I think that this is action", "no tag of the vocabulary"),
        ("It", "no tag of the vocabulary"),  # two tags differ in case alone
        ("<think>action", "did not end its thoughts"),
    ],
)
def test_tags_that_are_none_say_why(text, message):
    with pytest.raises(InvalidOutput, match=message):
        parse(TAGS, text)


def test_ids_are_positions_in_the_vocabulary():
    assert ids_of(TAGS, ("C", "action")) == (2, 0)


# --- choices


@pytest.mark.parametrize(
    "text",
    ["yes", "Yes.", ' "YES" ', "**yes**", "`yes`!", '"yes"', '{"choice": "yes"}', "yes\n", "Yes.\nIt is for children."],
)
def test_a_choice_is_read_without_what_stands_around_it(text):
    assert parse(CHOICE, text) == "yes"


@pytest.mark.parametrize("text", ["", "yes, it is", "yes no", "maybe\nyes", "maybe", '["yes", "no"]', "y", "yesterday"])
def test_what_is_no_option_is_invalid(text):
    with pytest.raises(InvalidOutput, match=r"expected one of 3 options|nothing was written"):
        parse(CHOICE, text)


# --- texts


@pytest.mark.parametrize(
    ("output", "text", "value"),
    [
        (ShortText(), "  A  quiet\tfilm. \nMore of it", "A quiet film."),
        (ShortText(), "\n\nA film\n", "A film"),
        (ShortText(), '"A film"', "A film"),
        (ShortText(), "“A film”", "A film"),
        (ShortText(), '"A" and "B"', '"A" and "B"'),
        (ShortText(stop=("###", "User:")), "A\nfilm ### x User:", "A film"),
        (ShortText(prefix="[newtitle]"), "Sure! [newtitle] A film", "A film"),
        (ShortText(max_chars=10), "one two three", "one two"),
        (ShortText(max_chars=7), "one two three", "one two"),
        (ShortText(max_chars=9), "one two, three", "one two"),
        (ShortText(max_chars=5), "abcdefgh", "abcde"),
        (ShortText(min_chars=0), "", ""),
        (ShortText(), "a b c d " * 3, "a b c d"),
        (ShortText(), "It is good. " + "I liked this film much. " * 9, "It is good. I liked this film much."),
        (ShortText(), "a b c d a b c d and so on", "a b c d a b c d and so on"),
        (ShortText(), "very very very good", "very very very good"),
        (ShortText(), "开头" + "这部电影非常好看我很喜欢这部" * 5, "开头这部电影非常好看我很喜欢这部"),
        (ShortText(), "a\x00b\ud800", "a b\ufffd"),
    ],
)
def test_a_text_is_one_line_without_its_marks_and_repetitions(output, text, value):
    assert parse(output, text) == value


@pytest.mark.parametrize(
    ("output", "text", "message"),
    [
        (ShortText(), "", "expected at least 1 characters"),
        (ShortText(min_chars=5), "abcd", "expected at least 5 characters, got <4 long"),
        (ShortText(prefix="[newtitle]"), "A film", r"expected the marker '\[newtitle\]', got <6 long"),
        (ShortText(), "no " * 20, "the same words over and over"),
        (ShortText(), "so good " * 20, "the same words over and over"),
        (ShortText(), "哈" * 60, "the same words over and over"),
    ],
)
def test_a_text_that_is_none_says_why(output, text, message):
    with pytest.raises(InvalidOutput, match=message):
        parse(output, text)


@given(st.integers(0, 6), st.integers(4, 40), st.integers(3, 6))
def test_a_passage_that_is_written_over_and_over_is_kept_once(before, length, times):
    start, passage = [f"s{i}" for i in range(before)], [f"p{i}" for i in range(length)]
    found = parse(ShortText(max_chars=100_000), " ".join([*start, *passage * times, "end"]))
    assert found == " ".join([*start, *passage])


# --- JSON


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "age": 3}',
        '```json\n{"age": 3, "name": "Ann"}\n```',
        'Sure, see [1]: {"name": "Ann", "age": 3}. Is {this} all?',
        '{"name": 1} {"name": "Ann", "age": 3}',
        '<think>{"name": "Bob"}</think>{"name":"Ann","age":3}',
    ],
)
def test_the_first_json_value_that_fits_is_taken_in_canonical_form(text):
    assert parse(JSON, text) == '{"age":3,"name":"Ann"}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing was written"),
        ("no JSON", "no JSON value, in <7 long"),
        ('{"name": "Ann"', "no JSON value"),
        ('{"age": 3}', r"\$: does not fit 'required'"),
        ('{"name": "Ann", "age": -1}', r"\$\.age: does not fit 'minimum'"),
        ('{"name": "Ann", "x": 1}', "does not fit 'additionalProperties'"),
        ('{"name": "\\ud800"}', "UnicodeEncodeError"),
        ('{"name": "Ann", "age": NaN}', "no JSON value"),
        ("[" * 100_000, "no JSON value"),
        ('{"name":' * 5_000, "no JSON value"),
        ('{"name": "Ann", "age": ' + "9" * 5_000 + "}", "no JSON value"),
    ],
)
def test_json_that_does_not_fit_says_why(text, message):
    with pytest.raises(InvalidOutput, match=message):
        parse(JSON, text)


def test_a_schema_may_ask_for_no_object():
    assert parse(Json(schema={"type": "integer"}), " 3 ") == "3"
    assert parse(Json(schema={"type": "array", "items": {"type": "string"}}), 'x ["a\nb"]') == '["a\\nb"]'


# --- whatever is written

WORDS = st.sampled_from(
    ["action", "sci-fi", "yes", "[newtitle]", "```", "{", "[", "]", "}", '"', ":", ",", "\n", "- ", "1. "]
)
ANYTHING = st.one_of(st.text(max_size=60), st.lists(st.one_of(WORDS, st.text(max_size=4)), max_size=20).map("".join))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "age", "tags"]), inner),
    max_leaves=8,
).map(json.dumps)
TEXT = ShortText(max_chars=12, min_chars=2, prefix="[newtitle]")


@given(st.one_of(ANYTHING, JSON_VALUES))
def test_any_text_gives_a_value_that_fits_or_is_invalid(text):
    for output in (TAGS, CHOICE, TEXT, ShortText(), JSON, Json(schema={}), Tags(), Scores(answers=("a", "b"))):
        try:
            value = parse(output, text)
        except InvalidOutput:
            continue
        if isinstance(output, Tags):
            assert 1 <= len(value) <= output.max_items
            assert len(set(value)) == len(value)
            assert set(value) <= set(output.vocabulary)
        elif isinstance(output, Choice):
            assert value in output.options
        elif isinstance(output, ShortText):
            assert output.min_chars <= len(value) <= output.max_chars
            assert value == " ".join(value.split())
            assert value.encode()
        else:
            loaded = json.loads(value)
            assert value == json.dumps(loaded, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            assert not misfit(loaded, json.loads(output.schema))


@given(
    st.lists(st.sampled_from(TAGS.vocabulary), min_size=1, max_size=3, unique=True),
    st.sampled_from([", ", "\n", "\n- "]),
)
def test_tags_come_back_from_what_they_were_written_as(tags, mark):
    assert parse(TAGS, mark.lstrip() + mark.join(tags)) == tuple(tags)
    assert parse(TAGS, json.dumps(tags)) == tuple(tags)


# --- columns


@pytest.mark.parametrize(
    ("output", "columns"),
    [
        (Tags(), [("", "strings")]),
        (Tags(ids=True, scores=True), [("", "strings"), ("_ids", "ints"), ("_scores", "floats")]),
        (CHOICE, [("", "string")]),
        (ShortText(), [("", "string")]),
        (JSON, [("", "string")]),
        (Scores(answers=("a", "b")), [("", "floats")]),
        (Scores(answers=("a", "b"), of="a"), [("", "float")]),
    ],
)
def test_the_columns_of_a_value(output, columns):
    assert columns_of_output(output) == columns
