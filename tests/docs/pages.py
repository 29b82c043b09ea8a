"""The pages of the documentation, their code and their links."""

from __future__ import annotations

import re
import string
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted(DOCS.rglob("*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
    *sorted(ROOT.glob("*/README.md")),
]
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^\n|\A)((?: {4}[^\n]*\n|\n)+)", re.MULTILINE)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks in a language; "" for those without one."""
    return [code for _, found, code in _FENCE.findall(read(page)) if found == language]


def commands(page: Path) -> list[str]:
    """The command lines of blocks, fenced or indented, that begin with ``llmrec``."""
    text = read(page)
    shells = [code for _, language, code in _FENCE.findall(text) if language in ("", "bash", "console", "sh")]
    code = "\n".join([*shells, *_INDENTED.findall(_FENCE.sub("", text))])
    lines = re.sub(r"\\\n\s*", " ", code).splitlines()
    return [line.strip().removeprefix("$ ") for line in lines if re.match(r"\s*(\$ )?llmrec ", line)]


def links(page: Path) -> list[tuple[str, str]]:
    """Links within the repository: the file, "" for the page itself, and the anchor, "" for none."""
    text = re.sub(r"`[^`\n]+`", "", _FENCE.sub("", read(page)))
    found = re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)", text)
    return [(target, anchor) for target, anchor in found if target or anchor]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *#*$", _FENCE.sub("", read(page)), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        kept = "".join(char for char in plain if char in "-_ " or char not in string.punctuation)
        slug = kept.strip().replace(" ", "-")
        number = sum(1 for other in found if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other))
        found.add(f"{slug}-{number}" if number else slug)
    return found
