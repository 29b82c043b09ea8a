"""The site can be built, every page is in it, and no link is broken."""

import subprocess
import sys

import pytest
import yaml
from docs.pages import DOCS, PAGES, ROOT, anchors, links, name_of, read


class _Configuration(yaml.SafeLoader):
    """Reads mkdocs.yml without calling what it names."""


_Configuration.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def listed(entry):
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        return {entry}
    parts = entry.values() if isinstance(entry, dict) else entry
    return {page for part in parts for page in listed(part)}


@pytest.fixture(scope="module")
def navigation():
    return listed(yaml.load(read(ROOT / "mkdocs.yml"), Loader=_Configuration)["nav"])


def test_every_page_is_in_the_navigation(navigation):
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    decisions = {page for page in pages if page.startswith("adr/0")}
    assert pages - decisions - navigation == set(), "add them to `nav` in mkdocs.yml"


def test_the_navigation_names_pages_that_exist(navigation):
    repository = {page for page in navigation if page.startswith("repository/")}
    assert {page for page in navigation - repository - {"index.md"} if not (DOCS / page).is_file()} == set()
    assert {page for page in repository if not (ROOT / page.removeprefix("repository/")).is_file()} == set()


def test_every_decision_is_in_their_list():
    text = read(DOCS / "adr/index.md")
    for page in sorted(DOCS.glob("adr/0*.md")):
        title = read(page).partition("\n")[0].partition(". ")[2]
        assert f"[{title}]({page.name})" in text, "add the line to docs/adr/index.md"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target, anchor in links(page):
        place = (page.parent / target).resolve() if target else page
        place = place / "README.md" if anchor and place.is_dir() else place
        assert place.exists(), f"{name_of(page)} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(place), f"{name_of(page)} links to #{anchor}; {place.name} has {anchors(place)}"


def test_headings_become_the_anchors_that_github_gives_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One: `two_three`, four\n\n## [Five](six.md)\n\n```\n# not one\n```\n\n## Five\n", encoding="utf-8"
    )
    assert anchors(page) == {"one-two_three-four", "five", "five-1"}


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for place in ("index.html", "concepts/index.html", "reference/declarations/index.html", "adr/index.html"):
        assert (tmp_path / "site" / place).is_file()
    assert "EmbeddingFeature" in (tmp_path / "site/reference/declarations/index.html").read_text(encoding="utf-8")
