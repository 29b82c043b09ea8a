"""What a model wrote when it was asked for an order -> the candidates it named, in its order.

Read are a JSON list of numbers or titles, a numbered or bulleted list, on lines of its own or all on one, and bare
numbers. Reasoning around the list is passed over. Titles are compared without letter case and punctuation; one that is
misspelled a little still counts, within `CLOSE`. What is in the list and is no candidate is counted, never guessed.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

CLOSE = 0.87
"""Least similarity (difflib's ratio of the plain forms) of a misspelled title, and by `APART` the only such one."""
APART = 0.05
LONGEST = 20_000
"""Characters that are read; of a longer text the last ones, for the list comes at the end."""
_MOST_ENTRIES = 200
_LONGEST_TITLE = 300

_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_MARKED = re.compile(r"\s*(?:[-*\u2022\u2013\u00b7+]\s+(?:\(?\d{1,3}[.):]\s+)?|\(?(?P<number>\d{1,3})[.):]\s+)")
_INLINE = re.compile(r"(?<=\S)\s+(?=\(?\d{1,3}[.):]\s+\S)")
_NUMBERS = re.compile(r"[\s\[(#]*\d{1,4}(?:[\s\])]*(?:->|[,;>\s\u2192])[\s\[(#]*\d{1,4})*[\s\]).]*\Z")
_CANDIDATE = re.compile(r"(?:candidate|item|option|number|no\.?|#)?\s*#?\[?(\d{1,3})\]?[.):]*\Z", re.IGNORECASE)


@dataclass(frozen=True)
class NamedOrder:
    """What an answer says of n candidates.

    Attributes:
        named: Positions of the candidates that it names, from 0, the most likely first; each once.
        invented: Entries of its list that are no candidate.
        duplicates: Entries that name a candidate again.
        unnamed: Candidates that it does not name.
    """

    named: tuple[int, ...]
    invented: int = 0
    duplicates: int = 0
    unnamed: int = 0

    @property
    def legal(self) -> bool:
        """Whether it is exactly an order of the candidates."""
        return bool(self.named) and not (self.invented or self.duplicates or self.unnamed)

    @property
    def order(self) -> tuple[int, ...]:
        """All candidates: the named ones, then the others in the order in which they were given."""
        rest = sorted(set(range(len(self.named) + self.unnamed)) - set(self.named))
        return (*self.named, *rest)


def parse_order(text: str | None, candidates: Sequence[str]) -> NamedOrder:
    """The order that an answer puts `candidates` in.

    A number stands for the candidate at that place, from 1. Where an entry of a numbered list has the title of a
    candidate, the title counts and the number is its rank. A candidate whose title is itself a number is named by its
    title only if the list cannot be one of places.

    Args:
        text: What was written; None or blank names nobody.
        candidates: Titles, as they were shown.

    Returns:
        The candidates that are named; none if there is no list.
    """
    titles = _Titles(candidates)
    text = _THOUGHT.sub("\n", (text or "")[-LONGEST:])
    best = NamedOrder((), unnamed=len(candidates))
    for entries in _lists(text, titles):
        found = _named(entries[:_MOST_ENTRIES], len(candidates))
        if len(found.named) >= len(best.named) and found.named:  # of equally good lists the last is the answer
            best = found
    return best


class _Titles:
    """Finds a candidate by its title or its place."""

    def __init__(self, titles: Sequence[str]) -> None:
        self.count = len(titles)
        self._forms = [_plain(title) for title in titles]
        self._at: dict[str, int] = {}
        for place, form in enumerate(self._forms):
            self._at.setdefault(form, place)
        self._longest_first = sorted((form for form in self._at if form), key=len, reverse=True)

    def place(self, number: int) -> int | None:
        return number - 1 if 1 <= number <= self.count else None

    def find(self, text: str) -> int | None:
        """The candidate whose title a text is, begins with or nearly is; None if there is none, or more than one."""
        form = _plain(text[:_LONGEST_TITLE])
        if not form:
            return None
        if form in self._at:
            return self._at[form]
        for title in self._longest_first:
            if form.startswith(f"{title} ") and len(title) > 2:
                return self._at[title]
        ratios = sorted(((self._ratio(form, title), title) for title in self._longest_first), reverse=True)[:2]
        if not ratios or ratios[0][0] < CLOSE or (len(ratios) > 1 and ratios[0][0] - ratios[1][0] < APART):
            return None
        return self._at[ratios[0][1]]

    @staticmethod
    def _ratio(form: str, title: str) -> float:
        shorter, longer = sorted((len(form), len(title)))
        if 2 * shorter < CLOSE * (shorter + longer):  # cannot be close
            return 0.0
        if re.findall(r"\d+", form) != re.findall(r"\d+", title):  # a sequel or another year is another title
            return 0.0
        return difflib.SequenceMatcher(None, form, title, autojunk=False).ratio()


def _named(entries: Sequence[int | None], count: int) -> NamedOrder:
    known = [entry for entry in entries if entry is not None]
    named = tuple(dict.fromkeys(known))
    return NamedOrder(named, len(entries) - len(known), len(known) - len(named), count - len(named))


def _lists(text: str, titles: _Titles) -> Iterator[list[int | None]]:
    """The lists in a text; each entry is a candidate's place or None."""
    yield from _json_lists(text, titles)
    lines = [line for line in text.split("\n") if line.strip()]
    yield [place for line in lines if not _MARKED.match(line) and (place := titles.find(line)) is not None]
    yield from _bare_lists(lines, titles)
    for split in (_INLINE.split, _counted):
        for block in _blocks([part for line in lines for part in split(line)]):
            yield _entries(block, titles)


def _counted(line: str) -> list[str]:
    """A line cut before each number of a list that counts on: ``1. Up 2. Apollo 13: Lost`` has two entries."""
    first, *others = _INLINE.split(line)
    parts = [first]
    for part in others:
        before, number = (_MARKED.match(text) for text in (parts[-1], part))
        counts_on = before and number and before["number"] and int(number["number"]) == int(before["number"]) + 1
        parts = [*parts, part] if counts_on else [*parts[:-1], f"{parts[-1]} {part}"]
    return parts


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Runs of lines with marks; a second 1 begins another list."""
    block: list[str] = []
    begun = False
    for line in lines:
        marked = _MARKED.match(line)
        is_first = marked is not None and marked["number"] is not None and int(marked["number"]) == 1
        if marked is None or (is_first and begun):
            yield block
            block, begun = [], False
        if marked is not None:
            block.append(line)
            begun |= is_first
    yield block


def _bare_lists(lines: Sequence[str], titles: _Titles) -> Iterator[list[int | None]]:
    """Runs of lines that hold nothing but numbers, e.g. ``[3] > [1] > [2]``."""
    for is_bare, run in itertools.groupby(lines, key=lambda line: bool(_NUMBERS.match(line))):
        if is_bare:
            numbers = [int(number) for line in run for number in re.findall(r"\d{1,4}", line)]
            places = [titles.place(number) for number in numbers]
            if all(place is None for place in places):
                places = [titles.find(str(number)) for number in numbers]
            yield places


def _entries(lines: Sequence[str], titles: _Titles) -> list[int | None]:
    """The entries of a list with marks, each by its title, else by a number in it, else by its mark alone."""
    entries: list[int | None] = []
    for line in lines:
        marked = _MARKED.match(line)
        assert marked is not None
        text = line[marked.end() :]
        place = titles.find(text)
        number = _CANDIDATE.match(text.strip().strip("*_`\"'"))
        if place is None and number is not None:
            place = titles.place(int(number[1]))
        entries.append(place)
    return entries


def _json_lists(text: str, titles: _Titles) -> Iterator[list[int | None]]:
    position = 0
    for _ in range(20):
        position = text.find("[", position)
        if position < 0:
            return
        try:
            value, end = json.JSONDecoder().raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
            continue
        entries = [_json_entry(item, titles) for item in value]
        if value and all(isinstance(item, (int, str, dict)) for item in value):
            yield entries
        position = end


def _json_entry(item: Any, titles: _Titles) -> int | None:
    if isinstance(item, bool):
        return None
    if isinstance(item, int):
        return titles.place(item)
    if isinstance(item, dict):  # {"rank": 1, "title": "..."}
        found = (titles.find(value) for value in item.values() if isinstance(value, str))
        return next((place for place in found if place is not None), None)
    if not isinstance(item, str):
        return None
    place = titles.find(item)
    if place is None:
        marked = _MARKED.match(item)
        place = titles.find(item[marked.end() :]) if marked else None
    if place is None and (number := _CANDIDATE.match(item.strip())):
        place = titles.place(int(number[1]))
    return place


def _plain(text: str) -> str:
    """A title without letter case, accents, punctuation and markup."""
    letters = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(
        " " if not (char.isalnum() or unicodedata.category(char).startswith("M")) else char for char in letters
    )
    return " ".join("".join(char for char in kept if not unicodedata.combining(char)).split())
