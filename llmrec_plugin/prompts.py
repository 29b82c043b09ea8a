"""Prompts written as files.

    ---
    prompt: film_genres
    version: 2
    slots:
      title: {type: text, max_tokens: 64}
      plot: {max_tokens: 400, required: false}
    ---
    [system]
    You know films.
    [user]
    Name the genres of this film.
    Title: {{title}}
    Plot: {{plot}}

The header is YAML and holds nothing else. ``[system]`` may be left out. Line breaks at the beginning and the end of a
section are not part of it.
"""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from llmrec_plugin.errors import DeclarationError
from llmrec_plugin.specs import Prompt, Slot
from llmrec_plugin.specs.prompts import SLOT

_HEADER = ("prompt", "version", "slots")
_SLOT_FIELDS = tuple(item.name for item in fields(Slot) if item.name != "name")
_SECTIONS = ("[system]", "[user]")


def load_prompt(place: str | Path) -> Prompt:
    """The prompt in a file.

    Args:
        place: The file, or ``package:<module>/<file>`` for one inside an installed Python package.

    Raises:
        DeclarationError: There is no such file, or it is no prompt; names file, line and what to do.
    """
    return parse_prompt(_read(place), str(place))


def parse_prompt(text: str, place: str) -> Prompt:
    """The prompt that a file's text describes.

    Args:
        text: The whole file.
        place: The file, for messages.

    Raises:
        DeclarationError: It is no prompt; names file, line and what to do.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    where = _Place(place)
    closing = next((number for number, line in enumerate(lines) if number and line.rstrip() == "---"), None)
    if lines[0].rstrip() != "---" or closing is None:
        where.refuse(
            1, "expected a header between two lines '---', with prompt, version and slots; write it above the text"
        )
    header, marks = _header("\n".join(lines[1:closing]), where)
    sections, starts = _sections(lines, closing + 1, where)
    user = sections["[user]"]
    _check_slots(user, starts["[user]"], set(header["slots"]), where)
    try:
        slots = tuple(Slot(name=name, **values) for name, values in header["slots"].items())
        return Prompt(
            name=header["prompt"],
            version=header["version"],
            system=sections.get("[system]", ""),
            user=user,
            slots=slots,
        )
    except DeclarationError as exc:
        named = re.match(r"slot (?:name )?'([^']*)'", str(exc))
        where.refuse(marks.get(f"slot {named[1]}" if named else "version", 1), str(exc).rstrip("."), exc)


class _Place:
    """Where something stands, for messages."""

    def __init__(self, file: str) -> None:
        self._file = file

    def refuse(self, line: int, trouble: str, cause: Exception | None = None) -> NoReturn:
        raise DeclarationError(f"{self._file}, line {line}: {trouble}.") from cause


def _read(place: str | Path) -> str:
    text = str(place)
    try:
        if isinstance(place, str) and place.startswith("package:"):
            module, _, inner = place.removeprefix("package:").partition("/")
            if not module or not inner or ".." in PurePosixPath(inner).parts:
                raise DeclarationError(
                    f"{place}: expected 'package:<module>/<file>', e.g. 'package:my_features/genres.md'."
                )
            data = importlib.resources.files(module).joinpath(inner).read_bytes()
        else:
            data = Path(place).read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise DeclarationError(
            f"{text}, line {line}: expected UTF-8 text, got {exc.reason}; save it as UTF-8."
        ) from exc
    except (ImportError, TypeError) as exc:  # TypeError: a module that is no package
        raise DeclarationError(
            f"{text}: the package cannot be imported ({exc}). Expected 'package:<module>/<file>' of a package that is "
            "installed in this environment."
        ) from exc
    except OSError as exc:
        raise DeclarationError(
            f"{text}: the prompt cannot be read ({exc.strerror or exc}). Expected a file, or 'package:<module>/<file>' "
            "with the file in the package's data. Relative paths start at the working directory "
            f"({Path.cwd()}); write Path(__file__).parent / 'prompts' / ... instead."
        ) from exc


def _header(text: str, where: _Place) -> tuple[dict[str, Any], dict[str, int]]:
    """The header, and the line of each of its names and slots."""
    import yaml  # here: a process that serves rebuilds prompts from JSON and needs none of it

    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError as exc:  # a control character
        where.refuse(2, f"the header is no YAML: {exc}", exc)
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            where.refuse(2, "expected a header 'prompt: <name>', 'version: <number>', 'slots: ...'")
        marks: dict[str, int] = {}
        slots_node = None
        for key, value in _pairs(root, _HEADER, "the header", where):
            marks[key] = _line(value)
            slots_node = value if key == "slots" else slots_node
        for name in _HEADER:
            if name not in marks:
                where.refuse(2, f"the header has no {name!r}; add it")
        if not isinstance(slots_node, yaml.MappingNode):
            where.refuse(marks["slots"], "slots must map names to types, e.g. 'title: {type: text, max_tokens: 64}'")
        for name, value in _pairs(slots_node, None, "slots", where):
            marks[f"slot {name}"] = _line(value)
            if isinstance(value, yaml.MappingNode):
                list(_pairs(value, _SLOT_FIELDS, f"slot {name!r}", where))
            elif getattr(value, "value", None) not in ("", "null", "~"):
                where.refuse(_line(value), f"slot {name!r} must be a mapping, e.g. '{name}: {{max_tokens: 64}}'")
        header = loader.construct_document(root)
        header["slots"] = {name: values or {} for name, values in header["slots"].items()}
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 2 if exc.problem_mark else 2
        where.refuse(line, f"the header is no YAML: {exc.problem}", exc)
    except DeclarationError:
        raise
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as exc:
        # PyYAML raises these of a date without such a day, of '!!int +', '!!bool x', '!!timestamp x', lists in lists.
        where.refuse(2, f"the header is no YAML: {exc}", exc)
    finally:
        loader.dispose()
    return header, marks


def _pairs(node: Any, allowed: Iterable[str] | None, owner: str, where: _Place) -> Iterable[tuple[str, Any]]:
    """The names and nodes of a mapping, each name once and one of `allowed`."""
    seen: set[str] = set()
    for key, value in node.value:
        name = key.value if isinstance(key.value, str) else "?"
        if name in seen:
            where.refuse(_line(key), f"{owner} has {name!r} twice; remove one")
        if allowed is not None and name not in allowed:
            near = difflib.get_close_matches(name, list(allowed), n=1)
            hint = f"did you mean {near[0]!r}" if near else f"it may hold {', '.join(allowed)}"
            where.refuse(_line(key), f"{owner} holds {name!r}, which means nothing here; {hint}")
        seen.add(name)
        yield name, value


def _line(node: Any) -> int:
    """The line of the file; the header begins on its second."""
    return int(node.start_mark.line) + 2


def _sections(lines: list[str], first: int, where: _Place) -> tuple[dict[str, str], dict[str, int]]:
    """The text of each section, and the number of its first line in the file."""
    heads = [number for number in range(first, len(lines)) if lines[number].rstrip() in _SECTIONS]
    for number in range(first, heads[0] if heads else len(lines)):
        if lines[number].strip():
            where.refuse(number + 1, "expected a line '[system]' or '[user]' before the text; add it")
    sections: dict[str, str] = {}
    starts: dict[str, int] = {}
    for head, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        name = lines[head].rstrip()
        if name in sections:
            where.refuse(head + 1, f"a second section {name}; a prompt has one of each")
        begin = head + 1
        while begin < end and not lines[begin].strip():
            begin += 1
        sections[name] = "\n".join(lines[begin:end]).rstrip("\n")
        starts[name] = begin + 1
    if "[user]" not in sections:
        where.refuse(len(lines), "there is no section [user], which holds the text with the slots; add it")
    if SLOT.search(sections.get("[system]", "")):
        where.refuse(starts["[system]"], "[system] holds a slot; data belongs into [user]")
    return sections, starts


def _check_slots(user: str, start: int, declared: set[str], where: _Place) -> None:
    for number, line in enumerate(user.split("\n"), start):
        for name in SLOT.findall(line):
            if name not in declared:
                near = difflib.get_close_matches(name, sorted(declared), n=1)
                hint = f"did you mean {near[0]!r}" if near else "declare it under slots in the header"
                where.refuse(number, f"the slot {name!r} is not declared; {hint}")
        if "{{" in SLOT.sub("", line):
            where.refuse(number, "'{{' begins a slot, written as {{name}} with letters, digits and '_'")
    for name in sorted(declared - set(SLOT.findall(user))):
        where.refuse(start, f"the slot {name!r} is declared, but the text does not use it; write {{{{{name}}}}}")
