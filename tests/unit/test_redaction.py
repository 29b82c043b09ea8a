"""Personal data in texts: what is found, what is left alone, and what hostile texts cost."""

import json
import re
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from samples import embedding, history, written
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer

from llmrec_plugin.binding import bind
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.pipeline.assemble import assemble
from llmrec_plugin.pipeline.prompts import read_rows, render
from llmrec_plugin.pipeline.redaction import SLACK
from llmrec_plugin.privacy import redact
from llmrec_plugin.specs import Prompt, Redaction, Slot, from_spec, to_spec

ALL = Redaction(email=True, phone=True, card=True, patterns=(("customer", r"C-\d{6}"),))
EMAIL, PHONE, CARD = Redaction(email=True), Redaction(phone=True), Redaction(card=True)


# --- what is found


@pytest.mark.parametrize(
    "address",
    [
        "ann@example.org",
        "Ann.O'Brien+lists@mail.example.co.uk",
        "bounce+ann=example.org@lists.example.com",
        "jörg@exämple.de",
        "ann＠example．org",
        "an\u200bn@exam\u00adple.org",
        "x@a-b.museum",
    ],
)
def test_an_address_is_replaced_and_nothing_around_it(address):
    assert redact(EMAIL, f"Write to <{address}>, or come.") == ("Write to <[EMAIL]>, or come.", {"email": 1})


@pytest.mark.parametrize("text", ["@ann", "a @ b", "ann@localhost", "3 @ 4.50 each", "ann(at)example.org", "@@.."])
def test_what_is_no_address_stays(text):
    assert redact(EMAIL, text) == (text, {})


@pytest.mark.parametrize(
    "number",
    [
        "+46 70-123 45 67",
        "+1 (555) 123-4567",
        "+(46) 701234567",
        "(+46) 701234567",
        "+442079460958",
        "0046 70 123 45 67",
        "(555) 123-4567",
        "555-123-4567",
        "555.123.4567",
        "1-800-555-0199",
        "8 (495) 123-45-67",
        "020 7946 0958",
        "06 12 34 56 78",
        "089/1234567",
        "0701234567",
        "5551234567",
        "6123 4567",
        "123-4567",
        "٠٧٠١٢٣٤٥٦٧",
        "０７０ー１２３４５６７".replace("ー", "－"),
        "070\u00a0123\u202f45\u200b67",
        "0\u200b7\u200b0\u200b1\u200b2\u200b3\u200b4\u200b5\u200b6\u200b7",
    ],
)
def test_a_telephone_number_is_replaced_and_nothing_around_it(number):
    assert redact(PHONE, f"Call {number}, please.") == ("Call [PHONE], please.", {"phone": 1})


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-15 10:30, 15.01.2024, 1/15/2024",
        "1990-1995 and pages 1583-1643",
        "3.14159265 or 0.12345678",
        "12 345 678 inhabitants, 4 000 000 cars, 12.500.000 Euro",
        "192.168.100.200 and 239.255.255.250",
        "doi:10.1145/1143844.1143874",
        "ISBN 978-3-16-148410-0",
        "version 2.10.3, 1024x768, 20 000 mAh, 4711",
        "1700000000000 ms",
    ],
)
def test_dates_amounts_and_other_numbers_stay(text):
    assert redact(PHONE, text) == (text, {})


@pytest.mark.parametrize(
    "number",
    [
        "4242424242424242",
        "4242 4242 4242 4242",
        "4242-4242-4242-4242",
        "3782 822463 10005",
        "30569309025904",
        "2223003122003222",
        "6205500000000000004",
        "4242\u20104242\u20104242\u200b4242",
    ],
)
def test_a_card_is_replaced_and_nothing_around_it(number):
    assert redact(CARD, f"Paid by {number}.") == ("Paid by [CARD].", {"card": 1})


@pytest.mark.parametrize(
    "text", ["4242424242424241", "9780306406157", "1234567890123456", "42424242424241", "4242 / 4242 / 4242 / 4242"]
)
def test_what_luhn_or_the_length_refuses_is_no_card(text):
    assert redact(CARD, text) == (text, {})


def test_finds_beside_each_other_are_all_replaced_and_counted():
    text = "4242 4242 4242 4242 555-123-4567 555-765-4321 C-123456 a@b.co,c@d.co"
    found = redact(ALL, text)
    assert found.text == "[CARD] [PHONE] [PHONE] [CUSTOMER] [EMAIL],[EMAIL]"
    assert found.counts == {"customer": 1, "email": 2, "card": 1, "phone": 2}


def test_patterns_are_applied_in_order_and_read_no_placeholder():
    redaction = Redaction(patterns=(("first", "[a-z]+@"), ("second", "[A-Z]+")), email=True)
    assert redact(redaction, "ann@example.org ABC").text == "[FIRST]example.org [SECOND]"


def test_a_pattern_may_have_the_label_of_a_kind_that_is_known():
    redaction = Redaction(card=True, phone=True, patterns=(("phone", "ext [0-9]+"),))
    assert redact(redaction, "4242 4242 4242 4242, 555-123-4567 ext 9").text == "[CARD], [PHONE] [PHONE]"


# --- properties

PERSONAL = st.sampled_from(
    ["ann@example.org", "+46 70-123 45 67", "(555) 123-4567", "4242 4242 4242 4242", "C-123456", "0701234567"]
)
TEXTS = st.lists(
    st.one_of(
        PERSONAL,
        st.text(max_size=8),
        st.text("0123456789 -./()+@", max_size=24),
        st.text("ab@.-_[]EMAILC1 \u200b", max_size=16),
        st.sampled_from(["[EMAIL]", "[PHONE]", "[", "]", "@", "+", "(", ")"]),
    ),
    max_size=12,
).map("".join)
SIMPLE_EMAIL = re.compile(r"[A-Za-z0-9._+-]+@[A-Za-z0-9-]+\.[A-Za-z]{2,}")
SIMPLE_CUSTOMER = re.compile(r"C-[0-9]{6}")


@given(TEXTS)
@example("a@b.c@d.ef")
@example("1-2024-01-15 555 123 4567")
def test_nothing_that_matches_survives_and_a_second_time_changes_nothing(text):
    once = redact(ALL, text).text
    assert not SIMPLE_EMAIL.search(once)
    assert not SIMPLE_CUSTOMER.search(once)
    assert redact(ALL, once) == (once, {})


@given(TEXTS)
def test_all_but_the_finds_stays_bit_for_bit(text):
    text = "".join(char for char in text if char.isprintable() or char in "\n\t")
    found = redact(ALL, text)
    pieces = re.split(r"\[(?:EMAIL|PHONE|CARD|CUSTOMER)\]", found.text)
    position = 0
    for piece in pieces:
        position = text.index(piece, position) + len(piece)
    assert found.text == text or found.counts


@given(st.text("abcdefghij ÅÄÖ,.;:!?'\"\n", max_size=200))
def test_a_text_without_digits_and_at_signs_is_the_same_text(text):
    assert redact(ALL, text).text == text


HOSTILE = ["@", "a", "a@", "@.", "a.", "a@a.", "0", "0 ", "0 - ", "+", "(", "+(0", "(0) ", "1-", "1.1", "4 ", "4242 ",
           "C-", "C-12345", "555-123-4567 ", "a@b.co ", "\u200b", "0\u200b"]  # fmt: skip


@pytest.mark.parametrize("part", HOSTILE)
def test_a_hostile_text_takes_time_in_proportion_to_its_length(part):
    def seconds(length: int) -> float:
        text = (part * length)[:length]
        times = []
        for _ in range(2):
            start = time.process_time()
            redact(ALL, text)
            times.append(time.process_time() - start)
        return min(times)

    redact(ALL, part)
    # 8 times the text: a quadratic search would take 64 times as long.
    assert seconds(4_000) < 24 * max(seconds(500), 0.002)


def test_a_pattern_that_would_backtrack_takes_no_time():
    redaction = Redaction(patterns=(("words", "(a+)+b"),))
    start = time.process_time()
    assert redact(redaction, "a" * 20_000).text == "a" * 20_000
    assert time.process_time() - start < 1


# --- declarations


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "nothing is redacted"),
        ({"email": 1}, "True or False"),
        ({"patterns": (("customer", "("),)}, "no regular expression of RE2: missing )"),
        ({"patterns": (("customer", r"(?=C)\d"),)}, "neither lookaround"),
        ({"patterns": (("customer", r"\d*"),)}, "without taking a character"),
        ({"patterns": (("customer", ""),)}, "without taking a character"),
        ({"patterns": (("customer", r"\b"),)}, "without taking a character"),
        ({"patterns": (("customer", r"x|$"),)}, "without taking a character"),
        ({"patterns": (("customer", r"(?m)^"),)}, "without taking a character"),
        ({"patterns": (("Customer", "C"),)}, "lower-case letters"),
        ({"patterns": (("a]", "C"),)}, "lower-case letters"),
        ({"patterns": (("mask", "C"),)}, "special token"),
        ({"patterns": "C"}, "pairs of a label"),
    ],
)
def test_a_redaction_that_cannot_be_meant_is_refused(changes, said):
    with pytest.raises(DeclarationError, match=re.escape(said)):
        Redaction(**changes)


@pytest.mark.parametrize("make", [embedding, history, written])
def test_redaction_travels_and_is_part_of_the_fingerprint_only_where_declared(make):
    feature = make(redact=ALL)
    assert from_spec(json.loads(json.dumps(to_spec(feature)))) == feature
    plain = make()
    prints = {plain.fingerprint("a"), feature.fingerprint("a"), make(redact=EMAIL).fingerprint("a")}
    assert len(prints) == 3
    assert make(redact={"patterns": {"customer": r"C-\d{6}"}, "email": True, "phone": True, "card": True}) == feature


def test_fingerprints_from_before_redaction_and_noise_hold():
    assert embedding().fingerprint("a" * 64) == BEFORE["embedding"]
    assert history().fingerprint("a" * 64) == BEFORE["history"]
    assert written().fingerprint("a" * 64) == BEFORE["written"]


BEFORE = {
    "embedding": "590217bd40b1f65e72c05f64a3f213b7d416b7f6b34118b99069e33c0e24b142",
    "history": "60cde57b1c42a9ce53326c5d15058d2d0d67dec9aaec1259cfbb99eb04fd4b6c",
    "written": "991aa47d6cc492ca6a5eedbace2de2baaeb9cbe7581e67eab3c3ec748c780356",
}


# --- in the pipeline


def test_values_are_redacted_and_the_template_is_not():
    feature = embedding(text="Ask help@shop.example about {title} ({note}).", redact=ALL)
    rows = {"title": ["C-123456 by ann@example.org", 46701234567, None], "note": [["a@b.co", "x"], None, None]}
    assert assemble(feature, rows).rows == [
        ("Ask help@shop.example about [CUSTOMER] by [EMAIL] ([EMAIL], x).",),
        ("Ask help@shop.example about [PHONE] ().",),
        (),
    ]


def test_every_event_of_a_history_is_redacted():
    feature = history(redact=ALL)
    rows = {"events": [["saw ann@example.org", None, "called 0701234567"], np.array(["C-123456"]), None]}
    assert assemble(feature, rows).rows == [("saw [EMAIL]", "called [PHONE]"), ("[CUSTOMER]",), ()]


def test_slots_of_texts_and_lists_are_redacted_and_numbers_are_not():
    prompt = Prompt(
        name="p",
        version=1,
        user="ann@shop.example {{note}} {{events}} {{price}}",
        slots=(Slot(name="note"), Slot(name="events", type="list"), Slot(name="price", type="number")),
    )
    feature = written(prompt=prompt, columns_of={"note": "text"}, redact=ALL)
    rows = {"text": ["from ann@example.org"], "events": [["C-123456", "b"]], "price": [5551234567]}
    (key,) = read_rows(feature, rows).keys
    assert json.loads(key) == {"note": "from [EMAIL]", "events": ["[CUSTOMER]", "b"], "price": "5551234567"}


def test_a_row_that_cannot_be_read_says_so_as_without_redaction():
    rows = {"title": [b"bytes", "ann@example.org"]}
    assembled = assemble(embedding(redact=ALL), rows)
    assert assembled.rows == [(), ("[EMAIL]",)]
    assert "bytes" in assembled.invalid[0]


@pytest.mark.parametrize("place", range(80, 101))
def test_a_find_at_the_end_of_what_is_read_is_replaced_whole(place):
    feature = embedding(redact=ALL, max_chars=100)
    text = "x" * (place - 1) + " ann.smith@example.org " + "y" * (3 * SLACK)
    ((read,),) = assemble(feature, {"title": [text]}).rows
    assert read.startswith(("x" * (place - 1) + " [EMAIL]")[:100].strip())
    assert "smith" not in read


def test_a_find_that_a_cut_parts_does_not_show_where_many_finds_make_room():
    feature = embedding(redact=ALL, max_chars=2_000)
    many = "someone.with.a.name@example.org " * 400  # 12,800 characters
    for shift in range(32):
        ((read,),) = assemble(feature, {"title": ["z" * shift + " " + many]}).rows
        assert set(read.split()) <= {"z" * shift, "[EMAIL]"}


def test_control_characters_do_not_hide_an_address():
    assert assemble(embedding(redact=ALL), {"title": ["call 070\x00123 45 67"]}).rows == [("call [PHONE]",)]


def test_rows_that_differ_only_in_what_is_redacted_share_one_inference(new_runner):
    runner = new_runner()
    bound = bind(embedding(redact=ALL), runner.store)
    computed = runner.compute(bound, {"title": ["red ann@example.org", "red bob@example.org"]}, "batch")
    assert computed.report.computed == 1
    assert np.array_equal(*computed.values)


# --- placeholders in prompts and tokenizers


def test_a_placeholder_closes_no_slot_whatever_stands_around_it():
    prompt = Prompt(name="p", version=1, user="Read.\n{{title}}", slots=(Slot(name="title"),))
    feature = written(prompt=prompt, redact=ALL)
    hostile = ["</ti a@b.co tle>", "</a@b.co/title>", "<a@b.co", "</titleC-123456>", "<\u200ba@b.cotitle>"]
    for key in read_rows(feature, {"title": hostile}).keys:
        text = "".join(segment.text for segment in render(feature, key).user)
        assert text.count("</title") == 1
        assert text.count("<title") == 1


def test_a_placeholder_is_three_ordinary_tokens_of_wordpiece():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "email", "phone", "card", "customer", "mail"]
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = Lowercase(), BertPreTokenizer()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:5]])
    for label in ALL.labels:
        tokens = tokenizer.encode(f"[{label.upper()}]", add_special_tokens=False)
        assert tokens.tokens == ["[", label, "]"]
        assert not any(id_ < 5 for id_ in tokens.ids)
