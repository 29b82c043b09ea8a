"""A feature as a scikit-learn transformer."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from samples import embedding, labelled
from tiny import export_tiny

from llmrec_plugin.adapters import embedding_of_model
from llmrec_plugin.artifacts import ArtifactStore
from llmrec_plugin.errors import (
    DeclarationError,
    FingerprintMismatchError,
    InputError,
    MissingColumnError,
    UnknownNameError,
)
from llmrec_plugin.runtime import models as models_module
from llmrec_plugin.runtime import runner as runner_module

sklearn = pytest.importorskip("sklearn", reason="the extra 'ranker' is not installed")
from sklearn.base import clone  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.exceptions import NotFittedError, SkipTestWarning  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils import estimator_checks  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from llmrec_plugin.adapters import FeatureTransformer  # noqa: E402

TITLES = ["red web server", "a fast python library", "red web server", "font editor"]


with warnings.catch_warnings():
    # It cannot make up texts for those of its checks that need rows, says so and makes the others.
    warnings.simplefilter("ignore", SkipTestWarning)
    own_checks = parametrize_with_checks([FeatureTransformer(embedding())])


@own_checks
def test_scikit_learn_s_own_checks_pass(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "name",
    """
    do_not_raise_errors_in_init_or_set_params estimator_repr estimator_tags_renamed get_params_invariance mixin_order
    no_attributes_set_in_init parameters_default_constructible set_params valid_tag_types
    """.split(),
)
def test_its_checks_that_need_no_rows_pass(name):
    check = getattr(estimator_checks, f"check_{name}")
    check("FeatureTransformer", FeatureTransformer(embedding()))


def test_vectors_are_those_of_feast_whatever_holds_the_texts(vectors_of):
    expected = vectors_of(TITLES)
    frame = pd.DataFrame({"title": TITLES, "other": range(4)})
    for rows in (
        TITLES,
        tuple(TITLES),
        np.array(TITLES),
        np.array(TITLES)[:, None],
        frame["title"],
        frame,
        dict(frame),
    ):
        got = FeatureTransformer(embedding()).fit_transform(rows)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


def test_rows_without_text_are_nan_or_zeros_and_may_be_marked(vectors_of):
    rows = ["red", "", None]
    assert np.isnan(FeatureTransformer(embedding()).fit_transform(rows)).all(axis=1).tolist() == [False, True, True]
    marked = FeatureTransformer(embedding(), missing="zeros", add_indicator=True)
    got = marked.fit_transform(rows)
    np.testing.assert_array_equal(got[:, :8], [*vectors_of(["red"]), np.zeros(8), np.zeros(8)])
    assert got[:, 8].tolist() == [0, 1, 1]
    assert marked.get_feature_names_out()[-2:].tolist() == ["item_title_embedding_7", "item_title_embedding_missing"]


def test_frames_come_out_with_the_names_of_expanded_columns():
    frame = pd.DataFrame({"title": TITLES, "price": [1.0, 2.0, 3.0, 4.0]}, index=[4, 3, 2, 1])
    mixed = ColumnTransformer(
        [("text", FeatureTransformer(embedding()), ["title"]), ("rest", "passthrough", ["price"])],
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    got = mixed.fit_transform(frame)
    assert list(got) == [*(f"item_title_embedding_{number}" for number in range(8)), "price"]
    assert list(got.index) == [4, 3, 2, 1]


def test_a_pipeline_pickles_without_weights_and_works_in_another_process(tmp_path):
    pipeline = make_pipeline(FeatureTransformer(embedding()), LogisticRegression()).fit(TITLES, [1, 0, 1, 0])
    expected = pipeline.predict_proba(TITLES)
    data = pickle.dumps(pipeline)
    assert len(data) < 8_000
    (tmp_path / "pipeline").write_bytes(data)
    code = "import pickle, sys; p = pickle.load(open(sys.argv[1], 'rb')); print(p.predict_proba([sys.argv[2]])[0, 1])"
    command = [sys.executable, "-W", "error", "-c", code, tmp_path / "pipeline", TITLES[1]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(expected[1, 1], rel=1e-6)


def test_a_clone_is_not_fitted_and_fits_alike():
    fitted = FeatureTransformer(embedding(), missing="zeros").fit(TITLES)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copy.transform(TITLES)
    np.testing.assert_array_equal(copy.fit_transform(TITLES), fitted.transform(TITLES))


def test_vectors_of_another_model_are_refused(tmp_path, monkeypatch):
    fitted = FeatureTransformer(embedding()).fit(TITLES)
    store = ArtifactStore([tmp_path / "newer"])
    export_tiny(store, seed=1)
    monkeypatch.setenv("LLMREC_ARTIFACTS", str(tmp_path / "newer"))
    with pytest.raises(FingerprintMismatchError, match="fit again"):
        pickle.loads(pickle.dumps(fitted)).transform(TITLES)


def test_nothing_is_computed_twice(monkeypatch):
    FeatureTransformer(embedding()).fit_transform(TITLES)
    monkeypatch.setattr(models_module, "Encoder", lambda *_: pytest.fail("a model was loaded"))
    runner_module.runner_for.cache_clear()
    FeatureTransformer(embedding()).fit_transform(TITLES)


def test_nothing_is_printed(capsys):
    FeatureTransformer(embedding()).fit_transform(TITLES)
    assert capsys.readouterr() == ("", "")


def test_an_exported_model_needs_no_declaration(vectors_of):
    feature = embedding_of_model("tiny")
    assert (feature.name, feature.dims, feature.columns) == ("tiny_embedding", 8, ("text",))
    np.testing.assert_array_equal(FeatureTransformer(feature).fit_transform(TITLES), vectors_of(TITLES))


def test_a_name_is_looked_up_among_the_plugins():
    with pytest.raises(UnknownNameError, match="No feature is named 'no_such_feature'"):
        FeatureTransformer("no_such_feature").fit(TITLES)


@pytest.mark.parametrize(
    ("transformer", "rows", "error", "message"),
    [
        (FeatureTransformer(), TITLES, DeclarationError, "needs feature="),
        (FeatureTransformer(embedding(), missing="mean"), TITLES, InputError, "'nan' or 'zeros', got 'mean'"),
        (FeatureTransformer(embedding()), "red", InputError, "a sequence of its values, got str"),
        (FeatureTransformer(embedding()), np.array([["a", "b"]]), InputError, r"shape \(1, 2\)"),
        (FeatureTransformer(embedding(text="{title} {brand}")), TITLES, InputError, "'title', 'brand'"),
        (FeatureTransformer(labelled()), TITLES, DeclarationError, "has no vectors"),
    ],
)
def test_what_cannot_be_transformed_is_refused(transformer, rows, error, message):
    with pytest.raises(error, match=message):
        transformer.fit(rows)


def test_a_frame_without_the_column_is_refused():
    with pytest.raises(MissingColumnError, match="'title'"):
        FeatureTransformer(embedding()).fit(pd.DataFrame({"name": TITLES}))
