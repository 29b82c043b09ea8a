"""Self-contained HTML pages: text that is always escaped, tables, and plots as inline SVG.

A page needs nothing from outside and says so to the browser, by a content security policy that allows its own style
and script and nothing else. What is not `Html` is text from somewhere, and is escaped wherever it is put.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from importlib.resources import files

from llmrec_plugin.pages.markup import Html, data, element, joined, table, text
from llmrec_plugin.pages.plots import bars, histogram, plot, shortened, stacked, tick, ticks

__all__ = [
    "Html",
    "bars",
    "data",
    "document",
    "element",
    "histogram",
    "joined",
    "plot",
    "shortened",
    "stacked",
    "table",
    "text",
    "tick",
    "ticks",
]


def document(title: str, body: Iterable[object], *, style: str = "", script: str = "") -> str:
    """The whole page.

    Args:
        title: Title of the window.
        body: What it shows.
        style: CSS besides that of every page.
        script: JavaScript that runs when everything is there. Must not hold ``</``.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; " if script else ""
    policy = f"default-src 'none'; {allowed}style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    css = files(__package__).joinpath("page.css").read_text(encoding="utf-8") + style
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'/>"
        f"<meta http-equiv='Content-Security-Policy' content=\"{policy}\"/>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'/>"
        f"<title>{text(title)}</title><style>{css}</style></head>\n<body>\n"
        + joined(body, "\n")
        + (f"\n<script>{script}</script>" if script else "")
        + "\n</body></html>\n"
    )
