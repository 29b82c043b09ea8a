"""Work that is done while its predecessor is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(function: Callable[[A], B], arguments: Sequence[A]) -> Iterator[B]:
    """``map(function, arguments)``, with the next result computed in a thread while the last one is used.

    One result waits at most, so memory does not grow with the work. An error is raised where its result would come.
    Close the iterator, or use it up; either waits for what is being computed.
    """
    if len(arguments) < 2:  # nothing to overlap with, and a thread costs a request more than it takes to tokenize
        yield from map(function, arguments)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="llmrec-ahead") as pool:
        coming = pool.submit(function, arguments[0])
        for argument in arguments[1:]:
            result, coming = coming.result(), pool.submit(function, argument)
            yield result
        yield coming.result()
