"""Differentially private vectors: the noise itself, its key, its accounting, and that nothing leaves without it."""

import json
import math
import os
import pickle
import stat
import subprocess
import sys

import numpy as np
import pytest
from samples import embedding, history, query

from llmrec_plugin.binding import BoundSimilarity, bind, from_values, to_values
from llmrec_plugin.errors import DeclarationError, MissingColumnError, SettingsError
from llmrec_plugin.keys import NoiseKey, load_noise_key
from llmrec_plugin.pipeline.noise import clip, mu_of, normals, privatize
from llmrec_plugin.privacy import accounting, expected_cosine, new_noise_key, sigma, statement, total
from llmrec_plugin.specs import GaussianNoise, NetworkFeature, Redaction, SimilarityFeature, from_spec, to_spec
from llmrec_plugin.transform import Transform

SECRET = bytes(range(7, 39))
OTHER = bytes(range(8, 40))
KEY = NoiseKey(SECRET)

# dp-accounting 0.6.0, gaussian_mechanism.get_sigma_gaussian: deviations for a sensitivity of 1.
OF_DP_ACCOUNTING = {
    (0.01, 1e-6): 306.35037615384203,
    (0.1, 1e-5): 30.749566131977495,
    (0.5, 1e-6): 8.057618480725052,
    (1.0, 1e-6): 4.224678889326822,
    (1.0, 1e-5): 3.7306316348159374,
    (2.0, 1e-8): 2.652926768055818,
    (5.0, 1e-6): 0.9800490003092105,
    (10.0, 1e-10): 0.6830439672274813,
    (50.0, 1e-6): 0.15659287039175987,
    (100.0, 1e-6): 0.09783722397440571,
    (200.0, 1e-12): 0.07039870343902528,
}
# The same library, epsilon at delta 1e-6 of k releases that are (1, 1e-6)-private each; get_epsilon_gaussian.
RELEASES_OF_DP_ACCOUNTING = {
    1: 1.0,
    2: 1.454671077709949,
    12: 3.904054873047679,
    100: 13.507003110804705,
    1000: 62.822358546342414,
    5000: 218.75337308013462,
}


def noise(**changes):
    return GaussianNoise(
        **{"clip_norm": 1.0, "epsilon": 1.0, "delta": 1e-6, "user": "user_key", "key_id": KEY.id, **changes}
    )


def private_history(**changes):
    return history(**{"noise": noise(), "on_empty": "zeros", **changes})


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("LLMREC_NOISE_KEY", SECRET.hex())


# --- how much


@pytest.mark.parametrize(("guarantee", "expected"), OF_DP_ACCOUNTING.items())
def test_the_deviation_is_that_of_googles_library_for_twice_the_clip_norm(guarantee, expected):
    declared = noise(epsilon=guarantee[0], delta=guarantee[1], clip_norm=3)
    assert 0 <= sigma(declared) / (6 * expected) - 1 < 1e-7  # rounded up, never down


@pytest.mark.parametrize(("releases", "expected"), RELEASES_OF_DP_ACCOUNTING.items())
def test_releases_add_up_as_in_googles_library(releases, expected):
    assert accounting(releases, 1.0, 1e-6).epsilon == pytest.approx(expected, rel=1e-9)


def test_releases_of_several_features_add_up():
    assert total([(noise(), 5), (noise(clip_norm=9), 7)], delta=1e-6) == accounting(12, 1.0, 1e-6)
    assert total([], delta=1e-6).epsilon == 0
    half = total([(noise(), 1)], delta=1e-4)
    assert half.epsilon < 1  # a larger delta allows a smaller epsilon
    with pytest.raises(DeclarationError, match="delta of the answer"):
        total([(noise(), 1)], delta=1)
    with pytest.raises(DeclarationError, match="negative"):
        accounting(-1, 1.0, 1e-6)


def test_the_noise_is_normal_with_the_declared_deviation():
    n, dims = 400, 101
    made = privatize(noise(), KEY, "f", np.zeros((n, dims), np.float32), [str(i) for i in range(n)], [("t",)] * n)
    scaled = made.astype(np.float64) / sigma(noise())
    count = scaled.size
    # Chi-square with 40,400 degrees of freedom: its 1e-6 quantiles lie within 4.9 deviations of the mean.
    assert abs(np.square(scaled).sum() - count) < 4.9 * math.sqrt(2 * count)
    assert abs(scaled.mean()) < 4.9 / math.sqrt(count)
    assert abs((scaled**3).mean()) < 4.9 * math.sqrt(15 / count)
    assert abs((scaled**4).mean() - 3) < 4.9 * math.sqrt(96 / count)
    correlations = scaled.T @ scaled / n - np.eye(dims)
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() < 6 / math.sqrt(n)  # components are independent
    rows = np.corrcoef(scaled) - np.eye(n)
    assert np.abs(rows).max() < 6.5 / math.sqrt(dims)  # and rows


def test_the_numbers_of_a_seed_are_fixed():
    first = normals([b"seed", b"other"], 5)
    np.testing.assert_allclose(first[0], normals([b"seed"], 5)[0], rtol=0)
    np.testing.assert_allclose(first[0], FIRST, rtol=1e-12)


FIRST = [0.1881071868295792, 0.3996129579206166, -0.0058087949875467865, -1.7930616253712595, 0.4707354580303569]


def test_vectors_are_clipped_to_the_norm_and_short_ones_stay():
    vectors = np.array([[3, 4], [0.3, 0.4], [0, 0], [1e30, 0]], np.float32)
    np.testing.assert_allclose(clip(vectors, 1.0), [[0.6, 0.8], [0.3, 0.4], [0, 0], [1, 0]], rtol=1e-7)


@pytest.mark.parametrize("dims", [1, 2, 7])
def test_noise_differs_with_user_text_feature_and_key_and_with_nothing_else(dims):
    def made(user="u", texts=("a", "b"), fingerprint="f", key=KEY):
        return tuple(privatize(noise(), key, fingerprint, np.zeros((1, dims), np.float32), [user], [texts])[0])

    others = [made(user="v"), made(texts=("ab",)), made(texts=("b", "a")), made(texts=()), made(texts=("a", "b", "")),
              made(fingerprint="g"), made(key=NoiseKey(OTHER))]  # fmt: skip
    assert len({made(), *others}) == 8
    assert made() == made()


# --- in the pipeline

ROWS = {
    "events": [["red web", "blue server"], ["red web", "blue server"], [], None, ["green game"], ["red web"]],
    "user_key": ["u1", "u2", "u3", "u4", 5, "u1"],
}


def test_equal_texts_of_two_users_have_unlike_vectors_and_no_text_has_noise_too(new_runner):
    runner = new_runner()
    computed = runner.compute(bind(private_history(), runner.store), ROWS, "batch")
    assert len({value.tobytes() for value in computed.values}) == 6
    assert computed.statuses == ["ok"] * 6
    assert computed.values[0].dtype == np.float32


def test_the_noise_is_on_the_vector_that_there_is_without(new_runner):
    runner = new_runner()
    weak = private_history(noise=noise(epsilon=200.0))
    plain = runner.compute(bind(history(on_empty="zeros"), runner.store), ROWS, "batch").values
    private = runner.compute(bind(weak, runner.store), ROWS, "batch").values
    away = np.stack(private) - np.stack(plain)
    assert 0.5 < away.std() / sigma(weak.noise) < 1.5


def test_one_row_has_one_vector_in_every_mode_batch_size_and_process(new_runner, tiny_folder):
    bound = bind(private_history(), new_runner().store)
    expected = new_runner().compute(bound, ROWS, "batch").values
    for mode in ("on_demand", "historical", "push"):
        runner = new_runner()
        values = runner.compute(bound, ROWS, mode).values
        runner.drain()
        np.testing.assert_allclose(np.stack(values), np.stack(expected), rtol=0, atol=1e-6)
    alone = [
        new_runner().compute(bound, {name: column[row : row + 1] for name, column in ROWS.items()}, "batch").values[0]
        for row in range(6)
    ]
    np.testing.assert_allclose(np.stack(alone), np.stack(expected), rtol=0, atol=1e-6)
    code = (
        "import json, sys\nfrom pathlib import Path\nfrom samples import settings\n"
        "from llmrec_plugin.binding import from_values\nfrom llmrec_plugin.runtime.runner import Runner\n"
        "bound, rows, folder, artifacts = json.loads(sys.argv[1])\n"
        "runner = Runner(settings(Path(folder), artifact_folders=(Path(artifacts),)))\n"
        "values = runner.compute(from_values(bound), rows, 'batch').values\n"
        "print(json.dumps([value.tolist() for value in values]))"
    )
    runner = new_runner()
    folder = str(runner.cache.path.parent) + "-other"
    argument = json.dumps([to_values(bound), ROWS, folder, str(tiny_folder)])
    done = subprocess.run(
        [sys.executable, "-c", code, argument], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    np.testing.assert_allclose(json.loads(done.stdout), np.stack(expected), rtol=0, atol=1e-6)


def test_a_row_without_a_user_has_no_vector_and_says_why(new_runner):
    runner = new_runner()
    rows = {"events": [["red"], ["red"], ["red"]], "user_key": [None, " ", float("nan")]}
    computed = runner.compute(bind(private_history(), runner.store), rows, "batch")
    assert computed.values == [None] * 3
    assert "no user" in computed.invalid[0]
    with pytest.raises(MissingColumnError, match="user_key"):
        runner.compute(bind(private_history(), runner.store), {"events": [["red"]]}, "batch")


def test_a_number_and_its_text_are_one_user(new_runner):
    runner = new_runner()
    rows = {"events": [["red"]] * 3, "user_key": [5, "5", 5.0]}
    values = runner.compute(bind(private_history(), runner.store), rows, "batch").values
    assert len({value.tobytes() for value in values}) == 1


def test_the_cache_holds_vectors_that_features_without_noise_share(new_runner):
    runner = new_runner()
    runner.compute(bind(private_history(), runner.store), ROWS, "batch")
    computed = runner.compute(bind(history(), runner.store), ROWS, "batch")
    assert computed.report.computed == 0
    np.testing.assert_allclose(np.linalg.norm(computed.values[0]), 1, atol=1e-6)


def test_a_similarity_compares_the_vectors_with_noise(new_runner, monkeypatch):
    runner = new_runner()
    monkeypatch.setattr("llmrec_plugin.transform.runner_for", lambda settings: runner)
    side, other = private_history(entity=None), query(on_empty="zeros")
    bound = BoundSimilarity(
        SimilarityFeature(name="match", left=side.name, right=other.name, metric="dot", status=True),
        bind(side, runner.store),
        bind(other, runner.store),
    )
    payload = json.dumps({"bound": to_values(bound)}, sort_keys=True)
    rows = {**ROWS, "query": ["red web"] * 6}
    answer = Transform("on_demand", "match", payload)(rows)
    private = np.stack(runner.compute(bind(side, runner.store), ROWS, "batch").values)
    (item,) = runner.compute(bind(other, runner.store), {"query": ["red web"]}, "batch").values
    np.testing.assert_allclose(answer["match"], private @ item, rtol=1e-4, atol=1e-4)
    assert answer["match_status"] == ["ok"] * 6  # nor does it tell who has no history


# --- declarations


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_norm": 0}, {"clip_norm": float("inf")}, {"clip_norm": True}, {"epsilon": 0}, {"epsilon": 201},
        {"epsilon": float("nan")}, {"delta": 0}, {"delta": 1}, {"delta": 1e-13}, {"user": "a b"}, {"key_id": "ab"},
        {"key_id": SECRET.hex()},
    ],
)  # fmt: skip
def test_noise_that_cannot_be_meant_is_refused(changes):
    with pytest.raises(DeclarationError) as caught:
        noise(**changes)
    assert SECRET.hex() not in str(caught.value)


@pytest.mark.parametrize("changes", [{"on_empty": "null"}, {"status": True}])
def test_a_value_that_tells_who_has_no_data_is_refused(changes):
    with pytest.raises(DeclarationError, match="who has no data"):
        private_history(**changes)


def test_noise_travels_without_the_key_and_is_part_of_the_fingerprint():
    feature = private_history()
    spec = json.dumps(to_spec(feature))
    assert SECRET.hex() not in spec
    assert from_spec(json.loads(spec)) == feature
    assert feature.columns == ("events", "user_key")
    changed = [{"clip_norm": 2}, {"epsilon": 2}, {"delta": 1e-7}, {"user": "id"}, {"key_id": "0" * 16}]
    prints = {private_history(noise=noise(**change)).fingerprint("a") for change in changed}
    assert len(prints | {feature.fingerprint("a"), history(on_empty="zeros").fingerprint("a")}) == 7
    assert feature.vector_space("a") == embedding().vector_space("a")
    assert embedding(noise=noise(), on_empty="zeros", text="{user_key} {title}").columns == ("user_key", "title")


def test_what_is_left_of_a_vector_can_be_told_beforehand():
    declared = noise(epsilon=50.0)
    vectors = np.zeros((300, 64), np.float32)
    vectors[:, 0] = 1
    made = privatize(declared, KEY, "f", vectors, list(map(str, range(300))), [()] * 300)
    cosines = made[:, 0] / np.linalg.norm(made, axis=1)
    assert cosines.mean() == pytest.approx(expected_cosine(declared, 64), abs=0.03)


def test_the_guarantee_is_told_in_words():
    told = statement(noise(), dims=8)
    assert "deviation 8.449" in told
    assert "(1, 1e-06)-differentially private if one user's data is replaced" in told
    assert "1: epsilon 1, 12: epsilon 3.9, 365: epsilon 31" in told
    assert "0.042" in told
    assert KEY.id in told


# --- keys


def test_a_missing_key_is_an_error_that_says_what_to_set(new_runner, monkeypatch):
    runner = new_runner()
    bound = bind(private_history(), runner.store)  # declaring and publishing need no key
    assert from_values(json.loads(json.dumps(to_values(bound)))) == bound
    monkeypatch.delenv("LLMREC_NOISE_KEY")
    for call in (lambda: runner.compute(bound, ROWS, "batch"), lambda: runner.load(bound)):
        with pytest.raises(SettingsError, match=f"LLMREC_NOISE_KEY is not set.*{KEY.id}"):
            call()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (SECRET.hex()[:62], "32 random bytes"),
        ("00" * 32, "1 of them distinct"),
        (SECRET.hex() + "a", "odd number"),
        ("/nowhere/noise.key", "cannot be read"),
        (OTHER.hex(), "was declared with"),
    ],
)
def test_a_key_that_is_none_is_an_error_that_does_not_tell_it(value, said):
    with pytest.raises(SettingsError, match=said) as caught:
        load_noise_key(KEY.id, {"LLMREC_NOISE_KEY": value})
    assert value not in str(caught.value)


def test_a_new_key_lies_in_a_file_of_its_own_user_and_is_found_by_its_id(tmp_path):
    path = tmp_path / "noise.key"
    key_id = new_noise_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_noise_key(key_id, {"LLMREC_NOISE_KEY": str(path)}).id == key_id
    with pytest.raises(SettingsError, match="name a new file"):
        new_noise_key(path)
    path.write_text(path.read_text() + SECRET.hex() + "\n")
    assert load_noise_key(KEY.id, {"LLMREC_NOISE_KEY": str(path)}).id == KEY.id
    assert load_noise_key(key_id, {"LLMREC_NOISE_KEY": f"{OTHER.hex()}, {path.read_text().split()[0]}"}).id == key_id
    path.write_text("no key\n")
    with pytest.raises(SettingsError, match="hex digits, one per line"):
        load_noise_key(key_id, {"LLMREC_NOISE_KEY": str(path)})


def test_a_key_does_not_show_and_does_not_travel():
    assert SECRET.hex() not in repr(KEY) + str(KEY)
    assert KEY.id != SECRET.hex()[:16]
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(KEY)


def test_mu_grows_with_epsilon_and_delta():
    assert mu_of(1.0, 1e-6) < mu_of(2.0, 1e-6) < mu_of(2.0, 1e-5)


# --- networks


def network(**changes):
    return NetworkFeature(
        **{
            "name": "user_vector", "entity": "user", "model": "sequence", "inputs": {"history": "events"}, "dims": 8,
            "metric": "dot", "on_empty": "zeros", "noise": noise(), **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"on_empty": "null"}, "who has no data"),
        ({"status": True}, "who has no data"),
        ({"dims": None, "metric": None}, "noise is for vectors"),
        ({"inputs": {"vector": embedding()}}, "inputs that are columns"),
    ],
)
def test_a_network_whose_noise_cannot_be_one_everywhere_is_refused(changes, said):
    with pytest.raises(DeclarationError, match=said):
        network(**changes)


def test_a_network_reads_the_user_and_its_fingerprint_covers_noise_and_redaction():
    assert network().columns == ("events", "user_key")
    assert from_spec(json.loads(json.dumps(to_spec(network())))) == network()
    others = [network(noise=noise(epsilon=2)), network(noise=None), network(noise=None, redact=Redaction(email=True))]
    assert len({feature.fingerprint("a") for feature in (network(), *others)}) == 4
