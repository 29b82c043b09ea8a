"""Graphs with fused attention, for GPUs.

An exported graph spells attention out in some 60 nodes per layer. ONNX Runtime's own optimizer turns them into one
`Attention`, one `BiasGelu` and two `SkipLayerNormalization`, for which the GPU has single kernels. It reads nothing
beyond the pooling that an export adds: shape inference gives up on it, and then no attention is fused and no error is
raised. So the transformer is fused alone, and the rest put back.

The result is kept in the cache folder; the artifact stays as it is, and its golden vectors check the result as they
check any runtime.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.manifests import GRAPH

logger = logging.getLogger(__name__)

TOKENS = "last_hidden_state"
"""The value in the graph at which the transformer ends, (rows, length, hidden)."""


def fused_graph(artifact: Artifact, folder: Path) -> Path | None:
    """The graph of `artifact` with fused attention.

    Args:
        artifact: The exported model.
        folder: Where the result is kept; of this artifact and this version of ONNX Runtime alone.

    Returns:
        The file, or None where it could not be made; the log says why.
    """
    path = folder / "fused.onnx"
    if path.is_file():
        return path
    model = artifact.manifest.model
    extra = sorted(name for name in artifact.manifest.files if name.startswith(f"{GRAPH}_"))
    if extra:
        logger.warning("%s runs without fused attention: its weights lie beside the graph, in %s.", model, extra[0])
        return None
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        import onnx

        folder.mkdir(parents=True, exist_ok=True)
        fused = fuse(onnx.load(artifact.path(GRAPH)), right_padded=artifact.manifest.padding_side == "right")
        onnx.save(fused, temporary)
        os.replace(temporary, path)
    except Exception as exc:  # the optimizer raises whatever it meets in a graph that it does not know
        logger.warning("%s runs without fused attention: %s: %s", model, type(exc).__name__, exc)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return None
    return path


def fuse(model: Any, *, right_padded: bool) -> Any:
    """An ONNX model with fused attention, normalization and GELU. `model` is used up.

    Args:
        model: A ``ModelProto`` whose transformer ends in `TOKENS`.
        right_padded: Whether texts are padded on the right, so that their lengths say what is padding.

    Raises:
        ValueError: Something was left unfused.
        ImportError: The packages onnx or sympy are not installed.
    """
    # onnxruntime brings the optimizer, but not what it imports.
    from onnx import ModelProto, ValueInfoProto, helper
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    body, tail = _split(model.graph)
    before = Counter(node.op_type for node in body)
    whole = ModelProto()
    whole.CopyFrom(model)
    _replace(model.graph.node, body)
    _replace(model.graph.output, [ValueInfoProto(name=name) for name in _handed_over(body, tail)])

    options = FusionOptions("bert")  # its patterns are those of every encoder with BERT's layers
    options.use_raw_attention_mask(not right_padded)
    with contextlib.redirect_stdout(io.StringIO()) as said, _quiet():
        # Heads and hidden size of 0 are read from the graph; opt_level=0 leaves ONNX Runtime's own passes to the GPU.
        optimizer = optimize_model(
            model, "bert", num_heads=0, hidden_size=0, optimization_options=options, opt_level=0, only_onnxruntime=False
        )
    logger.debug("Optimizer: %s", said.getvalue())
    fused = optimizer.model
    _check(before, Counter(node.op_type for node in fused.graph.node))

    fused.graph.node.extend(tail)
    _replace(fused.graph.output, whole.graph.output)
    known = {item.name for item in fused.graph.initializer}
    read = {name for node in tail for name in node.input}
    fused.graph.initializer.extend(
        item for item in whole.graph.initializer if item.name in read and item.name not in known
    )
    if "com.microsoft" not in {item.domain for item in fused.opset_import}:
        fused.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    names = {item.name for item in fused.graph.input}
    fused.graph.input.extend(item for item in whole.graph.input if item.name not in names)
    return fused


def _split(graph: Any) -> tuple[list[Any], list[Any]]:
    """The nodes that `TOKENS` is computed by, and the others."""
    makers = {name: node for node in graph.node for name in node.output}
    if TOKENS not in makers:
        raise ValueError(f"no value of the graph is named {TOKENS!r}")
    found, open_names = set(), [TOKENS]
    while open_names:
        name = open_names.pop()
        if name in makers and name not in found:
            found.update(makers[name].output)
            open_names += makers[name].input
    body = [node for node in graph.node if node.output[0] in found]
    return body, [node for node in graph.node if node.output[0] not in found]


def _handed_over(body: list[Any], tail: list[Any]) -> list[str]:
    """What the first nodes compute for the others."""
    computed = {name for node in body for name in node.output}
    return list(dict.fromkeys(name for node in tail for name in node.input if name in computed))


def _check(before: Counter[str], after: Counter[str]) -> None:
    attentions = after["Attention"] + after["MultiHeadAttention"]
    if not attentions or attentions != before["Softmax"]:
        raise ValueError(f"{attentions} of {before['Softmax']} attentions were fused")
    if after["SkipLayerNormalization"] < attentions:
        raise ValueError(f"{after['SkipLayerNormalization']} normalizations were fused, expected one per attention")
    if after["Erf"]:
        raise ValueError(f"{after['Erf']} of {before['Erf']} GELUs were left unfused")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the optimizer's warning that PyTorch did not write this graph."""
    chatty = logging.getLogger("onnxruntime.transformers.optimizer")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chatty.setLevel(level)


def _replace(field: Any, values: Any) -> None:
    values = list(values)
    del field[:]
    field.extend(values)
