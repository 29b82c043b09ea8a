"""Which providers of ONNX Runtime really compute here: each opens a graph of one matrix product and runs it."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llmrec_plugin.errors import ProviderError
from llmrec_plugin.runtime.providers import CPU, CUDA, TENSORRT, gpu_obstacle, import_onnxruntime, provider_options
from llmrec_plugin.runtime.session import new_session

MATRIX_PRODUCT = base64.b64decode(
    "CAc6VQoRCgFhCgFiEgFjIgZNYXRNdWwSAWdaEwoBYRIOCgwIARIICgIIAgoCCAJaEwoBYhIOCgwIARIICgIIAgoCCAJiEwoBYxIO"
    "CgwIARIICgIIAgoCCAJCBAoAEA0="
)
"""An ONNX file: ``c`` = ``a`` @ ``b``, each (2, 2) float32. Kept as bytes since the package onnx may not be here."""
_REMOTE = frozenset({"AzureExecutionProvider"})  # computes nothing on this machine


def offered_providers() -> list[str]:
    """The providers that ONNX Runtime says it has and that compute on this machine.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    return [name for name in import_onnxruntime().get_available_providers() if name not in _REMOTE]


def obstacle(provider: str) -> str | None:
    """Why `provider` does not compute here, or None if it does."""
    known = gpu_obstacle(provider) if provider in (CUDA, TENSORRT) else None
    if known:
        return known
    options = provider_options(provider) if provider in (CPU, CUDA, TENSORRT) else [provider, CPU]
    matrix = np.array([[1, 2], [3, 4]], np.float32)
    try:
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder, "matrix_product.onnx")
            graph.write_bytes(MATRIX_PRODUCT)
            (product,) = new_session(graph, options).run(None, {"a": matrix, "b": matrix})
    except ProviderError as exc:
        return str(exc)
    except Exception as exc:  # ONNX Runtime raises classes of its own for whatever a provider refuses
        return f"ONNX Runtime says {type(exc).__name__}: {exc}"
    if not np.array_equal(product, matrix @ matrix):
        return f"it computed a product of matrices as {product.tolist()}, expected {(matrix @ matrix).tolist()}"
    return None


def unusable_providers() -> Iterator[tuple[str, str]]:
    """Each provider that ONNX Runtime offers and that does not compute here, and why."""
    for provider in offered_providers():
        reason = obstacle(provider)
        if reason:
            yield provider, reason
