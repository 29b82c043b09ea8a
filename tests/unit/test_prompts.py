"""Prompts as files."""

import pytest

from llmrec_plugin import Slot
from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.prompts import load_prompt, parse_prompt

FILE = """---
prompt: film_genres
version: 2
slots:
  title: {type: text, max_tokens: 64}
  seen: {type: list, max_items: 3, required: false}
---
[system]
You know films.

[user]
Name the genres of this film.
Title: {{title}}
Others: {{ seen }}
"""


def test_a_file_becomes_a_prompt(tmp_path):
    path = tmp_path / "film.md"
    path.write_text(FILE, encoding="utf-8")
    prompt = load_prompt(path)
    assert (prompt.name, prompt.version, prompt.system) == ("film_genres", 2, "You know films.")
    assert prompt.user == "Name the genres of this film.\nTitle: {{title}}\nOthers: {{ seen }}"
    assert prompt.slots == (
        Slot(name="title", max_tokens=64),
        Slot(name="seen", type="list", max_items=3, required=False),
    )


def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path):
    path = tmp_path / "film.md"
    path.write_bytes(b"\xef\xbb\xbf" + FILE.replace("\n", "\r\n").encode())
    assert load_prompt(path).fingerprint == parse_prompt(FILE, "film.md").fingerprint


def test_a_slot_needs_no_fields_and_the_system_section_may_be_left_out():
    text = "---\nprompt: p\nversion: 1\nslots:\n  title:\n---\n[user]\n  {{title}}\n"
    prompt = parse_prompt(text, "p.md")
    assert (prompt.system, prompt.user, prompt.slots) == ("", "  {{title}}", (Slot(name="title"),))


def test_a_file_inside_a_package_is_found(tmp_path, monkeypatch):
    package = tmp_path / "some_features_of_ours"
    (package / "texts").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "texts" / "film.md").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_prompt("package:some_features_of_ours/texts/film.md") == parse_prompt(FILE, "film.md")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere/film.md", r"nowhere/film.md: the prompt cannot be read \(No such file"),
        ("package:no_such_package/film.md", r"cannot be imported \(No module named 'no_such_package'\)"),
        ("package:llmrec_plugin/none.md", "the prompt cannot be read"),
        ("package:llmrec_plugin/../x.md", "expected 'package:<module>/<file>'"),
        ("package:llmrec_plugin", "expected 'package:<module>/<file>'"),
    ],
)
def test_a_file_that_is_not_there_is_an_error_that_names_it(place, message):
    with pytest.raises(DeclarationError, match=message):
        load_prompt(place)


def test_a_file_that_is_not_utf_8_is_an_error_with_the_line(tmp_path):
    path = tmp_path / "film.md"
    path.write_bytes(FILE.encode().replace(b"genres of", b"g\xe9nres of"))
    with pytest.raises(DeclarationError, match=r"film\.md, line 12: expected UTF-8 text.*save it as UTF-8"):
        load_prompt(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("---\nprompt", "prompt", "line 1: expected a header between two lines '---'"),
        ("---\n[system]", "[system]", "line 1: expected a header between two lines '---'"),
        ("version: 2", "versoin: 2", "line 3: the header holds 'versoin', .*did you mean 'version'"),
        ("version: 2\n", "", "line 2: the header has no 'version'; add it"),
        ("version: 2", "version: two", "line 3: prompt 'film_genres': version must be a positive integer, got 'two'"),
        ("version: 2", "version: 2\nversion: 3", "line 4: the header has 'version' twice"),
        ("version: 2", "version: [2", "line [3-7]: the header is no YAML"),
        ("version: 2", "version: !!python/object:os.system 2", "line 3: the header is no YAML"),
        ("version: 2", "version: 2\0", "line 2: the header is no YAML"),
        ("version: 2", "version: 2001-99-99", "line 2: the header is no YAML"),
        ("version: 2", "version: !!int +", "line 2: the header is no YAML"),
        ("version: 2", "version: !!bool x", "line 2: the header is no YAML"),
        ("version: 2", "version: !!timestamp x", "line 2: the header is no YAML"),
        ("version: 2", "version: " + "[" * 3000 + "]" * 3000, "line 2: the header is no YAML"),
        (
            "version: 2",
            "version: 2\nauthor: me",
            "line 4: the header holds 'author'.*it may hold prompt, version, slots",
        ),
        ("type: text", "type: texts", "line 5: slot 'title': type must be one of 'text'"),
        ("max_items", "max_item", "line 6: slot 'seen' holds 'max_item', .*did you mean 'max_items'"),
        ("  title: {type: text, max_tokens: 64}", "  title: long", "line 5: slot 'title' must be a mapping"),
        ("  title: {", "  Title: {", "line 13: the slot 'title' is not declared; did you mean 'Title'"),
        ("{{title}}", "{{titel}}", "line 13: the slot 'titel' is not declared; did you mean 'title'"),
        ("{{title}}", "", "line 12: the slot 'title' is declared, but the text does not use it"),
        ("{{title}}", "{{title}} {{a-b}}", "line 13: '{{' begins a slot"),
        ("[system]\n", "", "line 8: expected a line '.system.' or '.user.' before the text"),
        ("[user]\n", "", "line 14: there is no section .user."),
        ("[user]\n", "[user]\n[user]\n", "line 12: a second section .user."),
        ("You know films.", "You know {{title}}.", "line 9: .system. holds a slot"),
    ],
)
def test_a_mistake_is_named_with_its_line(old, new, message):
    assert old in FILE
    with pytest.raises(DeclarationError, match=rf"film\.md, {message}"):
        parse_prompt(FILE.replace(old, new, 1), "film.md")
