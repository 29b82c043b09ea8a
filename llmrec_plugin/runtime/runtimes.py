"""Which runtime runs a model here, and the model opened in it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from llmrec_plugin.artifacts import Artifact
from llmrec_plugin.errors import LLMRecError, ProviderError, UnknownNameError
from llmrec_plugin.inference import Opener, Placement, Runtime, Session
from llmrec_plugin.manager import load_catalogue
from llmrec_plugin.runtime.session import ONNXRUNTIME
from llmrec_plugin.settings import Settings

AUTO = "auto"


def choose_runtime(artifact: Artifact, settings: Settings) -> Runtime:
    """The runtime that the settings name; for ``auto`` the first that has the precision, ONNX Runtime before others.

    Plugins are consulted only when ONNX Runtime is not to run the model. A runtime that reads texts is never taken
    unasked: texts that leave the process may leave the machine.

    Raises:
        UnknownNameError: The settings name a runtime that nobody registered.
        ProviderError: The runtime, or every runtime, lacks the precision.
    """
    precision = artifact.manifest.precision
    model = f"Model {artifact.manifest.model!r} (artifact {artifact.id[:16]}) has precision {precision!r}"
    if settings.runtime == AUTO:
        for runtime in _runtimes(settings):
            if precision in runtime.precisions and runtime.reads == "tokens":
                return runtime
        raise ProviderError(
            f"{model}, which no installed runtime has. Install a plugin that registers one "
            '(pip install "llmrec-plugin[openvino]" has bf16), or use a model of another precision.'
        )
    known = {runtime.name: runtime for runtime in _runtimes(settings, until=settings.runtime)}
    if settings.runtime not in known:
        raise UnknownNameError("runtime", settings.runtime, known)
    runtime = known[settings.runtime]
    if precision not in runtime.precisions:
        raise ProviderError(
            f"{model}, but LLMREC_RUNTIME={runtime.name} runs {', '.join(runtime.precisions)}. "
            "Set LLMREC_RUNTIME=auto, or use a model of another precision."
        )
    return runtime


def open_session(runtime: Runtime, artifact: Artifact, settings: Settings, placement: Placement) -> Session:
    """The model, open in `runtime`.

    Raises:
        ProviderError: The runtime cannot be imported, or cannot run the model on this device.
    """
    try:
        opener = _load(runtime)
        return opener(artifact, device=settings.device, placement=placement)
    except LLMRecError:
        raise
    except Exception as exc:  # an engine may raise anything
        raise ProviderError(
            f"Runtime {runtime.name!r} ({runtime.opener}) cannot open model {artifact.manifest.model!r}: "
            f"{type(exc).__name__}: {exc}. Set LLMREC_RUNTIME to another runtime, or report this to its author."
        ) from exc


def _runtimes(settings: Settings, until: str | None = None) -> Iterator[Runtime]:
    """ONNX Runtime, then what plugins register; plugins are left alone if it is the one looked for."""
    yield ONNXRUNTIME
    if until != ONNXRUNTIME.name:
        for item in load_catalogue(settings.disabled_plugins).runtimes.values():
            yield item.declaration


def _load(runtime: Runtime) -> Opener:
    module, _, function = runtime.opener.partition(":")
    opener: Opener = getattr(importlib.import_module(module), function)
    return opener
