"""What this machine's processors do at best: matrix products by every library at hand.

Speaks the protocol of `worker` with one command: {"command": "measure"} gives {"rates": [Rate, ...]}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

SQUARE = (2048, 2048, 2048)
SHAPES = (SQUARE, (2048, 384, 1536))  # the second is the feed-forward layer of a small encoder
SECONDS = 0.2  # per product, and at least one call

Product = Callable[[], object]


def products(m: int, k: int, n: int) -> Iterator[tuple[str, str, Product]]:
    """(number type, library, call) of an (m, k) by (k, n) product; the right side is constant, as weights are."""
    import torch

    random = np.random.default_rng(0)
    left, right = (random.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n)))
    yield "fp32", "numpy", lambda: left @ right
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    yield "fp32", "torch", lambda: a @ b
    yield "fp32", "onnxruntime", _onnx("MatMul", left, right)
    if (m, k, n) != SQUARE:  # minutes on a processor without bf16
        a16, b16 = a.bfloat16(), b.bfloat16()
        yield "bf16", "torch", lambda: a16 @ b16
    a8 = random.integers(0, 256, (m, k), dtype=np.uint8)
    b8 = random.integers(-128, 128, (k, n), dtype=np.int8)
    yield "int8", "onnxruntime", _onnx("MatMulInteger", a8, b8)


def _onnx(operator: str, left: np.ndarray, right: np.ndarray) -> Product:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    output = TensorProto.FLOAT if left.dtype == np.float32 else TensorProto.INT32
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        operator,
        [helper.make_tensor_value_info("left", helper.np_dtype_to_tensor_dtype(left.dtype), left.shape)],
        [helper.make_tensor_value_info("product", output, (left.shape[0], right.shape[1]))],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})


def measure() -> list[dict[str, Any]]:
    """The best rate of each product, in 10^9 operations a second; a multiply-add counts as two."""
    rates = []
    for m, k, n in SHAPES:
        for kind, library, product in products(m, k, n):
            best, end = float("inf"), time.perf_counter() + SECONDS
            while best == float("inf") or time.perf_counter() < end:
                begun = time.perf_counter()
                product()
                best = min(best, time.perf_counter() - begun)
            rates.append(
                {"type": kind, "library": library, "shape": [m, k, n], "gflops": round(2 * m * k * n / best / 1e9, 1)}
            )
    return rates


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps({"rates": measure()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
