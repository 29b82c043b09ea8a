"""LLM features for Feast: declare a feature once, get it in batch, on demand and in training.

Importing this package is light; feast, torch, transformers and onnxruntime are loaded by the parts
that need them.
"""

import os

from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.errors import LLMRecError
from llmrec_plugin.generation import Completion, GenerationSession, Generator, Request, Segment
from llmrec_plugin.hookspecs import hookimpl
from llmrec_plugin.inference import Batch, Placement, Runtime, Session
from llmrec_plugin.specs import (
    Choice,
    Decoding,
    EmbeddingFeature,
    EncoderModel,
    GaussianNoise,
    GeneratedEmbeddingFeature,
    GeneratorModel,
    HistoryEmbeddingFeature,
    Json,
    LabelModel,
    NetworkFeature,
    NetworkModel,
    Prompt,
    Redaction,
    Scores,
    ShortText,
    SimilarityFeature,
    Slot,
    Tags,
    TokenFeature,
)

__version__ = "0.1.0"

# ONNX Runtime 1.31 notes what a process does and sends it to Microsoft, unless this is set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Artifact",
    "Batch",
    "Choice",
    "Completion",
    "Decoding",
    "EmbeddingFeature",
    "EncoderModel",
    "GaussianNoise",
    "GeneratedEmbeddingFeature",
    "GenerationSession",
    "Generator",
    "GeneratorModel",
    "HistoryEmbeddingFeature",
    "Json",
    "LLMRecError",
    "LabelModel",
    "NetworkFeature",
    "NetworkModel",
    "Placement",
    "Prompt",
    "Redaction",
    "Request",
    "Runtime",
    "Scores",
    "Segment",
    "Session",
    "ShortText",
    "SimilarityFeature",
    "Slot",
    "Tags",
    "TokenFeature",
    "hookimpl",
]
