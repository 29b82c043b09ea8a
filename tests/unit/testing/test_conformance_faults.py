"""For each check of the conformance kit a planted fault that it catches, beside a healthy plugin that passes."""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import samples

from llmrec_plugin import hookimpl
from llmrec_plugin.artifacts import ArtifactStore, sha256_file
from llmrec_plugin.manifests import GOLDEN, MANIFEST, TOKENIZER
from llmrec_plugin.runtime.encoder import Encoder
from llmrec_plugin.testing import CheckFailed, conformance
from llmrec_plugin.testing.checks import declarations, feast, processes, values
from llmrec_plugin.testing.declarations import Declared, find_declarations
from llmrec_plugin.testing.subjects import Outcome, Subject

FEATURE = samples.embedding(text="{title}. {note}")
DECLARED = Declared("healthy", "", {FEATURE.name: FEATURE}, {"tiny": samples.model()})
HEALTHY = Subject(FEATURE, DECLARED)


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory):
    from tiny import export_tiny  # loads onnx

    folder = tmp_path_factory.mktemp("home")
    export_tiny(ArtifactStore([folder / "artifacts"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMREC_HOME", str(folder))
        patch.setenv("LLMREC_DEVICE", "cpu")
        patch.setenv("LLMREC_THREADS", "1")
        yield folder


@dataclass(frozen=True)
class Faulty(Subject):
    """A feature whose values something spoils: ``fault(columns, outcome, mode)`` gives other ones."""

    fault: object = field(default=None)

    def compute_columns(self, columns, mode="batch"):
        outcome = super().compute_columns(columns, mode)
        return self.fault(columns, outcome, mode) or outcome


def spoiled(fault):
    return Faulty(FEATURE, DECLARED, {}, fault)


def moved(outcome, by):
    """The values with something added to each."""
    pairs = zip(outcome.values, by, strict=False)
    changed = [None if value is None else value + np.float32(step) for value, step in pairs]
    return Outcome(changed, outcome.statuses)


def caught(check, subject, *words):
    """Makes a check that must fail, with a message that has these words."""
    with pytest.raises(CheckFailed) as failure:
        check(subject)
    message = str(failure.value)
    assert "expected " in message
    assert ", got " in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("check", conformance.VALUE_CHECKS, ids=lambda check: check.__name__)
def test_a_healthy_feature_passes(check):
    check(HEALTHY)


class Nonsense:
    @hookimpl
    def llmrec_register_features(self):
        return ["no feature"]


class Sound:
    @hookimpl
    def llmrec_register_features(self):
        return [FEATURE]


def test_a_hook_that_returns_nonsense():
    declarations.hooks_give_declarations(find_declarations(Sound()))
    words = "expected an iterable of EmbeddingFeature"
    caught(declarations.hooks_give_declarations, find_declarations(Nonsense()), words)


PLUGIN = """
from llmrec_plugin import EmbeddingFeature, hookimpl
{imports}

@hookimpl
def llmrec_register_features():
    {statement}
    return [EmbeddingFeature(
        name="item_title_embedding", entity="item", text="{{title}}", model="tiny", pooling="mean", normalize=True,
        prefix="", metric="cosine", max_tokens=16, dims=8, max_chars={max_chars},
    )]
"""


@pytest.fixture
def write_plugin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tensorflow.py").write_text("")  # stands for the package, which takes seconds

    def write(name, imports="", statement="", max_chars="100"):
        (tmp_path / f"{name}.py").write_text(
            PLUGIN.format(imports=imports, statement=statement, max_chars=max_chars), encoding="utf-8"
        )
        return find_declarations(name)

    return write


def test_a_heavy_import(write_plugin):
    declarations.importing_is_light(write_plugin("light_plugin"))
    caught(declarations.importing_is_light, write_plugin("heavy_plugin", imports="import tensorflow"), "tensorflow")
    late = write_plugin("late_plugin", statement="import tensorflow")
    caught(declarations.importing_is_light, late, "tensorflow")


def test_a_declaration_that_changes_from_process_to_process(write_plugin):
    def subject(declared):
        return Subject(declared.features["item_title_embedding"], declared)

    declarations.declaration_is_stable(subject(write_plugin("stable_plugin")))
    unstable = write_plugin("unstable_plugin", max_chars="1 + abs(hash('chars'))")
    caught(declarations.declaration_is_stable, subject(unstable), "in a fresh process")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "tiniest"}, "'tiniest' to be declared"),
        ({"pooling": "cls"}, "pooling 'mean'"),
        ({"normalize": False}, "normalize True"),
        ({"max_tokens": 17}, "at most 16"),
        ({"dims": 9}, "dims 8"),
        ({"dims": 8, "reduction": "prefix"}, "fewer than 8"),
    ],
)
def test_a_declaration_that_contradicts_its_model(changes, words):
    caught(declarations.declaration_is_valid, Subject(replace(FEATURE, **changes), DECLARED), words)


def test_a_valid_declaration_passes():
    declarations.declaration_is_valid(HEALTHY)
    declarations.declaration_is_valid(Subject(samples.model(), DECLARED))


@pytest.fixture
def broken_artifact(tmp_path, monkeypatch):
    """A copy of the artifact that a test may break."""
    from tiny import export_tiny

    monkeypatch.setenv("LLMREC_ARTIFACTS", str(tmp_path))
    return export_tiny(ArtifactStore([tmp_path])).folder


def test_a_file_that_is_not_what_the_manifest_says(broken_artifact):
    [check] = [item for item in conformance.checks_of([FEATURE]) if item.id.endswith("artifact_matches_its_manifest")]
    check.run()
    with (broken_artifact / TOKENIZER).open("a") as stream:
        stream.write(" ")
    with pytest.raises(CheckFailed, match=r"tokenizer\.json of model 'tiny': expected sha256"):
        check.run()


def with_golden(folder, golden):
    """Replaces the golden vectors, as an exporter would that computed other ones."""
    np.save(folder / GOLDEN, golden)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][GOLDEN] = sha256_file(folder / GOLDEN)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_golden_vectors_of_another_shape(broken_artifact):
    with_golden(broken_artifact, np.zeros((4, 3), dtype=np.float32))
    caught(declarations.artifact_matches_its_manifest, HEALTHY, "('n', 8)", "(4, 3)", "llmrec export tiny")


def test_golden_vectors_that_do_not_come_out(broken_artifact):
    declarations.golden_values_come_out(HEALTHY)
    golden = np.load(broken_artifact / GOLDEN)
    with_golden(broken_artifact, golden[::-1].copy())
    caught(declarations.golden_values_come_out, HEALTHY, "golden text", "cosine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.astype(np.float64), "a float32 vector of shape (8,)"),
        (lambda value: value[:7], "a float32 vector of shape (8,)"),
        (lambda value: value * np.float32(np.nan), "finite components"),
        (lambda value: value * np.float32(2), "unit L2 norm"),
        (lambda value: None, "a float32 vector of shape (8,)"),
    ],
)
def test_values_of_another_form(change, words):
    subject = spoiled(lambda _, outcome, mode: Outcome([*map(change, outcome.values)], outcome.statuses))
    caught(values.values_have_the_declared_form, subject, words)


def test_a_row_that_is_lost():
    subject = spoiled(lambda _, outcome, mode: Outcome(outcome.values[1:], outcome.statuses[1:]))
    caught(values.values_have_the_declared_form, subject, "12 values", "11 and 11")


def test_rows_that_are_sorted_and_not_put_back():
    def sort(columns, outcome, mode):
        order = np.argsort([len(text) for text in columns["title"]], kind="stable")
        return Outcome([outcome.values[number] for number in order], outcome.statuses)

    caught(values.order_is_kept, spoiled(sort), "another order", "a difference of")


def test_values_that_depend_on_the_batch():
    caught(
        values.row_alone_equals_row_in_batch,
        spoiled(lambda _, outcome, mode: moved(outcome, [0.01 * len(outcome.values)] * len(outcome.values))),
        "when it is computed alone",
    )


def test_a_state_that_is_kept_between_rows():
    seen = []

    def count(columns, outcome, mode):
        seen.append(None)
        return moved(outcome, [0.01 * len(seen)] * len(outcome.values))

    caught(values.duplicates_are_equal, spoiled(count), "for its duplicate")


def test_a_row_that_fails_all():
    def refuse(columns, outcome, mode):
        if any("\x00" in str(text) for text in columns["title"]):
            raise ValueError("embedded null character")

    caught(values.hostile_values_follow_the_policy, spoiled(refuse), "ValueError: embedded null character")


def test_a_hostile_row_that_touches_its_neighbours():
    def leak(columns, outcome, mode):
        return moved(outcome, [0.1 * any("<|endoftext|>" in str(text) for text in columns["title"])] * 1_000)

    caught(values.hostile_values_follow_the_policy, spoiled(leak), "beside hostile rows")


def test_a_blank_row_that_is_computed():
    def compute_all(columns, outcome, mode):
        unit = np.eye(8, dtype=np.float32)[0]
        return Outcome([unit if value is None else value for value in outcome.values], ["ok"] * len(outcome.values))

    caught(values.hostile_values_follow_the_policy, spoiled(compute_all), "status 'empty'")


def test_inputs_that_are_changed():
    def clean(columns, outcome, mode):
        columns["title"][0] = columns["title"][0].strip("0123456789")

    caught(values.inputs_are_unchanged, spoiled(clean), "changed column 'title'")


def test_threads_that_disturb_each_other():
    def race(columns, outcome, mode):
        return moved(outcome, [0.1 * (threading.current_thread() is not threading.main_thread())] * 100)

    caught(values.threads_agree, spoiled(race), "threads")


def test_memory_that_is_kept():
    kept = []

    def keep(columns, outcome, mode):
        kept.append(np.zeros((len(outcome.values), 5_000)))

    values.memory_is_bounded(HEALTHY)
    caught(values.memory_is_bounded, spoiled(keep), "that are kept")


def test_memory_that_grows_with_the_square_of_the_rows():
    def widen(columns, outcome, mode):
        np.zeros((len(outcome.values), 50_000))

    caught(values.memory_is_bounded, spoiled(widen), "at work")


def test_a_forked_child_that_computes_something_else(monkeypatch):
    processes.fork_agrees(HEALTHY)
    here, encode = os.getpid(), Encoder.encode

    def encode_otherwise(self, texts, **options):
        vectors, tokens = encode(self, texts, **options)
        return (vectors if os.getpid() == here else vectors[::-1]), tokens

    monkeypatch.setattr(Encoder, "encode", encode_otherwise)  # which a child inherits
    caught(processes.fork_agrees, HEALTHY, "in a forked process")


def test_a_spawned_worker_that_computes_something_else(monkeypatch):
    processes.spawn_agrees(HEALTHY)
    encode = Encoder.encode

    def encode_otherwise(self, texts, **options):
        vectors, tokens = encode(self, texts, **options)
        return vectors[::-1], tokens

    monkeypatch.setattr(Encoder, "encode", encode_otherwise)  # which a fresh process does not have
    caught(processes.spawn_agrees, HEALTHY, "in a fresh process")


@pytest.mark.feast
def test_another_value_from_feast(monkeypatch):
    answers = []  # Feast is asked once, which takes seconds

    def asked_once(target, **arguments):
        if not answers:
            answers.append(call_fresh(target, **arguments))
        return answers[0]

    call_fresh = feast.call_fresh
    monkeypatch.setattr(feast, "call_fresh", asked_once)
    feast.feast_gives_the_same(HEALTHY)
    subject = spoiled(lambda _, outcome, mode: moved(outcome, [0.01] * len(outcome.values)))
    caught(feast.feast_gives_the_same, subject, "from Feast, online, item_title_embedding:item_title_embedding")


def test_every_check_is_in_this_file():
    text = re.sub(r"\(\s+", "(", Path(__file__).read_text(encoding="utf-8"))
    checks = (
        *conformance.PLUGIN_CHECKS,
        *conformance.MODEL_CHECKS,
        *conformance.VALUE_CHECKS,
        *conformance.COLUMN_CHECKS,
        *conformance.FEAST_CHECKS,
    )
    calls = {check: f"caught({check.__module__.rpartition('.')[2]}.{check.__name__}," for check in checks}
    assert [check.__name__ for check, call in calls.items() if call not in text] == []
