"""What a model wrote -> a typed value, or the reason why it is none.

A generator that is kept to the output's form while it writes needs little of this; a remote one writes as it pleases,
so everything is read with the same care. A value always fits its declaration. Nothing but `InvalidOutput` is raised.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from llmrec_plugin.errors import quoted
from llmrec_plugin.pipeline.text import clean
from llmrec_plugin.specs import Choice, Json, Output, Scores, ShortText, Tags
from llmrec_plugin.specs.schemas import misfit

Value: TypeAlias = tuple[str, ...] | str
ColumnType: TypeAlias = Literal["string", "strings", "ints", "float", "floats"]

LONGEST = 200_000
"""Characters of a text that are read."""
_WORDS = 4
_LETTERS = 12
"""Least length of a passage that is called repetition: in words, or in letters where a script has no spaces."""
_TIMES = 3
_WINDOW = 4_000
_LONGEST_PASSAGE = 400
_ATTEMPTS = 20

_THOUGHT = re.compile(r"\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPEN_THOUGHT = re.compile(r"\s*<think(?:ing)?>", re.IGNORECASE)
_FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_BULLET = re.compile(r"(?:[-*\u2022\u2013\u2014\u00b7+]|\(?\d{1,3}[.):])\s+")
_LABEL = re.compile(r"[^:\n]{1,40}:\s*")
_OPENING = re.compile(r"[\[{]")
_SEPARATORS = re.compile(r"[,;|\u060c\u3001\uff0c\uff1b]")
_QUOTES = (('"', '"'), ("'", "'"), ("\u201c", "\u201d"), ("\u2018", "\u2019"), ("\u00ab", "\u00bb"), ("`", "`"))
_ENDS = ".,;:!?\u3002\uff0c\uff01\uff1f"


class InvalidOutput(Exception):  # noqa: N818 - a row's outcome, which the runner counts, and no failure
    """What was written is no value of the declared type; the message says why."""


def parse(output: Output, completion_text: str) -> Value:
    """The value that a text stands for.

    * `Tags`: a tuple of 1 to ``max_items`` distinct tags of the vocabulary in the order written, from a JSON list,
      lines, bullets or commas. Letter case, quotes and full stops do not matter. Other words are dropped.
    * `Choice`: the option that the text or its first line is, but for letter case, quotes and punctuation around it.
    * `ShortText`: the text after the prefix and before the first stop string, on one line, without quotes around it;
      a passage that is written over and over is kept once.
    * `Json`: the first JSON value in the text that fits the schema, in canonical form.

    A leading ``<think>`` block is passed over.

    Raises:
        InvalidOutput: The text is no value; says why.
    """
    text = _said(clean(completion_text, LONGEST))
    if isinstance(output, Tags):
        return _tags(output, text)
    if isinstance(output, Choice):
        return _choice(output, text)
    if isinstance(output, ShortText):
        return _short_text(output, text)
    if isinstance(output, Json):
        return _json(output, text)
    raise InvalidOutput("scores are computed and not written")


def columns_of_output(output: Output) -> list[tuple[str, ColumnType]]:
    """The columns of a value: what is put after the feature's name, and the type."""
    if isinstance(output, Tags):
        columns: list[tuple[str, ColumnType]] = [("", "strings")]
        columns += [("_ids", "ints")] if output.ids else []
        return columns + ([("_scores", "floats")] if output.scores else [])
    if isinstance(output, Scores):
        return [("", "floats" if output.of is None else "float")]
    return [("", "string")]


def ids_of(output: Tags, tags: Sequence[str]) -> tuple[int, ...]:
    """The positions of `tags` in the vocabulary."""
    positions = _positions(output.vocabulary)
    return tuple(positions[tag] for tag in tags)


# --- tags and choices


def _tags(output: Tags, text: str) -> tuple[str, ...]:
    if not output.vocabulary:
        raise InvalidOutput("the output has no vocabulary")
    found: dict[str, None] = {}
    unknown = ""
    for parts in _candidates(text, output.vocabulary):
        for piece, tag in _matches(parts, output.vocabulary):
            if tag is None:
                unknown = unknown or piece
            elif len(found) < output.max_items:
                found[tag] = None
    if found:
        return tuple(found)
    raise InvalidOutput(f"no tag of the vocabulary, but e.g. {quoted(unknown)}" if unknown else "nothing was written")


def _choice(output: Choice, text: str) -> str:
    strings = _json_strings(text)
    answer = strings[0] if strings is not None and len(strings) == 1 else _unfenced(text)
    for candidate in (answer, answer.partition("\n")[0]):
        option = _known(candidate, output.options)
        if option is not None:
            return option
    raise InvalidOutput(
        f"expected one of {len(output.options)} options, got {quoted(text)}" if text else "nothing was written"
    )


def _candidates(text: str, vocabulary: tuple[str, ...]) -> Iterator[list[str]]:
    """The lines of a text, each as parts that may be tags: part, separator, part, ..., part."""
    strings = _json_strings(text)
    if strings is not None:
        yield from ([item] for item in strings)
        return
    for line in _unfenced(text).split("\n"):
        line = line.strip()
        bullet = _BULLET.match(line)
        if bullet and not any(_known(text, vocabulary) for text in (line, _parts(line)[0])):
            line = line[bullet.end() :]
        if line:
            yield _parts(line)


def _parts(line: str) -> list[str]:
    parts: list[str] = []
    start = 0
    for mark in _SEPARATORS.finditer(line):
        parts += [line[start : mark.start()], mark[0]]
        start = mark.end()
    return [*parts, line[start:]]


def _matches(parts: list[str], vocabulary: tuple[str, ...]) -> Iterator[tuple[str, str | None]]:
    """Each part with its tag, or None; where a tag holds separators itself, the longest match wins."""
    widest = _widest(vocabulary)
    start = 0
    while start < len(parts):
        for width in range(min(widest, (len(parts) - start) // 2), -1, -1):
            piece = "".join(parts[start : start + 2 * width + 1]).strip()
            tag = _known(piece, vocabulary)
            label = _LABEL.match(piece) if tag is None and start == 0 else None
            if label:
                tag = _known(piece[label.end() :], vocabulary)
            if tag is not None or width == 0:
                break
        if piece:
            yield piece, tag
        start += 2 * width + 2


def _known(text: str, names: tuple[str, ...]) -> str | None:
    """The name that a text is, but for letter case and what stands around it."""
    exact, folded = _index(names)
    for form in _forms(text):
        name = exact.get(form) or folded.get(_folded(form))
        if name is not None:
            return name
    return None


def _forms(text: str) -> Iterator[str]:
    """A text, and what is left of it without the marks around it."""
    form = text.strip()
    for _ in range(6):
        yield form
        bare = _unquoted(form.lstrip("*_#[ ").rstrip("*_] ")).rstrip(_ENDS).strip()
        if bare == form:
            return
        form = bare


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


@functools.lru_cache(maxsize=64)
def _index(names: tuple[str, ...]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Names by themselves, and by their folded form where only one name has it."""
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(_folded(name), []).append(name)
    return {name: name for name in names}, {form: same[0] for form, same in folded.items() if len(same) == 1}


@functools.lru_cache(maxsize=64)
def _positions(names: tuple[str, ...]) -> Mapping[str, int]:
    return {name: position for position, name in enumerate(names)}


@functools.lru_cache(maxsize=64)
def _widest(names: tuple[str, ...]) -> int:
    """Most separators in one name."""
    return max((len(_SEPARATORS.findall(name)) for name in names), default=0)


# --- texts


def _short_text(output: ShortText, text: str) -> str:
    if output.prefix:
        before, found, text = text.partition(output.prefix)
        if not found:
            raise InvalidOutput(f"expected the marker {output.prefix!r}, got {quoted(before)}")
    text = text.strip()
    ends = [position for stop in output.stop if (position := text.find(stop)) >= 0]
    line = " ".join(text[: min(ends, default=len(text))].split())
    text = _cut(_without_repetition(_unquoted(line)), output.max_chars)
    if len(text) < output.min_chars:
        raise InvalidOutput(f"expected at least {output.min_chars} characters, got {quoted(text)}")
    return text


def _cut(text: str, most: int) -> str:
    """The text cut at the last word that fits."""
    if len(text) <= most:
        return text
    head = text[: most + 1]
    words = head.rsplit(" ", 1)[0] if " " in head else head[:most]
    return words.rstrip(" ,;:-\u2013\u2014")


def _without_repetition(text: str) -> str:
    """The text up to the first passage that is written three times in a row, which is kept once.

    Raises:
        InvalidOutput: It is one or two words over and over.
    """
    head = text[:_WINDOW]
    words = head.split(" ")
    if len(words) * 20 >= len(head):
        found = _repetition(words, _WORDS)
        if found is None:
            return text
        start, length = found
        kept = words[: start + length]
        distinct = len({word.casefold().strip(_ENDS) for word in words[start : start + length]})
        text, passage = " ".join(kept), " ".join(words[start : start + length])
    else:
        found = _repetition(head, _LETTERS)
        if found is None:
            return text
        start, length = found
        distinct, text, passage = len(set(head[start : start + length])), head[: start + length], head[start:][:length]
    if distinct < 3:
        raise InvalidOutput(f"the same words over and over: {quoted(passage)}")
    return text


def _repetition(parts: Sequence[str], least: int) -> tuple[int, int] | None:
    """Where the shortest passage of `least` or more parts begins that stands three times in a row, and its length."""
    windows = list(zip(*(parts[start:] for start in range(least)), strict=False))
    if len(windows) - len(set(windows)) < _TIMES - 1:  # nothing stands there so often, as in nearly all texts
        return None
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(part, len(numbers)) for part in parts])
    for length in range(least, min(len(ids) // _TIMES, _LONGEST_PASSAGE) + 1):
        differs = np.flatnonzero(np.concatenate(([True], ids[length:] != ids[:-length], [True])))
        runs = np.flatnonzero(np.diff(differs) > (_TIMES - 1) * length)
        if len(runs):
            return int(differs[runs[0]]), length
    return None


# --- JSON


def _json(output: Json, text: str) -> str:
    schema = _schema(output.schema)
    trouble = "no JSON value"
    for value in _values(text):
        try:
            reason = misfit(value, schema)
            canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            canonical.encode()  # an escaped lone surrogate is no text that a store takes
        except Exception as exc:  # numbers without end, lone surrogates, patterns that cannot be matched: all no value
            reason = f"{type(exc).__name__}: {exc}"
        if not reason:
            return canonical
        trouble = reason if trouble == "no JSON value" else trouble
    raise InvalidOutput(f"{trouble}, in {quoted(text)}" if text else "nothing was written")


@functools.lru_cache(maxsize=64)
def _schema(text: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(text)
    return schema


def _values(text: str) -> Iterator[Any]:
    """JSON values in a text, outermost ones, first to last."""
    for whole in dict.fromkeys((text, _unfenced(text))):
        value = _decoded(whole, 0)
        if value is not None and value[1] == len(whole):
            yield value[0]
            return
    position = 0
    for _ in range(_ATTEMPTS):
        found = _OPENING.search(text, position)
        if found is None:
            return
        value = _decoded(text, found.start())
        if value is not None:
            yield value[0]
        position = value[1] if value is not None else found.end()


def _decoded(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON value at a position and where it ends; None if there is none."""
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant, strict=False)  # models write line breaks inside of strings


def _json_strings(text: str) -> list[str] | None:
    """The strings of a JSON list, of an object with one list or string, or a JSON string; None for anything else."""
    bare = _unfenced(text).strip()
    if not bare.startswith(("[", "{", '"')):
        return None
    found = _decoded(bare, 0)
    if found is None:
        return None
    value = found[0]
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if isinstance(value, str):
        return [value] if bare.startswith("{") or found[1] == len(bare) else None
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else None


# --- what stands around an answer


def _said(text: str) -> str:
    """The text without a leading block of thoughts."""
    if match := _THOUGHT.match(text):
        return text[match.end() :].strip()
    if _OPEN_THOUGHT.match(text):
        raise InvalidOutput("the model did not end its thoughts; allow more new tokens, or switch thinking off")
    return text


def _unfenced(text: str) -> str:
    """What stands in the first code fence, or the text itself."""
    match = _FENCED.search(text)
    return match[1].strip() if match else text


def _unquoted(text: str) -> str:
    """The text without quotes around all of it."""
    text = text.strip()
    for first, last in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == first and text[-1] == last and first not in inner and last not in inner:
            return inner.strip()
    return text
