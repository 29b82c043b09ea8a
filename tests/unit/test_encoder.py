"""Texts as vectors: whatever the batches, threads and neighbours."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from encoding import TEXTS, check_same, rehash
from samples import settings
from tiny import GOLDEN_TEXTS, export_tiny

from llmrec_plugin.artifacts import ArtifactStore, read_artifact
from llmrec_plugin.errors import ArtifactCorruptError, ArtifactMismatchError, ParityError
from llmrec_plugin.manifests import GOLDEN, GRAPH
from llmrec_plugin.runtime.encoder import Encoder


@pytest.fixture(scope="module")
def encoder(tiny, tmp_path_factory):
    return Encoder(tiny, settings(tmp_path_factory.mktemp("unused")))


@pytest.fixture(scope="module")
def alone(encoder):
    """Each text's vector, computed without neighbours."""
    return np.concatenate([encoder.encode([text])[0] for text in TEXTS])


def test_the_texts_have_different_vectors(alone):
    distinct = {" ".join(text.split()[:14]) for text in TEXTS}
    assert len(np.unique(alone.round(4), axis=0)) >= 0.9 * len(distinct)


@pytest.mark.parametrize("token_budget", [1, 33, 512, 100_000])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("profile", ["batch", "online"])
def test_neither_batches_nor_threads_change_a_vector(tiny, tmp_path, alone, token_budget, threads, profile):
    encoder = Encoder(tiny, settings(tmp_path, threads=threads), profile)
    vectors, tokens = encoder.encode(TEXTS, token_budget=token_budget)
    check_same(vectors, alone)
    assert tokens == sum(min(len(text.split()) + 2, 16) for text in TEXTS)


@pytest.mark.parametrize("seed", range(3))
def test_vectors_come_in_the_order_of_the_texts(encoder, alone, seed):
    order = np.random.default_rng(seed).permutation(len(TEXTS))
    check_same(encoder.encode([TEXTS[i] for i in order])[0], alone[order])


@pytest.mark.parametrize("rows", [1, 7, 32, 256])
def test_the_number_of_texts_per_call_does_not_change_a_vector(encoder, alone, rows):
    parts = [encoder.encode(TEXTS[start : start + rows])[0] for start in range(0, len(TEXTS), rows)]
    check_same(np.concatenate(parts), alone)


def test_no_texts_give_no_vectors(encoder):
    vectors, tokens = encoder.encode([])
    assert (vectors.shape, vectors.dtype, tokens) == ((0, 8), np.float32, 0)


def test_a_text_is_truncated_to_the_length_asked_for_and_never_beyond_the_models(encoder):
    text = "red green blue " * 10
    for max_tokens, words in ((5, 3), (16, 14), (999, 14), (None, 14)):
        vectors, tokens = encoder.encode([text], max_tokens=max_tokens)
        assert tokens == words + 2
        np.testing.assert_array_equal(vectors, encoder.encode([" ".join(text.split()[:words])])[0])


def test_threads_with_different_lengths_do_not_change_each_others_truncation(encoder):
    text = "red green blue " * 10

    def work(max_tokens):
        return [encoder.encode([text] * 3, max_tokens=max_tokens)[1] for _ in range(30)]

    lengths = [3, 5, 9, 16]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, lengths)) == [[3 * length] * 30 for length in lengths]


@pytest.mark.parametrize(
    "text", ["", " ", "🙂" * 50, "שלום", "\x00", "a" * 20_000], ids=["empty", "space", "emoji", "rtl", "nul", "long"]
)
def test_any_text_gives_a_finite_vector(encoder, text):
    vectors, tokens = encoder.encode([text])
    assert np.isfinite(vectors).all()
    assert 2 <= tokens <= 16


# --- checks at load


@pytest.fixture
def copy(tiny, tmp_path):
    """A folder with a copy of `tiny` that a test may damage."""
    return shutil.copytree(tiny.folder, tmp_path / "copy")


@pytest.mark.parametrize("name", [GRAPH, GOLDEN])
def test_a_file_that_differs_from_its_hash_is_not_loaded(copy, tmp_path, name):
    (copy / name).write_bytes((copy / name).read_bytes() + b"\0")
    with pytest.raises(ArtifactCorruptError, match=name):
        Encoder(read_artifact(copy), settings(tmp_path))


def test_a_model_that_computes_something_else_than_pytorch_did_is_not_loaded(copy, tmp_path):
    golden = np.load(copy / GOLDEN)
    golden[1] = -golden[1]
    np.save(copy / GOLDEN, golden)
    rehash(copy)
    with pytest.raises(ParityError) as caught:
        Encoder(read_artifact(copy), settings(tmp_path))
    for part in (repr(GOLDEN_TEXTS[1]), "cosine -1.000000", "at least 0.9999", "LLMREC_DEVICE=cpu", "export again"):
        assert part in str(caught.value)


def test_a_vector_of_another_length_is_no_proof_though_its_direction_is_right(copy, tmp_path):
    np.save(copy / GOLDEN, 2 * np.load(copy / GOLDEN))
    rehash(copy)
    with pytest.raises(ParityError, match=r"0\.5000 times its length"):
        Encoder(read_artifact(copy), settings(tmp_path))


def test_golden_vectors_of_another_shape_are_a_damaged_artifact(copy, tmp_path):
    np.save(copy / GOLDEN, np.load(copy / GOLDEN)[:, :4])
    rehash(copy)
    with pytest.raises(ArtifactCorruptError, match=r"expected golden vectors of shape \(4, 8\), got \(4, 4\)"):
        Encoder(read_artifact(copy), settings(tmp_path))


def test_a_length_that_leaves_no_room_for_a_token_is_refused(tiny, tmp_path):
    encoder = Encoder(tiny, settings(tmp_path))
    with pytest.raises(ArtifactMismatchError, match=r"adds 2 special tokens.*Declare at least 3"):
        encoder.encode(["red"], max_tokens=2)


def test_a_golden_vector_that_is_not_finite_is_no_proof(copy, tmp_path):
    golden = np.load(copy / GOLDEN)
    golden[0, 0] = np.nan
    np.save(copy / GOLDEN, golden)
    rehash(copy)
    with pytest.raises(ParityError, match=repr(GOLDEN_TEXTS[0])):
        Encoder(read_artifact(copy), settings(tmp_path))


def test_a_replaced_graph_is_found_by_its_golden_texts(copy, tmp_path):
    other = export_tiny(ArtifactStore([tmp_path / "other"]), seed=1)
    shutil.copy(other.path(GRAPH), copy / GRAPH)
    rehash(copy)
    with pytest.raises(ParityError):
        Encoder(read_artifact(copy), settings(tmp_path))


def test_the_graph_agrees_with_the_reference_on_either_padding_side(copy, tmp_path, alone):
    rehash(copy, padding_side="left")
    vectors, _ = Encoder(read_artifact(copy), settings(tmp_path)).encode(TEXTS)
    check_same(vectors, alone)
