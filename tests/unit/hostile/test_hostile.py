"""Anything at all through the public entries: a value, or an error that says why; never another row's.

``python -m benchmarks.hostile`` tries 100,000 texts; this is a sample of them, and what is no text.
"""

import contextlib
import json
import sqlite3
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import samples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks import fuzz, hostile
from llmrec_plugin import (
    Choice,
    Decoding,
    EncoderModel,
    GaussianNoise,
    GeneratorModel,
    Json,
    LabelModel,
    NetworkFeature,
    NetworkModel,
    Prompt,
    Redaction,
    Scores,
    ShortText,
    Slot,
    Tags,
)
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import DeclarationError, FingerprintMismatchError, InputError
from llmrec_plugin.interactions import read_atomic
from llmrec_plugin.pipeline.assemble import assemble
from llmrec_plugin.pipeline.outputs import InvalidOutput, parse
from llmrec_plugin.pipeline.packing import unpack
from llmrec_plugin.pipeline.prompts import read_rows, render
from llmrec_plugin.pipeline.text import clean
from llmrec_plugin.privacy import redact
from llmrec_plugin.prompts import parse_prompt
from llmrec_plugin.runtime.cache import ValueCache
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.specs import from_spec, to_spec
from llmrec_plugin.testing.tiny import add_tiny_encoder

TEXTS = st.text(st.characters(codec=None), max_size=40) | st.integers(0, 2_000).map(
    lambda seed: next(hostile.hostile_texts(1, seed))
)
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=8) | st.dates()
    | st.decimals() | st.fractions() | st.complex_numbers()
    | st.sampled_from([np.float32(1.5), np.int64(-3), np.nan, np.bool_(True), np.array(3), np.array([[1]]), object]),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip
MORE = settings(max_examples=100)


# --- texts


def test_a_sample_of_hostile_texts_harms_nothing(tmp_path):
    trial = hostile.Trial(tmp_path)
    texts = list(hostile.hostile_texts(330, seed=1))
    trial.run(texts)
    assert hostile.spelled_tokens(texts) == 0
    assert trial.report.texts == len(texts)
    assert {"ok"} <= set(trial.report.statuses["vectors"])
    for name in hostile.OUTPUTS:
        assert trial.report.statuses[name]["ok"] > 10


def test_the_texts_are_the_same_for_a_seed_and_of_every_kind():
    one, other = (list(hostile.hostile_texts(hostile.LONG_EVERY, seed=3)) for _ in range(2))
    assert one == other
    assert max(map(len, one)) >= 1_000_000
    assert any("\ud800" <= char <= "\udfff" for text in one for char in text)
    assert {"<|im_end|>", "[MASK]"} <= {token for token in hostile._SPECIAL if any(token in text for text in one)}


def test_neighbors_of_equal_length_change_no_bit(tmp_path):
    """In a batch of one shape a row's vector has nothing of the others."""
    encoder = Encoder(add_tiny_encoder(ArtifactStore([tmp_path])), samples.settings(tmp_path))
    texts = [clean(text, 5_000) for text in hostile.hostile_texts(300)]
    long = [text for text in texts if encoder.count_tokens([text]) == 16][:60]
    assert len(long) > 30
    harmless = "red green blue " * 6
    sound, _ = encoder.encode([harmless, *["web " * 20] * len(long)])
    found, _ = encoder.encode([harmless, *long])
    assert found[0].tobytes() == sound[0].tobytes()
    assert np.isfinite(found).all()


@MORE
@given(TEXTS)
def test_any_text_is_redacted_and_only_once(text):
    redaction = Redaction(email=True, phone=True, card=True, patterns=(("customer", r"C-\d{6}"),))
    found = redact(redaction, text).text
    assert redact(redaction, found).text == found


# --- cells


@MORE
@given(st.lists(CELLS, min_size=1, max_size=4))
@example([Fraction(10**400, 3)])
@example([Decimal("NaN")])
@example([[[]] * 3])
def test_any_cell_is_a_text_nothing_or_an_invalid_row(cells):
    for feature in (samples.embedding(), samples.history()):
        columns = {"title": [*cells, "red"], "events": [*cells, ["red"]]}
        found = assemble(feature, columns)
        assert len(found.rows) == len(cells) + 1
        assert found.rows[-1] == ("red",)
        assert all(not found.rows[number] for number in found.invalid)
        for row in found.rows:
            for text in row:
                assert text
                text.encode()  # no lone surrogate is left


@MORE
@given(st.lists(CELLS, min_size=1, max_size=3), st.lists(CELLS, min_size=1, max_size=3))
def test_any_cell_in_a_prompt_is_data_or_an_invalid_row(titles, years):
    slots = (Slot(name="title"), Slot(name="year", type="number", required=False))
    prompt = Prompt(name="p", version=1, user="Do.\n{{title}} {{year}}\nDone:", slots=slots)
    feature = samples.written(prompt=prompt)
    count = min(len(titles), len(years))
    found = read_rows(feature, {"title": titles[:count], "year": years[:count]})
    for number, key in enumerate(found.keys):
        assert (key is None) or number not in found.invalid
        if key is not None:
            request = render(feature, key)
            fixed = "".join(part.text for part in request.user if not part.data)
            assert fixed in ("Do.\n<title></title> <year></year>\nDone:",)


def test_a_number_of_too_many_digits_makes_its_row_invalid_and_no_other():
    """Python writes no integer of more than 4,300 digits."""
    found = assemble(samples.embedding(), {"title": [10**5000, Fraction(10**400), "red"]})
    assert found.rows == [(), (), ("red",)]
    assert "digits" in found.invalid[0]


def test_lists_nested_without_end_make_their_row_invalid_and_no_other():
    nested = "red"
    for _ in range(100_000):
        nested = [nested]
    found = assemble(samples.embedding(), {"title": [nested, "blue"]})
    assert found.rows == [(), ("blue",)]
    assert "nested too deep" in found.invalid[0]
    while isinstance(nested, list):  # Python would free them recursively
        nested = nested.pop()


# --- what models write

OUTPUTS = [
    hostile.TAGS, hostile.CHOICE, hostile.TEXT, hostile.JSON, ShortText(prefix="[x]", stop=("###",), min_chars=3),
    Tags(vocabulary=("a, b", "a", "b;c"), max_items=2), Json(schema="{}"), Choice(options=("\u00df", "ss")),
]  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


@MORE
@given(TEXTS | _VALUES.map(json.dumps) | st.tuples(TEXTS, _VALUES.map(json.dumps), TEXTS).map("".join))
def test_any_answer_is_a_value_of_the_output_or_none(text):
    for output in OUTPUTS:
        try:
            value = parse(output, text)
        except InvalidOutput:
            continue
        assert hostile.fits(output, value)


# --- declarations

_BASES = {
    "embedding": samples.embedding(), "history": samples.history(), "match": samples.match(),
    "written": samples.written(), "decoding": Decoding(), "slot": Slot(name="title"), "prompt": samples.PROMPT,
    "tags": Tags(vocabulary=("a",)), "choice": Choice(options=("a", "b")), "text": ShortText(),
    "json": Json(schema="{}"),
    "scores": Scores(answers=("yes", "no")), "redaction": Redaction(email=True),
    "noise": GaussianNoise(clip_norm=1.0, epsilon=1.0, delta=1e-6, user="u", key_id="0" * 16),
    "encoder": EncoderModel(
        name="m", source="path:/m", pooling="mean", normalize=True, max_tokens=8, dims=4, metric="dot"
    ),
    "generator": GeneratorModel(name="m", source="path:/m", task="causal", max_tokens=8),
    "labels": LabelModel(name="m", encoder="tiny", head="path:/m"),
    "network model": NetworkModel(name="m", source="path:/m", network="a.b:c"),
    "network": NetworkFeature(name="f", entity="e", model="m", inputs={"a": "b"}, dims=4, metric="dot"),
}  # fmt: skip


@pytest.mark.parametrize("kind", _BASES)
@settings(max_examples=40)
@given(data=st.data())
def test_any_declaration_is_checked_when_it_is_made(kind, data):
    base = _BASES[kind]
    names = [field.name for field in fields(base) if field.init]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    changes = {name: data.draw(_VALUES) for name in chosen}
    values = {name: getattr(base, name) for name in names}
    try:
        made = type(base)(**{**values, **changes})
    except DeclarationError:
        return
    hash(made)
    if kind in ("embedding", "history", "match", "written", "network"):
        assert from_spec(json.loads(json.dumps(to_spec(made)))) == made


@MORE
@given(data=st.data())
def test_a_declaration_from_a_registry_is_read_or_refused(data):
    spec = dict(to_spec(data.draw(st.sampled_from([samples.embedding(), samples.history(), samples.written()]))))
    for name in data.draw(st.lists(st.sampled_from(sorted(spec)), max_size=2)):
        spec[name] = data.draw(_VALUES)
    spec |= data.draw(st.dictionaries(st.text(max_size=4), _VALUES, max_size=1))
    with contextlib.suppress(DeclarationError):
        from_spec(spec)


@MORE
@given(st.binary(max_size=80) | TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"---\nname: &a [*a]\n---\n# User\n{{title}}")
def test_any_prompt_file_is_read_or_refused(content):
    header = "---\nprompt: p\nversion: 1\nslots:\n  title: {max_tokens: 8}\n"
    mark, text = content.decode("latin-1"), content.decode("utf-8", "replace")
    for whole in (
        f"{header}---\n[user]\n{{{{title}}}} {text}",
        f"{header}  other: {mark}\n---\n[user]\n{{{{title}}}}",
        mark,
    ):
        with contextlib.suppress(DeclarationError):
            parse_prompt(whole, "p.md")


# --- bytes


@MORE
@given(st.lists(st.binary(max_size=40), max_size=3), st.sampled_from(["float32", "float16", "int8"]))
def test_any_packed_vector_is_unpacked_or_refused(values, storage):
    try:
        found = unpack(values, storage, 4)
    except FingerprintMismatchError:
        return
    assert found.shape == (len(values), 4)
    assert found.dtype == np.float32


@settings(max_examples=100)
@given(
    st.binary(max_size=120)
    | TEXTS.map(lambda text: b"user_id:token\titem_id:token\n" + text.encode("utf-8", "replace"))
)
@example(b"user_id:token\titem_id:token\ttimestamp:float\na\tb\t1e400\n")
@example(b"user_id:token\titem_id:token\trating:float_seq\na\tb\tnan inf x\n")
def test_any_atomic_file_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("atomic")
    (folder / "a.inter").write_bytes(content)
    with contextlib.suppress(InputError):
        read_atomic(folder)


@pytest.fixture(scope="module")
def cache_file(tmp_path_factory):
    """The bytes of a cache file, and what is in it."""
    folder = tmp_path_factory.mktemp("cache")
    cache = ValueCache(folder, 2**20)
    vectors = {f"text {number}": np.full(8, number, np.float32) for number in range(300)}
    cache.put_many("f", vectors)
    cache.close()
    with sqlite3.connect(cache.path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return cache.path.read_bytes(), vectors


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=64)), min_size=1, max_size=6))
def test_a_damaged_cache_file_gives_right_values_or_none(cache_file, tmp_path_factory, damages):
    content, vectors = cache_file
    damaged = bytearray(content)
    for place, junk in damages:
        place %= len(damaged)
        damaged[place : place + len(junk)] = junk
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "values.sqlite").write_bytes(damaged[: len(content)])
    cache = ValueCache(folder, 2**20)
    try:
        for text, vector in cache.get_many("f", list(vectors)).items():
            assert vector.tobytes() == vectors[text].tobytes()
        cache.put_many("f", {"new": np.zeros(8, np.float32)})
        cache.size()
        cache.runs()
    finally:
        cache.close()


# --- the fuzzer's targets, without the fuzzer


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_a_target_of_the_fuzzer_takes_its_seeds_and_parts_of_them(tmp_path, name):
    check = fuzz.TARGETS[name].check(tmp_path)
    seeds = list(fuzz.TARGETS[name].seeds())
    assert seeds
    for seed in seeds:
        for part in (seed, seed[: len(seed) // 2], seed[1:], seed[::-1], b""):
            check(part)
