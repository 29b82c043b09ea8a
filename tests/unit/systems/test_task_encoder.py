"""The encoder learns who likes what: pairs without leaks, negatives that are negatives, recall that rises, export."""

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from words import MEANT, interactions

from llmrec_plugin import EncoderModel
from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import Dataset, write_atomic
from llmrec_plugin.systems.task_encoder.pairs import Pairs, false_negatives, make_task

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("transformers", reason="the export extra is not installed")

from llmrec_plugin.systems.task_encoder import commands, training  # noqa: E402
from llmrec_plugin.systems.task_encoder.training import EncoderSettings, contrastive_loss, found  # noqa: E402

SETTINGS = EncoderSettings(
    pairs=400, evaluated=60, layers=2, max_tokens=24, epochs=6, patience=6, batch=32, learning_rate=3e-3
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(base_folder):
    return EncoderModel(
        name="base", source=f"path:{base_folder}", pooling="mean", normalize=True, dims=32, max_tokens=24,
        metric="cosine",
    )  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return make_task(interactions(), "{title}", last_n=1)


def table(**columns):
    return pd.DataFrame(columns)


# --- pairs


def small(**changes):
    rows = {
        "user_id": ["u", "u", "v", "u", "v", "u"],
        "item_id": ["a", "b", "a", "c", "c", "d"],
        "rating": [5.0, 2.0, 4.0, 4.0, 5.0, 4.0],
        "timestamp": pd.to_datetime([1, 2, 3, 4, 5, 6], unit="s", utc=True),
        "part": ["train", "train", "train", "train", "valid", "test"],
    }
    items = table(item_id=["a", "b", "c", "d"], title=["A", "B", "C", None])
    users = table(user_id=["u", "v"], about=["likes A", None])
    return Dataset(name="small", interactions=pd.DataFrame({**rows, **changes}), items=items, users=users)


def test_a_history_is_what_was_before_and_nothing_of_the_test_part_is_seen():
    task = make_task(small(), "{title}")
    assert task.texts == ["A", "B", "C"]
    assert (task.train.queries, task.train.items.tolist()) == (["A", "B, A"], [1, 2])  # the newest first
    assert (task.validation.queries, task.validation.items.tolist()) == (["A"], [2])
    assert task.validation.past == [frozenset({0})]
    assert task.train.owned == [frozenset({0, 1, 2})] * 2
    assert task.counts.tolist() == [2, 1, 1]
    assert make_task(small(), "{title}", last_n=1).train.queries == ["A", "B"]


def test_a_user_s_text_may_be_the_query_and_users_without_are_counted():
    with pytest.raises(InputError, match=r"got 3 and 0"):
        make_task(small(), "{title}", query="user", user_text="{about}")
    task = make_task(small(part=["train"] * 3 + ["valid"] * 2 + ["test"]), "{title}", query="user", user_text="{about}")
    assert task.train.queries == ["likes A"] * 2
    assert (task.validation.queries, task.without_query) == (["likes A"], 1)


def test_low_ratings_may_be_left_out():
    task = make_task(small(), "{title}", liked_from=4)
    assert task.texts == ["A", "C"]
    assert task.train.queries == ["A"]
    data = small()
    with pytest.raises(InputError, match="'rating'"):
        make_task(replace(data, interactions=data.interactions.drop(columns="rating")), "{title}", liked_from=4)


def test_a_template_of_columns_that_are_not_there_is_refused():
    with pytest.raises(InputError, match=r"items have no column 'name', only item_id, title"):
        make_task(small(), "{name}")
    with pytest.raises(InputError, match="the users have the columns user_id, about"):
        make_task(small(), "{title}", query="user", user_text="{age}")


def pairs(items, owned, past=None):
    sets = [frozenset(own) for own in owned]
    return Pairs(queries=["q"] * len(items), items=np.array(items), past=past or [frozenset()] * len(items), owned=sets)


def test_the_same_item_and_items_that_the_user_has_are_no_negatives():
    excluded = false_negatives(pairs([7, 8, 7, 9], [{7, 9}, {8}, {7}, set()]))
    assert excluded.astype(int).tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


# --- loss and measure


def test_the_loss_is_the_cross_entropy_of_the_written_formula():
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(2, 4, 5)).astype(np.float32)
    excluded = false_negatives(pairs([7, 8, 7, 9], [{9}, set(), set(), set()]))
    unit = [values / np.linalg.norm(values, axis=1, keepdims=True) for values in (queries, items)]
    weights = np.exp(unit[0] @ unit[1].T / 0.1) * ~excluded
    forward = -np.log(np.diag(weights) / weights.sum(axis=1)).mean()
    backward = -np.log(np.diag(weights) / weights.sum(axis=0)).mean()
    tensors = [torch.from_numpy(values) for values in (queries, items, excluded)]
    assert contrastive_loss(*tensors, temperature=0.1, symmetric=False).item() == pytest.approx(forward, rel=1e-5)
    both = contrastive_loss(*tensors, temperature=0.1, symmetric=True).item()
    assert both == pytest.approx((forward + backward) / 2, rel=1e-5)


def test_recall_is_over_all_items_but_those_that_the_user_had_before():
    scores = np.zeros((3, 30))
    scores[0, :12] = 1  # twelve before, two of which the user had
    scores[0, 20] = 0.5
    scores[1, 5] = 1
    # the third is all ties: rank 14.5 of 30
    measured = found(scores, pairs([20, 5, 3], [set()] * 3, past=[frozenset({0, 1, 2}), frozenset({5}), frozenset()]))
    assert measured.recall == pytest.approx(2 / 3)
    assert measured.ndcg == pytest.approx((1 / np.log2(11) + 1) / 3)
    assert scores[0, 0] == 1  # the caller's are as they were


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"rank": 4}, {"batch": 1}, {"temperature": 0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="task-encoder"):
        EncoderSettings(**wrong)


# --- training


@pytest.fixture(scope="module")
def tuned(task, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "encoder"
    return folder, training.train_encoder(task, model, folder, SETTINGS, progress=False, report=lambda line: None)


def test_recall_rises_on_pairs_that_were_not_trained_on(tuned, task):
    folder, quality = tuned
    validation = quality["validation"]
    assert validation["tuned"]["ndcg"] > validation["frozen"]["ndcg"] + 0.2
    assert validation["tuned"]["recall"] > validation["popularity"]["recall"] + 0.2
    assert quality["epochs"][-1]["validation_loss"] < quality["epochs"][0]["validation_loss"]
    assert json.loads((folder / "quality.json").read_text())["pairs"]["without_query"] == task.without_query


def test_the_folder_states_what_export_must_know_and_exports(tuned, model, tmp_path):
    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.export import export_model, read_model

    folder, _ = tuned
    declared = read_model("base", str(folder), {})
    assert declared == replace(model, source=f"path:{folder}")
    pytest.importorskip("optimum.exporters.onnx", reason="the export extra is not installed")
    assert export_model(declared, ArtifactStore([tmp_path])).manifest.parity["passed"]


def test_only_the_layers_that_were_named_moved(task, model, tmp_path):
    from safetensors.numpy import load_file

    once = replace(SETTINGS, epochs=1, layers=1, pairs=64)
    training.train_encoder(task, model, tmp_path, once, progress=False, report=lambda line: None)
    before = load_file(model.source.removeprefix("path:") + "/model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert moved
    assert all(name.startswith("encoder.layer.1.") for name in moved)


def test_a_run_that_was_stopped_ends_with_the_same_bits(task, model, tmp_path):
    settings = replace(SETTINGS, epochs=3, pairs=128)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = {"progress": False, "report": lambda line: None}
    training.train_encoder(task, model, whole, settings, **options)

    class StopError(Exception):
        pass

    def stop(line):
        if line.startswith("epoch 2"):
            raise StopError

    with pytest.raises(StopError):
        training.train_encoder(task, model, stopped, settings, progress=False, report=stop)
    lines = []
    training.train_encoder(task, model, stopped, settings, progress=False, report=lines.append)
    assert any(line.startswith("resuming after epoch") for line in lines)
    assert (whole / "model.safetensors").read_bytes() == (stopped / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="other data or settings"):
        training.train_encoder(task, model, stopped, replace(settings, temperature=0.1), **options)


def test_lora_is_merged_into_a_plain_folder(task, model, tmp_path):
    pytest.importorskip("peft", reason="the tune extra is not installed")
    from safetensors.numpy import load_file

    settings = replace(SETTINGS, epochs=3, layers=0, rank=4, learning_rate=1e-2)
    quality = training.train_encoder(task, model, tmp_path, settings, progress=False, report=lambda line: None)
    assert quality["epochs"][-1]["validation_loss"] < quality["epochs"][0]["validation_loss"]
    before = load_file(model.source.removeprefix("path:") + "/model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if (before[name] != after[name]).any()}
    assert moved
    assert all(".query." in name or ".value." in name for name in moved)


def test_layers_that_there_are_not_are_refused(task, model, tmp_path):
    with pytest.raises(InputError, match="has 2 layers, of which 3 cannot be trained"):
        training.train_encoder(task, model, tmp_path, replace(SETTINGS, layers=3), progress=False, report=print)


def test_the_command_reads_atomic_files_and_prints_the_measured_table(base_folder, tmp_path):
    write_atomic(interactions(), tmp_path / "data")
    options = "--layers 1 --epochs 1 --pairs 64 --evaluated 20 --history 1 --max-tokens 24"
    stated = "--pooling mean --metric cosine --normalize"
    done = CliRunner().invoke(
        commands.encoder,
        ["--data", str(tmp_path / "data"), "--base", str(base_folder), "--output", str(tmp_path / "out"),
         *options.split(), *stated.split()],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "popularity" in done.output
    quality = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert quality["settings"]["layers"] == 1
    assert quality["settings"]["learning_rate"] == 1e-4


def test_the_defaults_of_the_command_are_those_of_the_settings():
    defaults = {option.name: option.default for option in commands.encoder.params}
    for name, value in asdict(EncoderSettings()).items():
        if name not in ("layers", "learning_rate"):
            assert defaults[name] == value, name


def test_words_of_a_pair_share_nothing():
    assert not set(MEANT) & set(MEANT.values())
