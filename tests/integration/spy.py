"""A server whose workers write down what their encoders do, and hold texts on request."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from integration.host import Repo
from integration.server import Server

PATIENCE = 60
STARTED = "Application startup complete"

_SPYING = """
import gc, os, threading, time
from pathlib import Path
from llmrec_plugin.feast import load_artifacts as load
from llmrec_plugin.runtime.encoder import Encoder

here = Path({folder!r})
start, encode = Encoder.__init__, Encoder.encode

def note(kind, *words):
    with (here / f"{{kind}}.{{os.getpid()}}").open("a") as file:
        file.writelines(f"{{word}}\\n" for word in words)

def nice():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

def spying_start(self, *arguments):
    note("loads", "load")
    start(self, *arguments)

def spying_encode(self, texts, **options):
    if "max_tokens" in options:
        note("texts", *texts)
        note("steps", nice() - loop)
        while any("held" in text for text in texts) and (here / "closed").exists():
            time.sleep(0.01)
    return encode(self, texts, **options)

def load_artifacts(app):
    global loop
    loop = nice()
    Encoder.__init__, Encoder.encode = spying_start, spying_encode
    load(app)
    note("warm", gc.get_freeze_count())
    note("threads", os.environ["LLMREC_THREADS"])
"""


class Spy:
    """What the workers of a repo's server wrote down, and a gate that holds texts with the word "held"."""

    def __init__(self, repo: Repo) -> None:
        self._repo = repo
        self._folder = repo.root / "spy"

    @classmethod
    def plant(cls, repo: Repo) -> None:
        """Makes workers of servers that start later write down what they load and encode."""
        spy = cls(repo)
        spy._folder.mkdir()
        (repo.folder / "static_artifacts.py").write_text(_SPYING.format(folder=str(spy._folder)))

    @contextlib.contextmanager
    def server(self, workers: int) -> Iterator[Server]:
        """A server all of whose workers are warm."""
        server = Server(self._repo, workers=workers)
        try:
            server.wait()
            until(lambda: server.log().count(STARTED) == workers)
            yield server
        finally:
            self.open_gate()
            server.stop()

    def lines(self, kind: str) -> dict[str, list[str]]:
        """``loads``, ``texts``, ``steps`` (of nice behind the event loop), ``warm`` or ``threads``, by worker."""
        return {file.suffix: file.read_text().splitlines() for file in self._folder.glob(f"{kind}.*")}

    def close_gate(self) -> None:
        """From now on texts with the word "held" wait."""
        (self._folder / "closed").touch()

    def open_gate(self) -> None:
        """Lets them go."""
        (self._folder / "closed").unlink(missing_ok=True)


def until(condition: Callable[[], Any]) -> None:
    """Waits, for `PATIENCE` seconds at most."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
