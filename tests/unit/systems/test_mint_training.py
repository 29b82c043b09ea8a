"""The bi-encoder learns: losses fall on pairs it was not trained on, equal seeds give equal weights, it exports."""

import json
from dataclasses import replace
from itertools import permutations

import pytest
from click.testing import CliRunner

from llmrec_plugin.errors import InputError, SourceError
from llmrec_plugin.systems.mint import Pair, bi_encoder

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("transformers", reason="the export extra is not installed")

from llmrec_plugin.systems.mint import commands, training  # noqa: E402

# Requests and documents share no word, so that only training can tell what belongs together.
MEANT = dict(
    zip(
        "quiet cafe museum trail beach library market loud".split(),
        "books tea music rain sun dogs children cheap".split(),
        strict=True,
    )
)
PAIRS = [Pair(f"i want a {one} {other}", f"the {MEANT[one]} {MEANT[other]}") for one, other in permutations(MEANT, 2)]
DEV, TRAIN = PAIRS[::4], [pair for row, pair in enumerate(PAIRS) if row % 4]
SETTINGS = training.TrainingSettings(max_tokens=16, epochs=16, batch_size=14, learning_rate=3e-3)
ONCE = replace(SETTINGS, epochs=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "bi-encoder"
    lines = []
    record = training.train_bi_encoder(TRAIN, base_folder, folder, SETTINGS, dev=DEV, report=lines.append)
    return folder, record, lines


def test_the_loss_falls_on_pairs_that_were_not_trained_on(trained):
    _, record, lines = trained
    assert record.dev_loss_before > 0.8  # the margin is 1
    assert record.dev_loss_after < 0.3
    assert record.epoch_losses[-1] < record.epoch_losses[0]
    assert len(lines) == len(record.epoch_losses) == 16
    assert (record.pairs, record.dev_pairs, record.settings) == (42, 14, SETTINGS)


def test_the_folder_records_the_training_and_states_what_export_must_know(trained):
    from llmrec_plugin.export import read_model

    folder, record, _ = trained
    assert json.loads((folder / "training.json").read_text())["dev_loss_after"] == record.dev_loss_after
    assert read_model("mint-bi-encoder", str(folder), {}) == bi_encoder(folder, dims=32, max_tokens=16)


def test_the_folder_exports_and_gives_the_trained_vectors(trained, tmp_path):
    pytest.importorskip("optimum.exporters.onnx", reason="the export extra is not installed")
    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.export import export_model

    folder, _, _ = trained
    manifest = export_model(bi_encoder(folder, dims=32, max_tokens=16), ArtifactStore([tmp_path])).manifest
    assert manifest.parity["passed"]
    assert (manifest.dims, manifest.normalize, manifest.pooling) == (32, False, "mean")


def test_equal_seeds_give_equal_weights_and_leave_the_caller_s_draws_alone(base_folder, tmp_path):
    from safetensors.numpy import load_file

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    folders = [tmp_path / name for name in ("first", "again", "other")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        training.train_bi_encoder(TRAIN, base_folder, folder, replace(ONCE, seed=seed))
    assert torch.rand(1) == expected
    first, again, other = (load_file(folder / "model.safetensors") for folder in folders)
    name = "embeddings.word_embeddings.weight"
    assert all((first[key] == again[key]).all() for key in first)
    assert (first[name] != other[name]).any()


def test_pooling_by_the_first_token_is_stated_too(base_folder, tmp_path):
    from llmrec_plugin.export import read_model

    training.train_bi_encoder(TRAIN, base_folder, tmp_path / "cls", replace(ONCE, pooling="cls"))
    assert read_model("x", str(tmp_path / "cls"), {}).pooling == "cls"


def test_a_negative_is_never_a_document_of_the_same_request():
    pairs = [Pair("q1", "a"), Pair("q1", "b"), Pair("q2", "b"), Pair("q2", "c")]
    positives = training._positives(pairs)
    for seed in range(20):
        for query, document, negative in training._triples(pairs, positives, training.random.Random(seed)):
            assert document in positives[query]
            assert negative not in positives[query]
    assert training._triples(pairs[:2], positives, training.random.Random(0)) == []


def test_masked_tokens_do_not_move_a_mean(base_folder):
    encoder = training._Encoder(base_folder, SETTINGS)
    encoder.model.eval()
    alone = encoder.vectors([("quiet", "tea", "beach")])[0]
    padded = encoder.vectors([("quiet", "the quiet cafe and the library with tea and books", "beach")])[0]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=0)


def test_the_learning_rate_rises_and_falls_to_nothing():
    rates = [training._rate(step, 10, 0.2) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert training._rate(10, 10, 0.2) == 0.0
    assert training._rate(0, 3, 0.0) == 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 0}, "epochs >= 1"),
        ({"max_tokens": 0}, "max_tokens >= 1"),
        ({"batch_size": 1}, "batch_size >= 2"),
        ({"warmup": 1.0}, "warmup in"),
        ({"margin": 0}, "margin > 0"),
        ({"learning_rate": float("nan")}, "learning_rate > 0"),
        ({"pooling": "max"}, "pooling must be 'mean' or 'cls'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, expected):
    with pytest.raises(InputError, match=expected):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize("pairs", [[], [Pair("q", "a"), Pair("q", "b")], [Pair("q", "a"), Pair("p", "a")]])
def test_pairs_without_negatives_are_refused(base_folder, tmp_path, pairs):
    with pytest.raises(InputError, match="two requests and two documents"):
        training.train_bi_encoder(pairs, base_folder, tmp_path / "new", SETTINGS)


def test_folders_are_checked_before_a_model_is_loaded(base_folder, tmp_path):
    with pytest.raises(SourceError, match=r"config\.json"):
        training.train_bi_encoder(TRAIN, tmp_path, tmp_path / "new", SETTINGS)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        training.train_bi_encoder(TRAIN, base_folder, tmp_path / "used", SETTINGS)


def test_the_command_trains_and_reports(base_folder, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(json.dumps(pair._asdict()) for pair in PAIRS) + "\n\n")
    place = ["--pairs", str(pairs), "--base", str(base_folder), "--output", str(tmp_path / "new")]
    done = CliRunner().invoke(
        commands.bi_encoder, [*place, "--max-tokens", "16", "--epochs", "1", "--dev-share", "0.2"]
    )
    assert done.exit_code == 0, done.output
    assert "pairs not trained on:" in done.output
    record = json.loads((tmp_path / "new" / "training.json").read_text())
    assert (record["pairs"] + record["dev_pairs"], record["settings"]["max_tokens"]) == (56, 16)


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"query": "q"}', '{"query": "q", "document": 3}', '{"query": "", "document": "d"}']
)
def test_lines_that_are_no_pairs_are_named(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "q", "document": "d"}\n' + line)
    with pytest.raises(InputError, match=r"pairs\.jsonl, line 2"):
        commands.read_pairs(path)
