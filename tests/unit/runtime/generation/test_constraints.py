"""Machines over tokens: whatever is chosen, the value is one of the output."""

import numpy as np
import pytest
from generating import EOS, TAGS, manifest, tokenizer_text

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.runtime.generation.constraints import Trie, constraint_of, forced_beginning
from llmrec_plugin.runtime.generation.prompts import PromptTokenizer
from llmrec_plugin.specs import Choice, ShortText, Tags


@pytest.fixture(scope="module")
def tokenizer():
    return PromptTokenizer(tokenizer_text())


@pytest.fixture(scope="module")
def build(tokenizer):
    return lambda output: constraint_of(output, manifest(), tokenizer, tokenizer_text)


def walk(constraint, tokenizer, room, rng, end=0.3):
    """A random value: what is allowed, drawn; gives its text, whether it is complete, and the states' count."""
    state, tokens = constraint.start(), []
    while len(tokens) < room:
        allowed = constraint.allowed(state, room - len(tokens))
        if not allowed.size:
            break
        assert len(set(allowed.tolist())) == len(allowed)
        following = allowed[allowed != EOS]
        if EOS in allowed and (rng.random() < end or not following.size):
            return tokenizer.decode(tokens), True
        token = int(rng.choice(following))
        state = constraint.advance(state, token)
        tokens.append(token)
    return tokenizer.decode(tokens), constraint.complete(state)


@pytest.mark.parametrize("most", [1, 3, 8, 50])
@pytest.mark.parametrize("room", [8, 12, 20, 64, 200])
def test_every_list_of_tags_is_valid_distinct_and_closed_within_its_room(build, tokenizer, most, room):
    constraint = build(Tags(vocabulary=TAGS, max_items=most))
    rng = np.random.default_rng(most * 1000 + room)
    sizes = set()
    for _ in range(150):
        text, complete = walk(constraint, tokenizer, room, rng, end=rng.random() * 0.5)
        tags = text.strip().split(", ")
        assert complete
        assert set(tags) <= set(TAGS)
        assert 1 <= len(tags) == len(set(tags)) <= most
        sizes.add(len(tags))
    assert 1 in sizes
    assert max(sizes) > 1 or most == 1 or room < 12


def test_all_tags_can_be_written_and_then_the_list_ends(build, tokenizer):
    constraint = build(Tags(vocabulary=TAGS, max_items=len(TAGS)))
    text, complete = walk(constraint, tokenizer, 500, np.random.default_rng(0), end=0)
    assert complete
    assert sorted(text.strip().split(", ")) == sorted(TAGS)


@pytest.mark.parametrize("space", ["", " "])
def test_every_list_can_be_spelled_as_the_tokenizer_spells_it(build, tokenizer, space):
    """Else a trained model would have to write what it has never seen. ``++,`` is one token here."""
    assert any(tokenizer.decode([token]) == "++," for token in tokenizer.data(["c++, java"])[0])
    constraint = build(Tags(vocabulary=TAGS, max_items=3))
    for i, first in enumerate(TAGS):
        for second in TAGS[:i] + TAGS[i + 1 :]:
            third = next(tag for tag in TAGS if tag not in (first, second))
            state = constraint.start()
            for token in tokenizer.data([f"{space}{first}, {second}, {third}"])[0]:
                assert token in constraint.allowed(state, 50)
                state = constraint.advance(state, token)
            assert constraint.complete(state)
            assert {TAGS[item] for item in state.used} == {first, second}


@pytest.mark.parametrize("options", [("yes", "no"), ("web", "web server", "web client"), TAGS])
def test_a_choice_is_exactly_one_option(build, tokenizer, options):
    constraint = build(Choice(options=options))
    rng = np.random.default_rng(0)
    found = {walk(constraint, tokenizer, 30, rng)[0].strip() for _ in range(400)}
    assert found == set(options)


def test_a_room_too_small_for_any_option_does_not_stop_a_row(build):
    constraint = build(Choice(options=("web server", "web client")))
    assert constraint.allowed(constraint.start(), 1).size


def test_states_are_not_changed_by_what_follows(build, tokenizer):
    constraint = build(Tags(vocabulary=TAGS))
    start = constraint.start()
    before = constraint.allowed(start, 50).tolist()
    state = start
    for token in tokenizer.data(["web, database, "])[0]:
        state = constraint.advance(state, token)
    assert constraint.allowed(start, 50).tolist() == before
    assert constraint.allowed(state, 50).tolist() != before


def test_a_trie_knows_how_far_its_ends_are():
    trie = Trie([([1, 2], 0), ([1, 3, 4], 1), ([5], 2)])
    assert trie.longest[0] == 3
    assert trie.items_below[0] == 3
    assert sorted(trie.tokens[0].tolist()) == [1, 5]


def test_tags_without_a_vocabulary_are_refused(build):
    with pytest.raises(DeclarationError, match="vocabulary"):
        build(Tags())


def test_free_text_has_no_constraint_but_a_beginning(build, tokenizer):
    output = ShortText(prefix="[tags]")
    assert build(output) is None
    assert tokenizer.decode(forced_beginning(output, tokenizer)) == "[tags]"
