"""Files of a batch service, as a session.

    <LLMREC_BATCH_FOLDER>/<model>/requests-*.jsonl     written here, one request a line; send them
                                  responses*.jsonl     put the answers here, and run again

Both are in the format of OpenAI's batch API, which other services and vLLM read as well. A request's id is a hash of
all that is sent and of the model's artifact, so an answer is found again whoever asks, and never taken for another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmrec_plugin import Artifact, Completion, Decoding, Request
from llmrec_plugin.errors import ProviderError
from llmrec_plugin.systems.openai_chat import bodies
from llmrec_plugin.systems.openai_chat.bodies import Output
from llmrec_plugin.systems.openai_chat.configuration import (
    Served,
    Structured,
    check_device,
    load_batch_folder,
    read_extra,
    read_served,
    read_structured,
)

logger = logging.getLogger(__name__)

NAME = "batch-file"
LARGEST_FILE = 8 << 20
"""Bytes after which another file of requests is begun."""


def open_batch(artifact: Artifact, *, device: str, threads: int | None) -> BatchSession:
    """The generator of `artifact` behind files; see `llmrec_plugin.generation.GeneratorOpener`.

    Raises:
        SettingsError: ``LLMREC_BATCH_FOLDER`` is not set, or another variable is invalid.
        ProviderError: A GPU of this machine was asked for, or the model is behind no endpoint.
    """
    check_device(device, NAME)
    served = read_served(artifact, NAME)
    folder = load_batch_folder(artifact.manifest.model)
    return BatchSession(served, folder, read_structured(os.environ), read_extra(os.environ))


class _Read(NamedTuple):
    """What the files hold.

    Attributes:
        answers: Id -> completion.
        failed: Id -> why it was not answered, and when that was written, in ns.
        asked: Id -> when it was last written, in ns.
    """

    answers: dict[str, Completion]
    failed: dict[str, tuple[str, int]]
    asked: dict[str, int]


class BatchSession:
    """A folder of requests and answers.

    Args:
        served: The model.
        folder: Where the files are; made when there is something to write.
        structured: How the model is told to keep to the output's form.
        extra: Fields that every request gets as well.
    """

    def __init__(self, served: Served, folder: Path, structured: Structured, extra: Mapping[str, Any]) -> None:
        self._served, self._folder = served, folder
        self._structured, self._extra = structured, extra
        self._url = "/v1/chat/completions" if served.chat else "/v1/completions"
        self._seen: dict[str, tuple[int, int]] = {}
        self._read = _Read({}, {}, {})
        self._path: Path | None = None
        self._written = b""
        self._lock = threading.Lock()
        self.provider = f"{NAME} in {folder}"

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        output: Output | None = None,
        *,
        done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """The answers that are there; what is not answered is written down and gives ``finish="error"``.

        Raises:
            ProviderError: The decoding is none that the API can express.
            InputError: The instructions alone are longer than the model's context.
            OSError: The folder cannot be read or written.
        """
        bodies.check_decoding(decoding, NAME)
        asked = [
            bodies.to_body(item, self._served, decoding, output, self._structured, self._extra) for item in requests
        ]
        ids = [request_id(self._served.artifact_id, body) for body in asked]
        with self._lock:
            self._look()
            self._write({id_: body for id_, body in zip(ids, asked, strict=True) if self._is_to_be_asked(id_)})
            completions = [self._completion(id_) for id_ in ids]
        if done is not None:
            for number, completion in enumerate(completions):
                done(number, completion)
        return completions

    def score(self, requests: Sequence[Request], answers: Sequence[str]) -> np.ndarray:
        """Refused.

        Raises:
            ProviderError: Always.
        """
        raise ProviderError(
            f"The generator {NAME} gives no scores. Declare a Choice, or set LLMREC_GENERATOR=openai for an endpoint "
            "that gives log probabilities."
        )

    def _completion(self, id_: str) -> Completion:
        answer = self._read.answers.get(id_)
        if answer is not None:
            return answer
        places = f"{self._folder / 'requests-*.jsonl'} to a batch service and put its answers there as responses*.jsonl"
        trouble = f"waiting for the batch: send {places}, then run again"
        if id_ in self._read.failed:
            trouble = f"the batch did not answer it ({self._read.failed[id_][0]}); {trouble}"
        return Completion("", "error", error=trouble, lasting=False)

    def _is_to_be_asked(self, id_: str) -> bool:
        if id_ in self._read.answers:
            return False
        if id_ not in self._read.asked:
            return True
        return id_ in self._read.failed and self._read.failed[id_][1] > self._read.asked[id_]

    def _look(self) -> None:
        """Reads the files, if any is new or has changed."""
        paths = sorted([*self._folder.glob("requests-*.jsonl"), *self._folder.glob("responses*.jsonl")])
        seen = {path.name: _state(path) for path in paths}
        if seen == self._seen:
            return
        read = _Read({}, {}, {})
        for path in paths:
            written = seen[path.name][1]
            if path.name.startswith("requests-"):
                for id_, _ in _lines(path):
                    read.asked[id_] = max(read.asked.get(id_, 0), written)
            else:
                self._take(path, written, read)
        self._seen, self._read = seen, read

    def _take(self, path: Path, written: int, read: _Read) -> None:
        """Adds the answers of a file; the first one of a request counts, and any before a failure."""
        for id_, line in _lines(path):
            if id_ in read.answers:
                continue
            try:
                read.answers[id_] = bodies.read_completion(_answered(line), self._served)
            except ValueError as exc:
                read.failed[id_] = (str(exc), max(written, read.failed.get(id_, ("", 0))[1]))

    def _write(self, requests: Mapping[str, Mapping[str, Any]]) -> None:
        if not requests:
            return
        lines = [{"custom_id": id_, "method": "POST", "url": self._url, "body": body} for id_, body in requests.items()]
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._path is None or not self._path.exists() or len(self._written) + len(data) > LARGEST_FILE:
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
            self._path, self._written = self._folder / f"requests-{stamp}-{secrets.token_hex(4)}.jsonl", b""
        self._written += data
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with temporary.open("wb") as stream:
            stream.write(self._written)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self._path)
        self._seen[self._path.name] = _state(self._path)  # what is in it is known
        self._read.asked.update(dict.fromkeys(requests, self._seen[self._path.name][1]))
        logger.info("%d requests written to %s.", len(requests), self._path)


def request_id(artifact_id: str, body: Mapping[str, Any]) -> str:
    """The id of a request, 64 hex digits, over the model's artifact and all that is sent."""
    text = json.dumps([artifact_id, body], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes, and when it was last written, in ns."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Id and content of each line of a file; lines that are none are counted and reported."""
    broken: list[int] = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                content = json.loads(line)
                id_ = content["custom_id"]
                if not isinstance(id_, str):
                    raise TypeError
            except (ValueError, TypeError, KeyError, RecursionError):
                broken.append(number)
                continue
            yield id_, content
    if broken:
        logger.warning(
            "%s: %d lines are no JSON with a custom_id, the first is line %d; they are passed over. "
            "Was the file written to its end?",
            path,
            len(broken),
            broken[0],
        )


def _answered(line: Mapping[str, Any]) -> Any:
    """The body of an answer.

    Raises:
        ValueError: The service did not answer the request; says why.
    """
    response, error = line.get("response"), line.get("error")
    if isinstance(response, dict) and response.get("status_code") == 200 and not error:
        return response.get("body")
    if not error and isinstance(response, dict):
        error = f"status {response.get('status_code')}: {json.dumps(response.get('body'), ensure_ascii=False)}"
    raise ValueError(f"{error or 'no response'!s:.300}")
