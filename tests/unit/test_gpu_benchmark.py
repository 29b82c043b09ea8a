"""The benchmark for GPUs, where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmrec_plugin.runtime.providers import gpu_obstacle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import gpu
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return gpu


def test_without_a_usable_gpu_it_says_why_and_measures_nothing(tmp_path):
    if gpu_obstacle() is None:
        pytest.skip("CUDA is usable on this machine")
    out = tmp_path / "result.json"
    run = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--texts", "none", "--out", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == f"There is no usable GPU, so nothing is measured: {gpu_obstacle()}.\n"
    assert not out.exists()


def test_what_a_model_needs_is_counted_from_its_graph(benchmark, tmp_path):
    """One layer of hidden size 4 and 8 inside."""
    shapes = {"q": (4, 4), "k": (4, 4), "v": (4, 4), "o": (4, 4), "up": (4, 8), "down": (8, 4)}
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_out"]) for name in shapes]
    nodes += [helper.make_node("MatMul", ["q_out", "k_out"], ["scores"])]
    nodes += [helper.make_node("Softmax", ["scores"], ["shares"])]
    weights = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "layer", inputs, [], weights)), tmp_path / "model.onnx")
    lengths = np.array([3, 5])
    expected = 2 * (4 * 16 + 2 * 32) * 8 + 4 * 4 * (9 + 25)
    assert benchmark.model_flops(tmp_path / "model.onnx", lengths) == expected


def test_overlap_counts_the_neighbours_that_agree(benchmark):
    rows = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    assert benchmark.overlap(rows * 3, rows) == 1.0
    assert benchmark.overlap(rows[::-1], rows) < 0.2


def test_every_switch_is_measured_alone(benchmark):
    variants = benchmark.our_variants(fp16=True)
    assert len(set(variants)) == len(variants)
    for precision in ("fp32", "fp16"):
        switches = {(v.graphs, v.fused) for v in variants if (v.precision, v.batch) == (precision, 32_768)}
        assert switches == {(False, False), (True, False), (False, True), (True, True)}
    assert {v.precision for v in benchmark.our_variants(fp16=False)} == {"fp32"}


def test_a_variant_that_fails_is_told_and_the_others_go_on(benchmark):
    sound, broken = benchmark.Variant("ours", "fp32", 1), benchmark.Variant("ours", "fp32", 2)

    def run():
        raise MemoryError("too large")

    results, failed = benchmark.measure({broken: run, sound: lambda: (1.0, np.zeros((1, 1)))}, rounds=3)
    assert failed == {broken: "MemoryError: too large"}
    assert results[sound][0] == [1.0] * 3
    assert broken not in results


def test_figures_are_those_of_the_median_round_against_the_peak_of_the_type(benchmark):
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    half = benchmark.Variant("ours", "fp16", 32_768)
    results = {benchmark.REFERENCE: ([2.0, 9.0, 1.0], vectors), half: ([1.0], vectors)}
    first, second = benchmark.report(results, flops=100.0, peaks={"fp32": 200.0, "fp16": 1000.0})
    assert (first["precision"], first["texts_per_second"], first["share_of_peak"]) == ("fp16", 50.0, 0.1)
    assert (second["texts_per_second"], second["best"], second["share_of_peak"]) == (25.0, 50.0, 0.25)
    assert (second["cosine_min"], second["overlap_at_10"]) == (pytest.approx(1.0), 1.0)
