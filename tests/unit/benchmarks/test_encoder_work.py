"""Our encoder does less work than a plain loop over the same graph: counted, never timed.

When written, ours computed 1.04 times the tokens, which is 0.39 of what the plain loop computed with its padding, and
executed 0.59 of its instructions, repeatable to a thousandth. The bounds leave room for small changes; one that breaks
them costs every user time.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import export_tiny
from unit.benchmarks.work_steps import MAX_TOKENS, PlainLoop, make_texts, our_encoder

from llmrec_plugin.artifacts import ArtifactStore

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """As wide as a real encoder, so that arithmetic has a share in the work."""
    return export_tiny(ArtifactStore([tmp_path_factory.mktemp("wide")]), dims=384, max_tokens=MAX_TOKENS)


@pytest.fixture
def runs(monkeypatch):
    """(rows, length) of every batch that a session is given from here on."""
    from onnxruntime import InferenceSession

    shapes = []

    def counting(method):
        def run(self, names, feeds, *arguments, **options):
            shapes.append(feeds["input_ids"].shape)
            return method(self, names, feeds, *arguments, **options)

        return run

    monkeypatch.setattr(InferenceSession, "run", counting(InferenceSession.run))
    return shapes


def test_next_to_no_padding_is_computed(artifact, runs):
    ours, plain, texts = our_encoder(artifact), PlainLoop(artifact), make_texts(768)
    runs.clear()  # those of the golden texts
    vectors, tokens = ours.encode(texts)
    our_runs = runs.copy()
    runs.clear()
    np.testing.assert_allclose(plain.encode(texts), vectors, atol=1e-6)

    assert sum(rows for rows, _ in our_runs) == sum(rows for rows, _ in runs) == len(texts)
    computed, plainly = (sum(rows * length for rows, length in shapes) for shapes in (our_runs, runs))
    assert tokens <= computed <= 1.08 * tokens
    assert computed <= 0.5 * plainly
    assert max(rows * length for rows, length in our_runs) <= ours.token_budget


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind, which counts instructions, is not installed")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the counted part is marked for x86-64 only")
def test_fewer_instructions_are_executed(artifact, tmp_path):
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
    counter = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={tmp_path / 'count'}"]
    script = [sys.executable, Path(__file__).with_name("work_steps.py"), artifact.folder.parents[1]]
    done = subprocess.run([*counter, *script], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, plain = (
        int(re.search(r"^(?:summary|totals): (\d+)", (tmp_path / f"count.{part}").read_text(), re.MULTILINE)[1])
        for part in (1, 2)
    )
    assert 0 < ours <= 0.7 * plain, f"{ours / plain:.2f} of the instructions of the plain loop"
