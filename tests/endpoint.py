"""A local endpoint that serves the tiny encoder in both APIs, and misbehaves on demand."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import numpy as np

from llmrec_plugin import Batch

Encode = Callable[[Sequence[str]], np.ndarray]
KEY = "sk-5ecret-5ecret-5ecret"
HTML = "<html><body>Welcome to the gateway</body></html>"


@dataclass(frozen=True)
class Reply:
    """What is sent; a dict or list as JSON."""

    status: int = 200
    body: Any = ""
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = ""
    hang_up: str = ""
    """``before``: closes the connection instead of answering, ``within``: after half of the body."""
    chunked: bool = False
    """Sends the body in pieces, its length unsaid."""


class Endpoint:
    """The state of a server.

    Attributes:
        encode: Texts -> (n, dims) vectors of the served model.
        replies: Sent instead of the next answers, in this order; None stands for the usual answer.
        change: Applied to every usual answer before it is sent.
        knows_base64: Whether ``encoding_format: base64`` is accepted.
        chunked: Whether usual answers come in pieces.
        requests: Bodies that came, with ``path``, ``authorization`` and ``connection`` (the client's port).
        largest_at_once: Most requests that were answered at a time.
        gate: Where requests wait until so many are there.
        url: Its address.
    """

    def __init__(self, encode: Encode) -> None:
        self.encode = encode
        self.replies: list[Reply | None] = []
        self.change: Callable[[Any], Any] = lambda answer: answer
        self.knows_base64 = True
        self.chunked = False
        self.requests: list[dict[str, Any]] = []
        self.largest_at_once = 0
        self.gate: threading.Barrier | None = None
        self._busy = 0
        self._lock = threading.Lock()
        self.url = ""

    def answer(self, path: str, body: dict[str, Any]) -> Reply:
        """The reply to one request."""
        with self._lock:
            planned = self.replies.pop(0) if self.replies else None
        if planned is not None:
            return planned
        if path == "/embed":
            return self._usual(self.encode(body["inputs"]).tolist())
        if path != "/v1/embeddings":
            return Reply(404, {"detail": "Not Found"})
        if body["encoding_format"] == "base64" and not self.knows_base64:
            return Reply(400, {"error": {"message": "encoding_format must be float"}})
        vectors = self.encode(body["input"])
        as_base64 = body["encoding_format"] == "base64"
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                if as_base64
                else vector.tolist(),
            }
            for index, vector in enumerate(vectors)
        ]
        return self._usual({"object": "list", "model": body["model"], "data": data})

    def _usual(self, answer: Any) -> Reply:
        return Reply(body=self.change(answer), chunked=self.chunked)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts how many requests are answered at a time; with a gate, they wait for each other."""
        with self._lock:
            self._busy += 1
            self.largest_at_once = max(self.largest_at_once, self._busy)
        try:
            if self.gate is not None:
                self.gate.wait()
            yield
        finally:
            with self._lock:
                self._busy -= 1


E = TypeVar("E", bound=Endpoint)


def batch(*texts: str) -> Batch:
    """What a runtime that reads texts gets."""
    return Batch(np.zeros((len(texts), 1), dtype=np.int64), np.ones((len(texts), 1), dtype=np.int64), texts)


ONE = batch("red web server")


def serve(encode: Encode) -> AbstractContextManager[Endpoint]:
    """An endpoint on a free port of this machine."""
    return serving(Endpoint(encode))


@contextmanager
def serving(endpoint: E) -> Iterator[E]:
    """The endpoint on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            about = {
                "path": self.path,
                "authorization": self.headers["Authorization"],
                "connection": self.client_address[1],
            }
            endpoint.requests.append(body | about)
            with endpoint.counted():
                reply = endpoint.answer(self.path, body)
            self._send(reply)

        def _send(self, reply: Reply) -> None:
            plain = isinstance(reply.body, str)
            data = (reply.body if plain else json.dumps(reply.body)).encode()
            self.close_connection = bool(reply.hang_up) or reply.headers.get("Connection") == "close"
            if reply.hang_up == "before":
                return
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind or ("text/html" if plain else "application/json"))
            if reply.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                pieces = [data[start : start + 100] for start in range(0, len(data), 100)]
                data = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])
            else:
                self.send_header("Content-Length", str(len(data)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if reply.hang_up else data)

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
