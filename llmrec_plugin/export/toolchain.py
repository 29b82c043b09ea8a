"""The packages of the ``export`` extra: import them when needed, keep them quiet, record their versions."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from llmrec_plugin.errors import MissingExtraError

_log = logging.getLogger(__name__)

_RECORDED = ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "tokenizers", "llmrec-plugin")
_CHATTY = ("optimum", "transformers", "huggingface_hub")


def require(module: str, package: str | None = None) -> Any:
    """The imported module.

    Args:
        module: Dotted name to import.
        package: Name to install, where it differs from the module's.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise MissingExtraError(package or module, "export", "Exporting a model") from exc


def versions() -> dict[str, str]:
    """The versions of the packages that make an artifact, by package name."""
    found = {}
    for name in _RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            # onnxruntime is also published as onnxruntime-gpu, and a source checkout of ours has no metadata.
            found[name] = getattr(importlib.import_module(name.replace("-", "_")), "__version__", "unknown")
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the toolchain from printing.

    What it prints and warns goes to this module's logger at level DEBUG; its own log lines below ERROR are
    dropped. The result is compared with PyTorch afterwards, and errors still raise.
    """
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as restore:
        warnings.simplefilter("always")
        require("optimum.exporters.onnx", "optimum-onnx")  # its loggers get their handlers on import
        for name in _CHATTY:
            logger = logging.getLogger(name)
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        restore.enter_context(contextlib.redirect_stdout(printed))
        restore.enter_context(contextlib.redirect_stderr(printed))
        try:
            yield
        finally:
            for warning in caught:
                _log.debug("%s: %s", warning.category.__name__, warning.message)
            for line in printed.getvalue().splitlines():
                _log.debug("%s", line)
