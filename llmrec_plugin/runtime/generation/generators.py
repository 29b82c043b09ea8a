"""Which engine writes with a model here, and the model opened in it."""

from __future__ import annotations

import importlib

from llmrec_plugin.artifacts import GeneratorArtifact
from llmrec_plugin.errors import LLMRecError, ProviderError, UnknownNameError
from llmrec_plugin.generation import GenerationSession, Generator, GeneratorOpener
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.manifests import ENDPOINT
from llmrec_plugin.settings import Settings

AUTO = "auto"
ENDPOINTS = "openai"
"""Runs models that only an endpoint has, unless the settings say otherwise."""

ONNXRUNTIME = Generator(
    name="onnxruntime",
    opener="llmrec_plugin.runtime.generation.session:open_generator",
    description="ONNX Runtime on the CPU, or on an NVIDIA GPU by CUDA",
)


def choose_generator(artifact: GeneratorArtifact, settings: Settings) -> Generator:
    """The engine that the settings name; ``auto`` is ONNX Runtime, or `ENDPOINTS` for a model that is not here.

    Plugins are consulted only for others than ONNX Runtime.

    Raises:
        UnknownNameError: The settings name an engine that nobody registered.
        ProviderError: ONNX Runtime was named for a model that only an endpoint has.
    """
    is_remote = ENDPOINT in artifact.manifest.files
    name = (ENDPOINTS if is_remote else ONNXRUNTIME.name) if settings.generator == AUTO else settings.generator
    if name == ONNXRUNTIME.name:
        if is_remote:
            raise ProviderError(
                f"Model {artifact.manifest.model!r} is behind an endpoint and has no graph for ONNX Runtime. "
                "Set LLMREC_GENERATOR=auto."
            )
        return ONNXRUNTIME
    registered = load_catalogue(settings.disabled_plugins).generators
    if name not in registered:
        raise UnknownNameError("generator", name, [ONNXRUNTIME.name, *registered])
    declaration: Generator = registered[name].declaration
    return declaration


def open_session(artifact: GeneratorArtifact, settings: Settings) -> GenerationSession:
    """The model, its files compared with their hashes, open in the engine that the settings name.

    Raises:
        ArtifactCorruptError: A file differs from the manifest.
        UnknownNameError: The settings name an engine that nobody registered.
        ProviderError: The engine cannot be imported, or cannot run the model on this device.
        ParityError: The engine writes other tokens than the model did at export.
    """
    generator = choose_generator(artifact, settings)
    artifact.verify()
    try:
        module, _, function = generator.opener.partition(":")
        opener: GeneratorOpener = getattr(importlib.import_module(module), function)
        return opener(artifact, device=settings.device, threads=settings.threads)
    except LLMRecError:
        raise
    except Exception as exc:  # an engine may raise anything
        raise ProviderError(
            f"Generator {generator.name!r} ({generator.opener}) cannot open model {artifact.manifest.model!r}: "
            f"{type(exc).__name__}: {exc}. Set LLMREC_GENERATOR to another engine, or report this to its author."
        ) from exc
