"""The page: whole, escaped, closed to the outside, and alive in a real browser."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from llmrec_plugin.pages import bars, data, document, element, table, tick, ticks
from llmrec_plugin.reporting.figures import Cache, Drift, Map, Report, Runs, Tokens, Values, Vectors
from llmrec_plugin.reporting.measures import histogram, neighbors, project
from llmrec_plugin.reporting.page import page

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>\"&amp;"
VIEW = "item_text_embedding"
ITEMS = 40


def item_map(*, texts=False):
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 8))
    near = neighbors(vectors, "cosine")
    keys = [HOSTILE, *(f"item {number}" for number in range(1, ITEMS))]
    return Map(
        method="principal components",
        shares=project(vectors, "cosine").shares,
        keys=keys,
        points=project(vectors, "cosine").points.tolist(),
        neighbors=near.rows.tolist(),
        similarities=near.similarities.round(4).tolist(),
        texts=[f"text of {key}" for key in keys] if texts else None,
    )


def lineage(view, **changed):
    known = {
        "view": view,
        "kind": "embedding",
        "when": "batch",
        "entity": "item",
        "fingerprint": "ab" * 32,
        "description": HOSTILE,
        "source": ("data/items.parquet",),
        "reads": ("item_text",),
        "columns": ("title",),
        "models": (("tiny", "cd" * 32),),
        "parameters": {"dims": 8},
        "read_by": ("score",),
        "served_by": (),
        "services": ("ranker",),
        "materialized_to": datetime(2026, 3, 1, tzinfo=UTC),
        "problem": "",
    }
    return SimpleNamespace(**known | changed)


@pytest.fixture(scope="module")
def report():
    norms = histogram(np.linspace(1, 2, ITEMS))
    vectors = Vectors(
        dims=8, metric="cosine", zeros=1, not_finite=2, smallest=1.0, mean=1.5, largest=2.0, norms=norms, map=item_map()
    )
    drift = Drift(
        served="ab" * 32, other="ef" * 32, role="waits", compared=40, equal=1, cosines=norms, mean_cosine=0.5,
        overlap=0.25, overlap_of=2, overlaps=[5, 30, 5], most_moved=[(HOSTILE, 0.1)],
    )  # fmt: skip
    tags = Tokens(output="tags", values=30, distinct=2, mean_size=1.5, most_frequent=[(HOSTILE, 20), ("web", 3)])
    hidden = Tokens(output="text", values=30, distinct=30, mean_size=40, most_frequent=None)
    rows = {"kind": "tokens", "entities": 1000, "sampled": 44, "found": 40, "null": 10, "statuses": {}}
    numbers = {"runs": 1, "empty": 0, "texts": 40, "tokens": 400, "seconds": 2.0}
    return Report(
        project=HOSTILE,
        version="1",
        made="2026-03-01T00:00:00+00:00",
        rows=40,
        features=[
            lineage(VIEW),
            lineage("item_tags", kind="tokens", read_by=(), services=()),
            lineage("score", when="on_demand", source=(), reads=(VIEW,), models=(), read_by=(), served_by=("ranker",)),
        ],
        values=[
            Values(
                view=VIEW, kind="embedding", entities=1000, sampled=44, found=42, null=2,
                statuses={"ok": 40, "empty": 2}, vectors=vectors, drift=drift,
            ),
            Values(view="item_tags", tokens=tags, **rows),
            Values(view="item_line", tokens=hidden, **rows),
            Values(view="broken", kind="embedding", entities=None, statuses={}, problem=HOSTILE),
        ],
        runs=[
            Runs(feature=VIEW, mode="batch", rows=40, invalid=0, fallback=0, cached=10, computed=30, **numbers),
            Runs(feature="item_tags", mode="batch", rows=40, invalid=5, fallback=2, cached=0, computed=40, **numbers),
        ],
        cache=Cache(entries=5, bytes=2**20, max_bytes=2**30, recorded=7),
    )  # fmt: skip


@pytest.fixture(scope="module")
def written(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(report), encoding="utf-8")
    return path


class Reader(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.shown, self._inside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._inside):
            self.shown.append(data)


def test_names_from_outside_are_text_and_nothing_else(written):
    read = Reader(written.read_text(encoding="utf-8"))
    tags = [tag for tag, _ in read.elements]
    assert "img" not in tags
    assert not [attributes for _, attributes in read.elements if any(name.startswith("on") for name in attributes)]
    assert tags.count("script") == 2  # the items of the map, and the program
    shown = " ".join(read.shown)
    assert shown.count("window.broken = 1</script>") >= 5


def test_nothing_is_asked_from_outside(written):
    text = written.read_text(encoding="utf-8")
    for tag, attributes in Reader(text).elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not [value for name, value in attributes.items() if name in ("src", "data", "action", "xlink:href")]
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_the_figures_are_on_the_page(written):
    shown = " ".join(Reader(written.read_text(encoding="utf-8")).shown)
    for words in (
        "up to 40 entities", "1,000", "status empty", "Norms 1.000 to 2.000", "1 are all zeros", "2 have a component",
        "abababababab is served, efefefefefef waits", "Of the 2 nearest neighbors 25.0% are the same", "12.5%",
        "Texts are shown with --texts only", "25.0% of 40 cached", "cdcdcdcdcdcd", "item_line",
    ):  # fmt: skip
        assert words in shown, words


def test_every_table_names_its_columns_and_rows(written):
    text = written.read_text(encoding="utf-8")
    for each in re.findall(r"<table.*?</table>", text, re.S):
        assert "<th scope='col'>" in each
        assert each.count("<tr>") - 1 == each.count("<th scope='row'>")


def test_without_its_script_a_point_has_its_key_and_a_table_the_neighbors(written):
    text = written.read_text(encoding="utf-8")
    assert len(re.findall(r"<circle [^>]*><title>", text)) == ITEMS
    assert "<label hidden='hidden'>" in text
    assert re.search(r"<th scope='row'>item 3</th><td>item \d+ 0\.\d{3}, ", text)


def test_a_page_without_anything_stored_says_so(report):
    empty = page(replace(report, features=[], values=[], runs=[]))
    assert "run `feast apply`" in empty
    assert "No view is materialized" in empty
    assert "class='map'" not in empty


def test_texts_are_there_only_if_they_were_asked_for(report):
    [first, *others] = report.values
    shown = replace(first, vectors=replace(first.vectors, map=item_map(texts=True)))
    assert "text of item 3" not in page(report)
    assert "text of item 3" in page(replace(report, values=[shown, *others]))


def test_a_script_that_is_not_the_pages_own_is_not_in_its_policy():
    made = document("title", [element("p", "x")], script="let a = 1;")
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", made)
    assert "script-src" not in document("title", [])


def test_json_in_a_page_cannot_end_its_element():
    made = data({"key": HOSTILE})
    assert made.count("<") == 2
    assert json.loads(made.partition(">")[2].rpartition("<")[0]) == {"key": HOSTILE}


def test_cells_and_bars_are_escaped():
    assert "<img" not in table([HOSTILE], [[HOSTILE]], caption=HOSTILE) + bars([(HOSTILE, 1, HOSTILE)], HOSTILE)


def test_ticks_are_round_and_inside():
    assert list(map(tick, ticks(-0.031, 0.052))) == ["-0.02", "0", "0.02", "0.04"]
    assert list(map(tick, ticks(0, 1))) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert ticks(1, 1) == []


def test_the_command_is_listed_without_loading_anything_heavy():
    script = "import sys, llmrec_plugin.reporting.commands\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"feast", "numpy", "pandas", "pyarrow", "onnxruntime", "torch"}


# --- in a browser


def test_a_browser_shows_the_page_without_a_complaint_and_runs_nothing_of_it(browser, written):
    browser.open(written)
    assert browser.evaluate("document.querySelectorAll('.map circle').length") == ITEMS
    assert browser.evaluate("window.broken") is None
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    assert browser.complaints == []
    assert browser.requests == []


def neighbors_shown(browser):
    return browser.evaluate(
        "[document.querySelector('.map output b')?.textContent,"
        " [...document.querySelectorAll('.map li')].map(item => item.firstChild.textContent),"
        " document.querySelectorAll('.map .lines line').length]"
    )


def test_pointing_at_an_item_shows_its_neighbors(browser, written, report):
    items = report.values[0].vectors.map
    browser.open(written)
    browser.evaluate("document.querySelector('.map').scrollIntoView()")
    for row in (0, 7):
        box = f"document.querySelectorAll('.map circle')[{row}].getBoundingClientRect()"
        x, y = browser.evaluate(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        browser.move(x, y)
        key, near, lines = neighbors_shown(browser)
        assert key == items.keys[row]
        assert near == [items.keys[other] for other in items.neighbors[row]]
        assert lines == 5
    assert browser.evaluate("window.broken") is None
    assert browser.complaints == []


def test_an_item_is_found_by_its_key_and_by_the_pages_address(browser, written, report):
    items = report.values[0].vectors.map
    browser.open(written)
    browser.evaluate("document.querySelector('.map input').focus()")
    browser.type("item 12")
    assert neighbors_shown(browser)[:2] == ["item 12", [items.keys[other] for other in items.neighbors[12]]]
    browser.open(written, fragment=f"#map-{VIEW}%3Ditem%2020")
    assert neighbors_shown(browser)[0] == "item 20"
    assert browser.complaints == []


def test_the_page_fits_a_phone_is_dark_if_asked_and_prints_tables(browser, written):
    browser.open(written, width=380)
    folded = "document.querySelector('details table').checkVisibility({contentVisibilityAuto: true})"
    assert browser.evaluate(folded) is False
    assert browser.evaluate("document.documentElement.scrollWidth") == 380
    colors = []
    for dark in (False, True):
        browser.emulate(dark=dark)
        colors.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colors == ["rgb(255, 255, 255)", "rgb(18, 22, 28)"]
    browser.emulate(dark=True, media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate(folded) is True
    assert browser.evaluate("document.querySelector('nav').checkVisibility()") is False
