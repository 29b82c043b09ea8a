"""Personal data in a row's values, replaced before anything else reads them.

    values -> redaction -> template or prompt -> cache key -> tokens -> model

It is the values that are redacted, one by one, and not the finished text: a template's own words stay as declared, and
rows that differ in nothing but an address share a cached vector.

    label      what is found
    <custom>   what the declared expression matches, by RE2
    email      an RFC 5322 dot-atom, "@", a domain with a dot; letters of every script
    card       13 to 19 digits that begin with 2 to 6, in groups parted by blanks or by hyphens, whose last digit is
               right by Luhn's formula (ISO/IEC 7812-1)
    phone      "+" or "00" and up to 15 digits (ITU-T E.164); digits in groups as they are written in some country; 10
               or 11 digits in one piece. Dates, decimal numbers, thousands in groups, IPv4 addresses and DOIs are not

Digits and signs of other scripts, full-width ones, odd blanks and dashes count as their plain forms; invisible
characters between them are seen through. Every search takes time linear in the text: finds begin at a digit or an "@",
look a bounded number of characters around, and never overlap.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from llmrec_plugin.errors import InputError
from llmrec_plugin.pipeline.text import as_list, safe, to_text
from llmrec_plugin.specs import Redaction
from llmrec_plugin.specs.privacy import placeholder

Span: TypeAlias = tuple[int, int]
Finder: TypeAlias = Callable[[str], list[Span]]

SLACK = 1_024
"""Characters beyond the bound of a text that are read, so that a find at the bound is found whole."""

_HIDDEN = "\u200b"
_ATEXT = f".!#$%&'*+/=?^_`{{|}}~-{_HIDDEN}"  # and letters and digits, by RFC 6531 those of every script
_DOMAIN = re.compile(rf"(?:[\w\-{_HIDDEN}]{{1,63}}\.){{1,8}}[\w\-{_HIDDEN}]{{2,63}}")
_RUN = re.compile(rf"(?:\+\(?|\(\+?)?{_HIDDEN}?\d(?:[ \-./(){_HIDDEN}]{{0,3}}\d){{6,}}", re.ASCII)
_GROUP = re.compile(rf"\d(?:{_HIDDEN}{{0,3}}\d)*", re.ASCII)
_CARD_LENGTHS = range(13, 20)
_LEAST_DIGITS, _MOST_E164, _MOST_DIGITS = 7, 15, 19
_CARD_GAPS: tuple[set[str], ...] = (set(), {" "}, {"-"})
_MOST_GROUPS = 9
_YEAR = re.compile(r"(1[5-9]|20)\d\d")
_DOI = re.compile(r"10\.\d{4,5}/", re.ASCII)


class Redacted(NamedTuple):
    """A text without what was looked for.

    Attributes:
        text: With a placeholder for each find.
        counts: Finds by label; labels without any are left out.
    """

    text: str
    counts: dict[str, int]


def redact(redaction: Redaction, text: str) -> Redacted:
    """`text` without the personal data that `redaction` names."""
    counts: Counter[str] = Counter()
    (redacted,) = _redact_texts(redaction, [safe(text)], counts)
    return Redacted(redacted, dict(counts))


def redact_columns(
    redaction: Redaction, columns: Mapping[str, Sequence[Any]], names: Sequence[str], max_chars: int
) -> dict[str, Sequence[Any]]:
    """`columns` with the cells of `names` redacted.

    A cell without finds stays the object that it is; one with finds becomes a text, or a list of texts where it was a
    list. What cannot be read as text stays, for whoever reads it to refuse.

    Args:
        redaction: What to replace.
        columns: The rows by column.
        names: The columns that are redacted, where they are there.
        max_chars: Only this many characters of a text will be read; of those that follow, only what belongs to a find
            that begins before them is looked at.
    """
    return {
        **columns,
        **{name: _redact_cells(redaction, columns[name], max_chars) for name in names if name in columns},
    }


def _redact_cells(redaction: Redaction, cells: Sequence[Any], max_chars: int) -> list[Any]:
    window = max_chars + SLACK
    texts: list[str] = []
    places: list[tuple[int, int | None]] = []
    changed: dict[int, Any] = {}
    lists = {row: items for row, cell in enumerate(cells) if (items := as_list(cell)) is not None}
    for row, cell in enumerate(cells):
        for item, value in enumerate(lists[row]) if row in lists else ((None, cell),):
            try:
                texts.append(to_text(value))
            except InputError:
                continue
            places.append((row, item))
    redacted = _redact_texts(redaction, [safe(text[:window]) for text in texts], Counter())
    for (row, item), before, after in zip(places, texts, redacted, strict=True):
        if after == before:
            continue
        if len(before) > window:
            after = _without_parted(redaction, after)
        if item is None:
            changed[row] = after
        else:
            changed.setdefault(row, list(lists[row]))[item] = after
    return [changed.get(row, cell) for row, cell in enumerate(cells)] if changed else list(cells)


def _without_parted(redaction: Redaction, text: str) -> str:
    """The text without the end that may be part of a find which the cut has parted."""
    last = None
    for last in _placeholders(redaction).finditer(text):  # noqa: B007
        pass
    return text[: max(len(text) - SLACK, last.end() if last else 0)]


def _redact_texts(redaction: Redaction, texts: list[str], counts: Counter[str]) -> list[str]:
    for label, pattern in redaction.patterns:
        texts = _by_pieces(redaction, texts, lambda pieces: _matches(label, pattern, pieces, counts))  # noqa: B023
    finders = _finders(redaction)
    return [_apply(finders, text, counts) for text in texts]


def _by_pieces(redaction: Redaction, texts: list[str], replaced: Callable[[list[str]], list[str]]) -> list[str]:
    """The texts with what lies between placeholders replaced, so that no pattern reads a placeholder."""
    known = _placeholders(redaction)
    pieces = [known.split(text) if "[" in text else [text] for text in texts]  # every second one is a placeholder
    done = iter(replaced([piece for parts in pieces for piece in parts[::2]]))
    for parts in pieces:
        parts[::2] = [next(done) for _ in parts[::2]]
    return ["".join(parts) for parts in pieces]


@functools.lru_cache(maxsize=64)
def _placeholders(redaction: Redaction) -> re.Pattern[str]:
    return re.compile("({})".format("|".join(re.escape(placeholder(label)) for label in redaction.labels)))


def _matches(label: str, pattern: str, pieces: list[str], counts: Counter[str]) -> list[str]:
    import pyarrow as pa  # only where a pattern is declared; takes a while to import
    import pyarrow.compute as pc

    array = pa.array(pieces, pa.large_string())
    found = pc.sum(pc.count_substring_regex(array, pattern=pattern)).as_py()
    if not found:
        return pieces
    counts[label] += found
    return pc.replace_substring_regex(array, pattern=pattern, replacement=placeholder(label)).to_pylist()


@functools.lru_cache(maxsize=64)
def _finders(redaction: Redaction) -> tuple[tuple[str, Finder], ...]:
    # Cards before telephone numbers, which they look like.
    every: tuple[tuple[str, Finder], ...] = (("email", _emails), ("card", _cards), ("phone", _phones))
    return tuple((label, find) for label, find in every if getattr(redaction, label))


def _apply(finders: Sequence[tuple[str, Finder]], text: str, counts: Counter[str]) -> str:
    for label, find in finders:
        spans = find(_folded(text))
        if spans:
            counts[label] += len(spans)
            kept = [0, *(place for span in spans for place in span), len(text)]
            text = placeholder(label).join(text[start:end] for start, end in zip(kept[::2], kept[1::2], strict=True))
    return text


def _folded(text: str) -> str:
    """The text in plain forms, character by character."""
    return text if text.isascii() else text.translate(_PLAIN_FORMS)


class _PlainForms(dict[int, str]):
    """For `str.translate`: characters in plain forms, remembered once they were met."""

    def __missing__(self, code: int) -> str:
        self[code] = plain = _plain_form(chr(code))
        return plain


def _plain_form(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category == "Cf":
        return _HIDDEN
    if category == "Zs":
        return " "
    if category == "Pd" or char == "\u2212":
        return "-"
    plain = unicodedata.normalize("NFKC", char)
    return plain if len(plain) == 1 and plain in "@.+()/" else char


_PLAIN_FORMS = _PlainForms()


def _emails(text: str) -> list[Span]:
    spans: list[Span] = []
    at = text.find("@")
    while at >= 0:
        floor = spans[-1][1] if spans else 0
        start = at
        while start > floor and (text[start - 1].isalnum() or text[start - 1] in _ATEXT):
            start -= 1
        domain = _DOMAIN.match(text, at + 1) if start < at else None
        if domain:
            spans.append((start, domain.end()))
        at = text.find("@", domain.end() if domain else at + 1)
    return spans


class _Run(NamedTuple):
    """Digits that only blanks and signs part.

    Attributes:
        start: Where the run begins; a plus sign or a bracket before the first digit belongs to it.
        spans: Of its groups, which are digits without gaps.
        groups: The digits of each.
        gaps: What parts one from the next, without invisible characters.
        text: The whole text.
    """

    start: int
    spans: list[Span]
    groups: list[str]
    gaps: list[str]
    text: str


def _runs(text: str) -> Iterator[_Run]:
    for run in _RUN.finditer(text):
        spans = [group.span() for group in _GROUP.finditer(text, *run.span())]
        groups = [_seen(text[start:end]) for start, end in spans]
        gaps = [_seen(text[one[1] : other[0]]) for one, other in itertools.pairwise(spans)]
        yield _Run(run.start(), spans, groups, gaps, text)


def _seen(text: str) -> str:
    return text.replace(_HIDDEN, "")


def _spans(text: str, is_one: Callable[[_Run, int, int], Span | None], *, longest: bool) -> list[Span]:
    """In each run, from its beginning, the ranges of groups that `is_one` takes, none with a barred group.

    Of several with one beginning it is the longest, or the shortest.
    """
    found: list[Span] = []
    for run in _runs(text):
        barred = _barred(run)
        first = 0
        while first < len(run.groups):
            lasts = range(first, _last(run, barred, first) + 1)
            taken = ((last, is_one(run, first, last)) for last in (reversed(lasts) if longest else lasts))
            last, span = next(((last, span) for last, span in taken if span is not None), (first, None))
            if span is not None:
                found.append(span)
            first = last + 1
    return found


def _last(run: _Run, barred: set[int], first: int) -> int:
    """The last group of the longest range that begins with `first` and may be a number; before `first` if none may."""
    digits, last = 0, first
    while last < min(first + _MOST_GROUPS, len(run.groups)) and last not in barred:
        digits += len(run.groups[last])
        if digits > _MOST_DIGITS:
            break
        last += 1
    return last - 1


def _cards(text: str) -> list[Span]:
    return _spans(text, _card, longest=False)


def _card(run: _Run, first: int, last: int) -> Span | None:
    digits = "".join(run.groups[first : last + 1])
    is_card = (
        len(digits) in _CARD_LENGTHS
        and digits[0] in "23456"
        and set(run.gaps[first:last]) in _CARD_GAPS
        and _luhn(digits)
    )
    return (run.spans[first][0], run.spans[last][1]) if is_card else None


def _luhn(digits: str) -> bool:
    """Whether the last digit is the one that Luhn's formula asks for."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _phones(text: str) -> list[Span]:
    return _spans(text, _phone, longest=True)


def _phone(run: _Run, first: int, last: int) -> Span | None:
    start, end = run.spans[first][0], run.spans[last][1]
    digits = "".join(run.groups[first : last + 1])
    if len(digits) < _LEAST_DIGITS:
        return None
    if _seen(run.text[max(start - 3, 0) : start]).rstrip("(").endswith("+"):
        if len(digits) > _MOST_E164 or digits[0] == "0":
            return None
    elif not _is_national(digits, [len(group) for group in run.groups[first : last + 1]], run.gaps[first:last]):
        return None
    signs = f"+({_HIDDEN}" if ")" in run.text[start:end] else f"+{_HIDDEN}"
    while start > run.start and run.text[start - 1] in signs:
        start -= 1
    return start, end


def _is_national(digits: str, lengths: list[int], gaps: list[str]) -> bool:
    if digits.startswith("00"):  # the prefix of most countries for calls abroad
        return 10 <= len(digits) <= 17 and digits[2] != "0" and max(lengths) <= 15
    if len(lengths) == 1:
        return len(digits) in (10, 11) or (digits[0] == "0" and 9 <= len(digits) <= 12)
    signs = "".join(gaps)
    if signs.count("(") != signs.count(")") - (")" in signs and "(" not in signs):  # the first one may stand before
        return False
    if "/" in signs and (signs.count("/") > 1 or digits[0] != "0"):
        return False
    if lengths[0] == 1 and digits[0] not in "18" and "-" in gaps[0]:  # an ISBN
        return False
    if len(digits) == 7:
        return lengths in ([3, 4], [3, 2, 2]) and set(gaps) <= {"-", " "}
    odd = lengths[1:].count(1) > (digits[0] in "08")
    if odd or not 8 <= len(digits) <= 12 or len(lengths) > 7 or max(lengths) > 9:
        return False
    return not (_is_number(digits, lengths, gaps) or _is_range(digits, lengths, gaps))


def _is_number(digits: str, lengths: list[int], gaps: list[str]) -> bool:
    """Whether a decimal point or thousands part the digits, or they begin as a dotted date or version."""
    if gaps == ["."] or (gaps[0] == "." and lengths[0] == 4 and _YEAR.match(digits)):
        return True
    thousands = lengths[0] <= 3 and set(lengths[1:]) == {3} and set(gaps) in ({" "}, {"."})
    return thousands and digits[0] != "0" and (lengths[0] < 3 or digits.endswith("000"))


def _is_range(digits: str, lengths: list[int], gaps: list[str]) -> bool:
    """Whether these are two years or two pages."""
    one, other = digits[:4], digits[4:]
    return lengths == [4, 4] and gaps == ["-"] and one < other and (one[:2] == other[:2] or bool(_YEAR.match(other)))


def _barred(run: _Run) -> set[int]:
    """Groups of a run that belong to a date, an IPv4 address, an ISBN or a DOI."""
    if _DOI.search(run.text, run.spans[0][0], run.spans[-1][1]):
        return set(range(len(run.groups)))
    barred: set[int] = set()
    for first in range(len(run.groups) - 2):
        three, gaps = run.groups[first : first + 3], run.gaps[first : first + 3]
        if gaps[0] == gaps[1] and gaps[0] in ("-", ".", "/") and (_is_date(*three) or _is_date(*reversed(three))):
            barred.update(range(first, first + 3))
        if gaps == [".", ".", "."] and all(len(part) <= 3 for part in run.groups[first : first + 4]):
            barred.update(range(first, first + 4))
        if three[0] in ("978", "979") and len("".join(run.groups[first : first + 5])) == 13:
            barred.update(range(first, first + 5))
    return barred


def _is_date(year: str, month: str, day: str) -> bool:
    if len(year) != 4 or not _YEAR.match(year) or max(len(month), len(day)) > 2:
        return False
    return min(int(month), int(day)) <= 12 and max(int(month), int(day)) <= 31
