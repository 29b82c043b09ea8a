"""A TCP proxy before a server: it delays what the server answers, or goes away in mid-conversation."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Proxy:
    """Forwards connections to a port of 127.0.0.1.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        delay: Seconds that every piece of an answer is held back.
        fatal: When a client sends any of these, all connections break, and new ones are refused.
    """

    def __init__(self, target: int) -> None:
        self.delay = 0.0
        self.fatal: tuple[bytes, ...] = ()
        self._target = target
        self._sockets: list[socket.socket] = []
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def cut(self) -> None:
        """Breaks all connections and refuses new ones, as a machine whose server has died."""
        for end in (self._listener, *self._sockets):
            _close(end)
        self._sockets = []

    def mend(self) -> None:
        """Accepts connections again, on the same port."""
        self.fatal = ()
        self._listener = self._listen(self.port)

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        self.delay = seconds
        try:
            yield
        finally:
            self.delay = 0.0

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the listener was closed, or there is no server
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                for start, end, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._forward, args=(start, end, answers), daemon=True).start()

    def _forward(self, start: socket.socket, end: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := start.recv(65536):
                if answers:
                    time.sleep(self.delay)
                elif any(word in piece for word in self.fatal):
                    self.cut()
                    return
                end.sendall(piece)
        for one in (start, end):
            _close(one)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
    end.close()
