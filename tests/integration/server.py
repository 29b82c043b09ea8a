"""A `feast serve` process."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from contextlib import closing
from typing import Any

from integration.host import Repo

STARTED_WITHIN_SECONDS = 90


class Server:
    """A `feast serve` process and its address; forked from one that has Feast, or `fresh`, as a user starts it."""

    def __init__(self, repo: Repo, workers: int = 1, *, fresh: bool = False) -> None:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.repo = repo
        command = ["serve", "--host", "127.0.0.1", "--port", str(self.port), "--max-requests", "0"]
        command += ["--workers", str(workers)]
        self._process = repo.processes.start("feast", command, folder=repo.folder, environ=repo.environ, fresh=fresh)

    def wait(self) -> None:
        deadline = time.monotonic() + STARTED_WITHIN_SECONDS
        while True:
            assert self._process.running(), self.log()
            assert time.monotonic() < deadline, self.log()
            try:
                return self.health()
            except OSError:
                time.sleep(0.2)

    def health(self) -> None:
        """Returns if the event loop answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
            pass

    def ask(self, features: list[str], **columns: list[Any]) -> tuple[int, Any]:
        """Status and decoded body of a request for features."""
        return self.post("get-online-features", {"features": features, "entities": columns})

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and decoded body of a request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")

    def columns(self, features: list[str], **columns: list[Any]) -> dict[str, list[Any]]:
        status, body = self.ask(features, **columns)
        assert status == 200, body
        return {
            name: result["values"]
            for name, result in zip(body["metadata"]["feature_names"], body["results"], strict=True)
        }

    def log(self) -> str:
        """What it has printed."""
        return self._process.log.read_text()

    def stop(self) -> None:
        self._process.stop()
