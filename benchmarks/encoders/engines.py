"""The rows of the benchmark. A new row is an entry here; a new library is an adapter and a requirement file, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ADAPTERS = "benchmarks.encoders.adapters"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One way to encode texts.

    Attributes:
        name: Short name, for ``--engines`` and as key of the result.
        label: How tables and the chart call it.
        adapter: A module as `adapters` describes it, by its full name.
        environment: File in ``requirements``, without ``.txt``; None is the project's own environment.
        options: What the adapter's `load` takes beside the paths.
        environ: Environment variables of the process.
        ours: Whether it is this project.
        setup: What a user has to set so that speed and vectors are right; empty where nothing is.
    """

    name: str
    label: str
    adapter: str
    environment: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    ours: bool = False
    setup: str = ""


def ours(name: str, label: str, *, artifact: str | None = None, environ: Mapping[str, str] | None = None) -> Engine:
    """A row of this project.

    Args:
        name: As in `Engine`.
        label: As in `Engine`.
        artifact: Name of the exported model, where it is not that of the benchmark.
        environ: Settings, such as ``LLMREC_THREADS``.
    """
    options = {"artifact": artifact} if artifact else {}
    return Engine(
        name=name,
        label=label,
        adapter=f"{ADAPTERS}.llmrec",
        environment=None,
        options=options,
        environ=environ or {},
        ours=True,
    )


OURS = (
    ours("llmrec", "llmrec fp32"),
    ours("llmrec-openvino", "llmrec fp32 in OpenVINO", environ={"LLMREC_RUNTIME": "openvino"}),
    ours("llmrec-int8", "llmrec int8", artifact="all-minilm-l6-v2-int8"),
    ours("llmrec-int8-fast", "llmrec int8, no product in fp32", artifact="all-minilm-l6-v2-int8-fast"),
    ours("llmrec-bf16", "llmrec bf16 in OpenVINO", artifact="all-minilm-l6-v2-bf16"),
)

# The baseline of every ratio: what one writes first.
PLAIN = Engine(
    name="onnxruntime",
    label="plain ONNX Runtime",
    adapter=f"{ADAPTERS}.onnxruntime",
    environment="onnxruntime",
    options={"rows": 32},
    setup="our graph (pooling and unit length inside); batches of 32 in the order of the texts",
)

PEERS = (
    Engine(
        name="st-torch",
        label="sentence-transformers torch fp32",
        adapter=f"{ADAPTERS}.sentence_transformers",
        environment="sentence-transformers",
        options={"backend": "torch", "dtype": "float32"},
    ),
    Engine(
        name="st-torch-bf16",
        label="sentence-transformers torch bf16",
        adapter=f"{ADAPTERS}.sentence_transformers",
        environment="sentence-transformers",
        options={"backend": "torch", "dtype": "bfloat16"},
    ),
    Engine(
        name="st-onnx",
        label="sentence-transformers ONNX",
        adapter=f"{ADAPTERS}.sentence_transformers",
        environment="sentence-transformers",
        options={"backend": "onnx"},
        setup="graph exported beforehand; by itself it exports at every start",
    ),
    Engine(
        name="transformers",
        label="transformers torch",
        adapter=f"{ADAPTERS}.transformers",
        environment="transformers",
        options={"rows": 32},
        setup="sorting, pooling and unit length written by hand",
    ),
    Engine(
        name="fastembed",
        label="fastembed",
        adapter=f"{ADAPTERS}.fastembed",
        environment="fastembed",
        options={"rows": 32},
        setup="add_custom_model with mean pooling; model_max_length=256 in tokenizer_config.json, else it reads 512 "
        "tokens; batch_size=32, as others have, instead of 256",
    ),
    Engine(
        name="infinity-torch",
        label="infinity torch",
        adapter=f"{ADAPTERS}.infinity",
        environment="infinity-emb",
        options={"engine": "torch"},
    ),
    Engine(
        name="infinity-optimum",
        label="infinity optimum",
        adapter=f"{ADAPTERS}.infinity",
        environment="infinity-emb",
        options={"engine": "optimum"},
        setup="pooling_method=mean, else it takes the first token; max_position_embeddings=256 in config.json, else it "
        "reads 512 tokens; the graph's path patched, else it is not found; optimization left to ONNX Runtime, as its "
        "own writes into the model's folder",
    ),
    PLAIN,
)

# What every vector is compared with: PyTorch in float32, one text at a time, so that nothing is padded.
REFERENCE = Engine(
    name="reference",
    label="PyTorch fp32, one text at a time",
    adapter=f"{ADAPTERS}.transformers",
    environment=None,
    options={"rows": 1},
    environ={"OMP_NUM_THREADS": "1"},  # it is not timed, and one text gains little from more
)

ENGINES = (*OURS, *PEERS)


def select(names: list[str]) -> tuple[Engine, ...]:
    """The engines with these names in the order of the table; all of them for an empty list.

    Raises:
        SystemExit: There is no such engine.
    """
    known = [engine.name for engine in ENGINES]
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise SystemExit(f"No engine is called {', '.join(unknown)}. There are: {', '.join(known)}.")
    return tuple(engine for engine in ENGINES if not names or engine.name in names)
