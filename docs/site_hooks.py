"""Makes the site of the repository's pages: README.md is its home, and files outside docs/ that are linked come along.

Links in the sources are those of the repository, so that they work there; here they are turned into links of the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)#\s]+)(#[^)\s]*)?(\))")
HOME, OUTSIDE = "README.md", "repository/"


def on_files(files: Files, config: Any) -> Files:
    """Adds the README as the home page, and every file outside docs/ that a page links to, and those that they do."""
    waiting = [HOME, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        source = waiting.pop()
        if not source.startswith("docs/"):
            files.append(File.generated(config, _place(source), abs_src_path=str(ROOT / source)))
        if source.endswith(".md"):
            linked = {_target(source, link) for _, link, _, _ in LINK.findall((ROOT / source).read_text("utf-8"))}
            found = sorted(path for path in linked - seen if not path.startswith("docs/"))
            waiting += found
            seen.update(found)
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turns the repository's links into those of the site, and gives pages that stand alone their whole width."""
    place = page.file.src_uri
    source = _source(place)
    if page.parent is None:  # a page beside no other: its column of the navigation would only name itself
        page.meta.setdefault("hide", ["navigation"])

    def turn(match: re.Match[str]) -> str:
        target = posixpath.relpath(_place(_target(source, match[2])), posixpath.dirname(place) or ".")
        return f"{match[1]}{target}{match[3] or ''}{match[4]}"

    return LINK.sub(turn, markdown)


def _target(source: str, link: str) -> str:
    """The path, from the repository's root, to which a page links; a folder stands for its README."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if (ROOT / path).is_dir():
        path = posixpath.join(path, "README.md")
    if not (ROOT / path).is_file() or os.path.commonpath([ROOT, (ROOT / path).resolve()]) != str(ROOT):
        raise PluginError(f"{source} links to {link}, and the repository has no file {path}. Mend the link.")
    return path


def _place(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path == HOME:
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else OUTSIDE + path


def _source(place: str) -> str:
    """The file of the repository that lies there in the site."""
    if place == "index.md":
        return HOME
    return place.removeprefix(OUTSIDE) if place.startswith(OUTSIDE) else f"docs/{place}"
