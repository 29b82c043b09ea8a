"""The code of docs/how-to/write-a-plugin.md is that of the example packages; tests/integration follows its commands."""

from __future__ import annotations

import pytest
from tutorial import EXAMPLES, Listing, steps

from llmrec_plugin.scaffold.writing import NewPlugin

LISTINGS = [step for step in steps() if isinstance(step, Listing)]
ACME = NewPlugin(name="acme", entity="package", column="synopsis")
MOODS = NewPlugin(name="moods", kind="generator", entity="film", column="plot")


@pytest.mark.parametrize("listing", LISTINGS, ids=lambda item: item.file.name)
def test_a_listing_is_the_file_or_lines_of_it(listing):
    assert listing.text.strip()
    assert f"\n{listing.text}" in f"\n{listing.file.read_text(encoding='utf-8')}", listing.file


@pytest.mark.parametrize("plugin", [ACME, MOODS], ids=lambda plugin: plugin.name)
def test_an_example_is_what_the_command_writes_but_for_what_the_page_shows(plugin):
    root, written = EXAMPLES / plugin.package, plugin.files()
    parts = {"__pycache__", ".pytest_cache", f"{plugin.module}.egg-info"}
    files = {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file() and not parts & {*file.parts}}
    assert files == set(written)
    changed = {path for path, text in written.items() if (root / path).read_text(encoding="utf-8") != text}
    shown = {str(item.file.relative_to(root)) for item in LISTINGS if item.file.is_relative_to(root)}
    assert changed <= shown | ({"tests/test_plugin.py"} if plugin is MOODS else set())


def test_the_reader_of_the_page_has_every_file_of_the_first_plugin_and_of_the_shop():
    whole = {item.file for item in LISTINGS if item.is_whole}
    root, written = EXAMPLES / ACME.package, ACME.files()
    assert {root / path for path, text in written.items() if (root / path).read_text("utf-8") != text} <= whole
    shop = {file for file in (EXAMPLES / "shop").rglob("*.*") if file.suffix in (".py", ".yaml")}
    assert {file for file in shop if "data" not in file.parts} <= whole
