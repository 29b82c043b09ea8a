"""Work that may need more memory than there is: halved and tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from llmrec_plugin.errors import ProviderError

logger = logging.getLogger(__name__)


class Items(Protocol):
    """What can be halved: a sequence or an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any: ...


T = TypeVar("T", bound=Items)

_SIGNS = ("failed to allocate memory", "out of memory", "outofmemory", "bad_alloc", "bad allocation", "alloc_failed")
"""How ONNX Runtime, CUDA and C++ say it; they have no class of their own for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an engine or Python failed for want of memory."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)


def run_halving(run: Callable[[T], None], items: T, what: str) -> None:
    """Calls ``run(items)``; where memory is short, with one half and then with the other, down to single items.

    Args:
        run: Must give the same when it is called again with items that it has failed on.
        items: What to run over.
        what: For messages, e.g. ``Model 'tiny'``.

    Raises:
        ProviderError: There is not the memory for one item.
    """
    if not len(items):
        return
    try:
        run(items)
        return
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
        if len(items) == 1:
            raise ProviderError(
                f"{what}: out of memory with a batch of one row ({type(exc).__name__}). Declare a smaller max_tokens, "
                "set LLMREC_THREADS lower, run fewer processes beside it, or give it more memory."
            ) from exc
    half = len(items) // 2
    # Outside of the handler: its traceback holds what the failed batch had allocated.
    logger.warning("%s: out of memory with a batch of %d rows; it is halved.", what, len(items))
    run_halving(run, items[:half], what)
    run_halving(run, items[half:], what)
