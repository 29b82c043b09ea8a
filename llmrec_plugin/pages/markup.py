"""Text that is always escaped unless it is known to be HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as HTML: as it is if it is `Html`, else escaped, for text and for attributes in quotes."""
    return value if isinstance(value, Html) else Html(html.escape(str(value), quote=True))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """``<tag>`` around its content; a trailing ``_`` of an attribute's name is dropped, an inner one is a hyphen."""
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}='{text(value)}'" for name, value in attributes.items() if value != ""
    )
    return Html(f"<{tag}{written}>{joined(content)}</{tag}>")


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Parts side by side."""
    return Html(between.join(map(text, parts)))


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, caption: str = "", words: bool = False
) -> Html:
    """A table whose first column names the rows.

    Args:
        header: The columns' names.
        rows: Their cells.
        caption: Says what the table holds.
        words: Cells hold words, not numbers: they are set left and wrap.
    """
    head = joined(element("th", cell, scope="col") if text(cell) else Html("<td></td>") for cell in header)
    body = joined(
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    )
    about = element("caption", caption) if caption else ""
    parts = [about, element("thead", element("tr", head)) if any(header) else "", element("tbody", body)]
    inner = element("table", *parts, class_="words" if words else "")
    return element("div", inner, class_="scroll")


def data(value: Any) -> Html:
    """JSON for a script of the page to read; nothing in it can end the element or run."""
    written = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        written = written.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f"<script type='application/json'>{written}</script>")
