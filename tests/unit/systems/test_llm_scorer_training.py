"""The scorer learns Yes and No from likes, on prompts as they are served; merged and exported it gives the same."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from tiny_generators import save_generator
from words import interactions

from llmrec_plugin.errors import InputError
from llmrec_plugin.interactions import Dataset, split_dataset, write_atomic

torch = pytest.importorskip("torch", reason="the export extra is not installed")
pytest.importorskip("transformers", reason="the export extra is not installed")

from llmrec_plugin.systems.llm_scorer import commands, pointwise_score, training  # noqa: E402
from llmrec_plugin.systems.llm_scorer.training import Example, ScorerSettings, auc, example_rows  # noqa: E402
from llmrec_plugin.training.prompts import TrainableGenerator, generator_in  # noqa: E402

SETTINGS = ScorerSettings(
    text="{title}", liked_from=4, most_items=2, rows=24, evaluated=16, max_tokens=640, rank=4, epochs=2, patience=2,
    batch=8, learning_rate=1e-2,
)  # fmt: skip
QUIET = {"progress": False, "report": lambda line: None}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models are faster on one
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def generator_base(tmp_path_factory):
    return save_generator(
        tmp_path_factory.mktemp("models") / "llama", "llama", max_position_embeddings=1024, initializer_range=0.1
    )


def likes():
    """Films of two kinds, which half of the users like and the other half does not."""
    rows, hour = [], 0
    for user in range(60):
        for number in range(4):
            red = (user + number) % 2 == 0
            liked = red == (user % 4 < 2)
            rows.append((f"u{user}", f"{'red' if red else 'blue'}{number}", 5.0 if liked else 1.0, hour))
            hour += 1
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "hour"]).sample(frac=1, random_state=0)
    frame["timestamp"] = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(len(frame)), unit="h")
    frame["timestamp"] = frame["timestamp"].astype("datetime64[us, UTC]")
    frame = frame.drop(columns="hour").reset_index(drop=True)
    items = frame[["item_id"]].drop_duplicates(ignore_index=True)
    items["title"] = items["item_id"].str[:-1]
    return Dataset(name="likes", interactions=frame, items=items, users=frame[["user_id"]].drop_duplicates())


# --- rows and measures


def test_the_area_under_the_curve_counts_ties_as_halves():
    assert auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])) == 0.75
    assert auc(np.array([0, 1, 1]), np.array([1.0, 1.0, 1.0])) == 0.5
    assert auc(np.array([1, 0]), np.array([0.0, 1.0])) == 0


def test_rows_of_ratings_have_both_labels_and_validation_is_later():
    train, validation = example_rows(likes(), SETTINGS)
    assert (len(train), len(validation)) == (24, 16)
    assert train["timestamp"].max() < validation["timestamp"].min()
    assert set(train["label"]) == {0, 1}


def test_without_ratings_as_many_items_are_drawn_that_the_user_does_not_have():
    data = interactions(60)
    train, _ = example_rows(data, replace(SETTINGS, liked_from=None, rows=60))
    assert train["label"].mean() == pytest.approx(0.5, abs=0.05)
    owned = split_dataset(data).train.groupby("user_id")["item_id"].agg(set)
    for user, item, label in zip(train["user_id"], train["item_id"], train["label"], strict=True):
        assert (item in owned[user]) == bool(label)


def test_rows_of_one_label_teach_nothing():
    with pytest.raises(InputError, match="not both labels"):
        example_rows(likes(), replace(SETTINGS, liked_from=0.5))


# --- prompts


@pytest.fixture(scope="module")
def generator(generator_base):
    return TrainableGenerator(generator_in(str(generator_base), chat=False, max_tokens=640))


def test_a_prompt_that_is_too_long_keeps_its_instructions_and_its_candidate(generator):
    feature = pointwise_score(model="base")
    columns = {
        "liked": [["red web server"] * 20],
        "disliked": [["the blue database"] * 20],
        "candidate": ["a fast one"],
    }
    (whole,) = generator.prompts(feature, columns, room=3)
    assert len(whole) == 640 - 3  # longer than the model reads, so it was cut
    text = generator._tokenizer.decode(whole)
    assert feature.prompt.system in text
    assert "<candidate>a fast one</candidate>" in text
    assert text.endswith("Answer (Yes or No):")
    assert text.count("red web server") < 20
    assert "1. red web server" in text  # the newest ones stay
    assert "1. the blue database" in text


def test_only_the_tokens_of_the_answer_are_in_the_loss(generator):
    yes, no = generator.answers(["Yes", "No"])
    prompt = [5, 6, 7, 8]
    loss = training.answer_loss(generator, [Example(prompt, yes), Example(prompt[:2], no)])
    with torch.inference_mode():
        parts = []
        for ids, answer in ((prompt, yes), (prompt[:2], no)):
            chances = generator.network(input_ids=torch.tensor([[*ids, *answer]])).logits[0].log_softmax(-1)
            parts += [-chances[len(ids) - 1 + at, token].item() for at, token in enumerate(answer)]
    assert loss.item() == pytest.approx(np.mean(parts), abs=1e-5)
    assert loss.requires_grad


def test_probabilities_do_not_depend_on_the_batch(generator):
    answers = generator.answers(["Yes", "No"])
    examples = [Example(list(range(5, 5 + length)), answers[0]) for length in (9, 3, 6)]
    together = training.probabilities(generator, examples, answers, 3)
    alone = [training.probabilities(generator, [example], answers, 1)[0] for example in examples]
    assert together == pytest.approx(alone, abs=1e-6)
    assert ((together > 0) & (together < 1)).all()


# --- training


@pytest.fixture(scope="module")
def tuned(generator_base, tmp_path_factory):
    pytest.importorskip("peft", reason="the tune extra is not installed")
    folder = tmp_path_factory.mktemp("tuned") / "scorer"
    return folder, training.train_scorer(likes(), str(generator_base), folder, SETTINGS, **QUIET)


def test_the_loss_falls_and_trivial_baselines_stand_beside_the_score(tuned):
    folder, quality = tuned
    assert quality["epochs"][1]["validation_loss"] < quality["epochs"][0]["validation_loss"] - 0.1
    assert set(quality["auc"]) == {"tuned", "before", "liked_share_of_history", "liked_share_of_item", "both"}
    assert json.loads((folder / "quality.json").read_text())["auc"] == quality["auc"]


def test_the_merged_export_gives_the_probabilities_of_training(tuned, generator_base, tmp_path):
    from samples import settings

    from llmrec_plugin.artifacts import ArtifactStore
    from llmrec_plugin.binding import bind
    from llmrec_plugin.export import export_generator, read_generator
    from llmrec_plugin.pipeline.columns import Written
    from llmrec_plugin.runtime.runner import Runner

    folder, _ = tuned
    _, rows = example_rows(likes(), SETTINGS)
    columns = {name: rows[name].tolist() for name in ("liked", "disliked", "candidate")}
    feature = pointwise_score(model="scorer", entity="pair")
    merged = TrainableGenerator(generator_in(str(folder), chat=False, max_tokens=640))
    answers = merged.answers(["Yes", "No"])
    examples = [Example(prompt, answers[0]) for prompt in merged.prompts(feature, columns, room=3)]
    expected = training.probabilities(merged, examples, answers, 8)
    assert len(set(expected.round(6))) > 4  # rows differ

    store = ArtifactStore([tmp_path / "store"])
    for name, source in (("scorer", folder), ("adapter", folder / "adapter")):
        export_generator(read_generator(name, str(source), task="causal", chat=False, max_tokens=640), store)
        runner = Runner(settings(tmp_path / name, artifact_folders=(tmp_path / "store",)))
        computed = runner.compute(bind(replace(feature, model=name), runner.store), columns, "batch")
        runner.drain()
        values = [value.value if isinstance(value, Written) else value for value in computed.values]
        assert values == pytest.approx(expected.tolist(), abs=1e-5), name


def test_a_run_that_was_stopped_ends_with_the_same_bits(tuned, generator_base, tmp_path):
    folder, _ = tuned

    class StopError(Exception):
        pass

    def stop(line):
        if line.startswith("epoch 1"):
            raise StopError

    with pytest.raises(StopError):
        training.train_scorer(likes(), str(generator_base), tmp_path, SETTINGS, progress=False, report=stop)
    training.train_scorer(likes(), str(generator_base), tmp_path, SETTINGS, **QUIET)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_the_command_reads_atomic_files_and_prints_the_measured_table(generator_base, tmp_path):
    pytest.importorskip("peft", reason="the tune extra is not installed")
    write_atomic(likes(), tmp_path / "data")
    options = "--liked-from 4 --rows 8 --evaluated 16 --epochs 1 --max-tokens 640 --rank 2 --most-items 1"
    done = CliRunner().invoke(
        commands.llm_scorer,
        ["--data", str(tmp_path / "data"), "--base", str(generator_base), "--output", str(tmp_path / "out"),
         *options.split()],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "liked share of history" in done.output
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").is_file()
