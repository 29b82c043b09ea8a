"""Tests without a network."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any
from unittest import mock

from llmrec_plugin.errors import LLMRecError


class NetworkUseError(LLMRecError, OSError):
    """Something connects to another machine where no test may."""


_HERE = ("127.0.0.1", "::1", "localhost", "")


@contextlib.contextmanager
def refuse_network(*, local: bool = False) -> Iterator[None]:
    """Lets no socket of this process connect; sockets of files, as between processes, are left alone.

    Args:
        local: Also refuse connections to this machine.

    Raises:
        NetworkUseError: Inside, where something connects or looks up a host.
    """
    connect, connect_ex, look_up = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: Any, what: str) -> None:
        if local or str(host) not in _HERE:
            raise NetworkUseError(
                f"expected no use of the network, got {what}. Nothing but `llmrec export` may download: read models "
                "from artifacts, and data from files that the package holds."
            )

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0], f"a connection to {address[0]}:{address[1]}")
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0], f"a connection to {address[0]}:{address[1]}")
        return connect_ex(self, address)

    def guarded_look_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        check(host, f"a look-up of the host {host!r}")
        return look_up(host, port, *arguments, **options)

    with (
        mock.patch.object(socket.socket, "connect", guarded_connect),
        mock.patch.object(socket.socket, "connect_ex", guarded_connect_ex),
        mock.patch.object(socket, "getaddrinfo", guarded_look_up),
    ):
        yield
