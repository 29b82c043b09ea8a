"""The example ranker knows Feast only, and its metrics are the usual ones."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest

RANKER = Path(__file__).parents[2] / "examples" / "ranker"
ALLOWED = {
    "ranker.py": {"feast", "lightgbm", "metrics", "numpy", "pandas", "report", "tqdm"},
    "metrics.py": {"numpy"},
    "report.py": {"rich"},
}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


@pytest.fixture(scope="module")
def metrics():
    spec = importlib.util.spec_from_file_location("ranker_metrics", RANKER / "metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ALLOWED)
def test_the_ranker_never_imports_this_package(name):
    import sys

    outside = {module for module in _imports(RANKER / name) if module not in sys.stdlib_module_names}
    assert outside <= ALLOWED[name]


def test_metrics_agree_with_scikit_learn(metrics):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with the extra 'ranker'")
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.permutation([True] * 4 + [False] * 30)
        scores = rng.standard_normal(len(labels))
        ndcg, recall, auc = metrics.list_metrics(scores, labels)
        assert ndcg == pytest.approx(sklearn.ndcg_score([labels.astype(float)], [scores], k=10))
        assert auc == pytest.approx(sklearn.roc_auc_score(labels, scores))
        assert recall == pytest.approx(labels[np.argsort(-scores)[:10]].sum() / 4)


def test_a_constant_score_earns_no_more_than_chance(metrics):
    labels = np.array([True] + [False] * 39)
    assert metrics.list_metrics(np.zeros(40), labels)[2] == pytest.approx(0.5)


def test_the_bootstrap_interval_holds_the_mean_and_shrinks_with_more_lists(metrics):
    rng = np.random.default_rng(1)
    few, many = rng.normal(0.1, 1, 50), rng.normal(0.1, 1, 5000)
    intervals = [metrics.bootstrap_mean(values) for values in (few, many)]
    for (mean, low, high), values in zip(intervals, (few, many), strict=True):
        assert mean == pytest.approx(values.mean())
        assert low < mean < high
    assert intervals[1][2] - intervals[1][1] < (intervals[0][2] - intervals[0][1]) / 3
