"""Reads docs/how-to/write-a-plugin.md: its commands, its files and what it says is printed, in their order."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to" / "write-a-plugin.md"
EXAMPLES = ROOT / "examples" / "plugins"
_ITEM = re.compile(
    r"^    (?P<command>[^\s][^\n]*)\n|^```(?P<language>\w+)\n(?P<text>.*?)^```\n", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"`([\w./-]+\.(?:py|toml|yaml|md))`")


@dataclass(frozen=True)
class Command:
    """A line that the reader types, and the lines that the page says it prints."""

    line: str
    printed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """Code of the file that was named last, as it stands below `EXAMPLES`."""

    file: Path
    text: str

    @property
    def is_whole(self) -> bool:
        return self.text == self.file.read_text(encoding="utf-8")


def steps() -> list[Command | Listing]:
    """What the reader does."""
    page = PAGE.read_text(encoding="utf-8")
    found: list[Command | Listing] = []
    prose = 0
    named = ""
    for item in _ITEM.finditer(page):
        named = [named, *_FILE.findall(page[prose : item.start()])][-1]
        prose = item.end()
        if item["command"]:
            found.append(Command(item["command"]))
        elif item["language"] == "text":
            last = found[-1]
            assert isinstance(last, Command), f"what prints this? {item['text']}"
            found[-1] = Command(last.line, tuple(item["text"].splitlines()))
        else:
            found.append(Listing(_below_examples(named), item["text"]))
    return found


def _below_examples(name: str) -> Path:
    """The file that the page calls `name`: of the shop, or of the only plugin that has it, acme before moods."""
    places = [EXAMPLES / name, EXAMPLES / "llmrec-acme" / name, EXAMPLES / "llmrec-moods" / name]
    return next((place for place in places if place.is_file()), places[0])
