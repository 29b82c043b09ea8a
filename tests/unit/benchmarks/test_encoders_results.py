"""Figures, tables and the rows of the encoder benchmark."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.encoders import chart, environments, machine, report, results
from benchmarks.encoders.engines import ENGINES, OURS, PLAIN, REFERENCE, select
from benchmarks.encoders.flops import matmul_flops

ROOT = Path(__file__).parents[3]


def seen(seconds, cosine=1.0):
    return {
        "seconds": seconds,
        "cpu_seconds": [2 * value for value in seconds],
        "milliseconds": [1.0, 2.0, 3.0],
        "cosine_min": cosine,
        "cosine_mean": cosine,
        "overlap": 1.0,
        "peak_rss_mb": 100.0,
    }


OBSERVED = {"us": seen([1.0, 4.0, 1.0]), "plain": seen([2.0, 8.0, 3.0]), "coarse": seen([0.5, 0.5, 0.5], 0.98)}


def rows_of(observed):
    found = results.rows(
        observed, texts=8, tokens=40, flops=16e9, peak_gflops=10, peers=["plain", "coarse"], plain="plain"
    )
    return {row.name: row for row in found}


# --- arithmetic


@pytest.mark.parametrize(("hidden", "inner", "layers", "lengths"), [(8, 32, 2, [5]), (12, 20, 3, [1, 7, 7])])
def test_flops_are_those_of_the_layers_matrix_products(hidden, inner, layers, lengths):
    def product(m, k, n):
        return 2 * m * k * n

    heads = 4
    expected = 0
    for length in lengths:
        layer = 4 * product(length, hidden, hidden)  # query, key, value, output
        layer += heads * (product(length, hidden // heads, length) + product(length, length, hidden // heads))
        layer += product(length, hidden, inner) + product(length, inner, hidden)
        expected += layers * layer
    config = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    assert matmul_flops(config, np.array(lengths)) == expected


def test_ratios_are_taken_within_rounds_so_that_a_slow_round_cancels():
    assert results.ratio(OBSERVED, "us", "plain") == 2.0
    assert results.ratio(OBSERVED, "plain", "us") == 0.5
    assert results.ratio(OBSERVED, "us", None) is None
    assert results.ratio(OBSERVED, "us", "missing") is None


def test_the_best_peer_must_have_the_reference_vectors():
    assert results.best_exact(OBSERVED, ["plain", "coarse"]) == "plain"
    assert results.best_exact(OBSERVED, ["coarse"]) is None


def test_a_row_holds_medians_and_extremes():
    row = rows_of(OBSERVED)["us"]
    assert (row.texts_per_s, row.texts_per_s_min, row.texts_per_s_max) == (8, 2, 8)
    assert row.tokens_per_s == 40
    assert row.cpu_ms_per_text == pytest.approx(2 / 8 * 1000)
    assert row.peak_share == pytest.approx(1.6)  # 16 of 10 GFLOP/s
    assert (row.against_plain, row.against_best) == (2, 2)
    assert row.p50_ms == 2
    assert row.exact
    assert not rows_of(OBSERVED)["coarse"].exact


def test_cosines_do_not_depend_on_length_and_a_zero_vector_has_none():
    reference = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])
    vectors = np.array([[5.0, 0.0], [4.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(results.cosines(vectors, reference), [1, 0.96, 0])


def test_a_text_is_not_its_own_neighbor():
    vectors = np.random.default_rng(0).standard_normal((30, 4))
    found = results.nearest(vectors)
    assert found.shape == (30, results.NEIGHBORS)
    assert all(row not in found[row] for row in range(30))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert found[3, 0] == max((i for i in range(30) if i != 3), key=lambda i: unit[i] @ unit[3])


def test_overlap_is_one_for_the_same_vectors_and_chance_for_others():
    random = np.random.default_rng(0)
    vectors, others = random.standard_normal((2, 200, 16))
    assert results.overlap(vectors, 3 * vectors) == 1
    assert results.overlap(vectors, others) == pytest.approx(10 / 199, abs=0.03)


# --- tables


@pytest.fixture
def result():
    """A result of two engines and one that failed."""
    about = {"setup": "", "environ": {}, "versions": {"lib": "1.0"}, "failure": None, "import_s": 0.5}
    about |= {"first_result_s": 1.25, "idle_cores": 0.0}
    engines = {
        "us": {**about, "label": "Us", "ours": True},
        "plain": {**about, "label": "Plain", "ours": False},
        "gone": {**about, "label": "Gone", "ours": False, "failure": "it does not install"},
    }
    rows = [vars(row) for row in rows_of({name: OBSERVED[name] for name in ("us", "plain")}).values()]
    found = {"corpus": "mixed", "busy": 0, "texts": 8, "tokens": 40, "compared": 20, "others": 0.25}
    return {
        "begun": "2030-01-02T03:04+00:00",
        "machine": machine.describe(),
        "model": "some-model",
        "rounds": 3,
        "peaks": [{"type": "fp32", "library": "numpy", "shape": [2, 3, 4], "gflops": 9.7}],
        "engines": engines,
        "passes": [{**found, "best_exact_peer": "plain", "rows": rows}],
    }


def test_a_table_has_a_line_per_row_and_equal_widths():
    lines = report.table(["name", "n"], [["a", "1"], ["long name", "22"]]).splitlines()
    assert lines == ["| name      |  n |", "| --------- | -: |", "| a         |  1 |", "| long name | 22 |"]


@pytest.mark.parametrize("name", report.BLOCKS)
def test_every_block_can_be_written(result, name):
    block = report.BLOCKS[name](result)
    assert block
    assert ("Not measured." in block) == (name in ("long", "busy", "single-busy"))


def test_ours_stands_out_and_the_fastest_comes_first(result):
    names = [line.split("|")[1].strip() for line in report.BLOCKS["mixed"](result).splitlines()[2:4]]
    assert names == ["**Us**", "Plain"]


def test_a_round_with_nothing_to_sort_is_said_to_be_unfair(result):
    assert "Too few for a fair comparison" in report.BLOCKS["mixed"](result)
    result["passes"][0]["texts"] = results.FEW
    assert "Too few" not in report.BLOCKS["mixed"](result)


def test_an_engine_that_failed_is_named_with_its_reason(result):
    assert "Gone: lib 1.0; **not measured: it does not install**" in report.BLOCKS["engines"](result)


def test_only_what_stands_between_markers_is_replaced(result):
    text = "before\n<!-- encoders:peaks -->\nold\n<!-- /encoders:peaks -->\nafter\n"
    new = report.update(text, result)
    assert new == f"before\n<!-- encoders:peaks -->\n{report.peaks(result)}\n<!-- /encoders:peaks -->\nafter\n"
    assert report.update(new, result) == new


def test_a_marker_of_no_block_is_refused(result):
    with pytest.raises(ValueError, match=r"No block is called nothing. There are: headline, "):
        report.update("<!-- encoders:nothing -->\n<!-- /encoders:nothing -->", result)


def test_a_marker_without_an_end_is_refused(result):
    with pytest.raises(ValueError, match="Expected an end"):
        report.update("<!-- encoders:peaks -->\n", result)


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks/encoders.md"])
def test_the_published_tables_are_those_of_the_published_result(page):
    published = json.loads((ROOT / "docs/benchmarks/encoders.json").read_text(encoding="utf-8"))
    text = (ROOT / page).read_text(encoding="utf-8")
    assert report.update(text, published) == text


def test_the_chart_takes_the_readers_text_color():
    svg = chart.adapt(f'<?xml version="1.0"?><svg width="9"><text style="fill: {chart.INK}">a</text></svg>')
    assert svg.startswith(f'<?xml version="1.0"?><svg width="9">{chart.STYLE}<text style="fill: currentColor">')


# --- rows and environments


def test_every_engine_has_a_name_of_its_own_an_adapter_and_pinned_requirements():
    names = [engine.name for engine in (*ENGINES, REFERENCE)]
    assert len(set(names)) == len(names)
    for engine in ENGINES:
        assert (ROOT / engine.adapter.replace(".", "/")).with_suffix(".py").is_file()
        assert engine.ours == (engine in OURS)
    assert PLAIN in ENGINES
    for path in environments.REQUIREMENTS.glob("*.txt"):
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"[\w.-]+==[\w.]+", line), f"{path.name}: {line}"
    assert {engine.environment for engine in ENGINES} - {None} <= {p.stem for p in environments.REQUIREMENTS.glob("*")}


def test_engines_are_chosen_by_name_in_the_order_of_the_table():
    assert [engine.name for engine in select(["fastembed", "llmrec"])] == ["llmrec", "fastembed"]
    assert select([]) == ENGINES
    with pytest.raises(SystemExit, match=r"No engine is called nobody\. There are: llmrec, "):
        select(["nobody"])


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A folder of requirements, and the commands that would be run; one that holds "broken" fails."""
    (tmp_path / "peer.txt").write_text("peer==1.0\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    commands = []

    def run(command, **_):
        commands.append(list(map(str, command)))
        place = tmp_path / "environments" / "peer"
        place.mkdir(parents=True, exist_ok=True)
        broken = "pip" in commands[-1] and "broken" in (tmp_path / "peer.txt").read_text()
        errors = "WARNING: slow\nERROR: no matching distribution\n" if broken else ""
        return environments.subprocess.CompletedProcess(command, int(broken), "", errors)

    monkeypatch.setattr(environments.subprocess, "run", run)
    return commands


def test_an_environment_is_made_anew_only_when_its_requirements_change(tmp_path, pip):
    folder = tmp_path / "environments"
    python = environments.python_of("peer", folder)
    assert python == str(folder / "peer" / "bin" / "python")
    assert len(pip) == 2  # venv, then pip
    environments.python_of("peer", folder)
    assert len(pip) == 2
    (tmp_path / "peer.txt").write_text("peer==1.1\n")
    environments.python_of("peer", folder)
    assert len(pip) == 4


def test_an_environment_that_does_not_install_says_why_and_is_tried_again(tmp_path, pip):
    (tmp_path / "peer.txt").write_text("broken==1.0\n")
    for tries in (1, 2):
        with pytest.raises(environments.InstallError, match=r"peer.txt does not install: ERROR: no matching"):
            environments.python_of("peer", tmp_path / "environments")
        assert len(pip) == 2 * tries


def test_the_projects_own_environment_is_this_one(tmp_path):
    assert environments.python_of(None, tmp_path) == environments.sys.executable


def test_the_machine_is_described():
    about = machine.describe()
    assert about["cores"] >= 1
    assert set(about["flags"]) <= set(machine.FLAGS)


def test_texts_are_the_same_in_every_run_and_of_the_kind_asked_for(tiny):
    from benchmarks.encoders.corpus import SAMPLE, SHORT_TOKENS, Texts

    def corpora():
        texts = Texts(SAMPLE, tiny.path("tokenizer.json"), 40)
        return texts.mixed(100), texts.long(20), texts.short(20)

    mixed, long, short = corpora()
    assert [corpus.texts for corpus in corpora()] == [mixed.texts, long.texts, short.texts]
    assert len(set(mixed.texts)) == len(mixed.texts) == len(mixed.lengths) == 100
    assert set(long.lengths) == {40}
    assert set(short.lengths) <= set(SHORT_TOKENS)
    assert mixed.tokens == mixed.lengths.sum()
