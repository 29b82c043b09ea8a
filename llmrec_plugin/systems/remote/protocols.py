"""The two APIs: what is sent, and how the vectors are read from the answer."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llmrec_plugin.errors import RemoteError
from llmrec_plugin.systems.remote.transport import Answer, Transport

_BYTES_PER_VALUE = 40
"""A number in JSON has at most 25 characters; some servers put each on a line of its own."""
_BYTES_PER_ANSWER = 1 << 20


class Endpoint(Protocol):
    """How an endpoint is asked."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of n texts in their order, (n, dims) float32; whether they are finite is not checked.

        Raises:
            RemoteError: The endpoint gave no vectors, or not n of `dims` components.
        """


class OpenAI:
    """``POST /v1/embeddings``, as OpenAI, vLLM, Ollama, LocalAI, infinity and text-embeddings-inference have it.

    Vectors come as base64, a quarter of the bytes of decimals and exact; where the server refuses that, as decimals.

    Args:
        transport: How it is reached.
        dims: Components of a vector.
        model: What the endpoint calls the model.
    """

    def __init__(self, transport: Transport, dims: int, *, model: str) -> None:
        self._transport, self._dims, self._model = transport, dims, model
        self._encoding = "base64"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        largest = _largest(len(texts), self._dims)
        body = {"model": self._model, "input": list(texts), "encoding_format": self._encoding}
        # A server that knows no base64 refuses the request like one in which something else is wrong.
        refusals = (400, 422) if self._encoding == "base64" else ()
        answer = self._transport.post(body, largest, accept=refusals)
        if answer.status != 200:
            answer = self._transport.post({**body, "encoding_format": "float"}, largest)
            self._encoding = "float"
        expected = f"JSON with data: {len(texts)} objects with index and embedding"
        try:
            items = json.loads(answer.body)["data"]
            by_index = {int(item["index"]): item["embedding"] for item in items}
            if len(items) != len(texts) or by_index.keys() != set(range(len(texts))):
                raise ValueError
            rows = [by_index[index] for index in range(len(texts))]
        except (ValueError, TypeError, KeyError) as exc:
            raise self._transport.unexpected(answer, expected) from exc
        return _matrix(rows, self._dims, answer, self._transport)


class TextEmbeddingsInference:
    """``POST /embed`` of text-embeddings-inference.

    It is told to normalize as the model does, and not to truncate: texts are cut already, and a server that reads fewer
    tokens than the model must refuse a text rather than cut it.

    Args:
        transport: How it is reached.
        dims: Components of a vector.
        normalize: Whether the model's vectors have unit length.
    """

    def __init__(self, transport: Transport, dims: int, *, normalize: bool) -> None:
        self._transport, self._dims, self._normalize = transport, dims, normalize

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        body = {"inputs": list(texts), "normalize": self._normalize, "truncate": False}
        answer = self._transport.post(body, _largest(len(texts), self._dims))
        try:
            rows = json.loads(answer.body)
            if not isinstance(rows, list) or len(rows) != len(texts):
                raise ValueError
        except ValueError as exc:
            raise self._transport.unexpected(answer, f"a JSON list of {len(texts)} vectors") from exc
        return _matrix(rows, self._dims, answer, self._transport)


def _matrix(rows: list[Any], dims: int, answer: Answer, transport: Transport) -> np.ndarray:
    """Vectors as numbers or base64, as (n, dims) float32."""
    try:
        vectors = [_vector(row) for row in rows]
    except (ValueError, TypeError) as exc:
        raise transport.unexpected(answer, "vectors as lists of numbers or as base64 of float32") from exc
    lengths = {vector.shape for vector in vectors} - {(dims,)}
    if lengths:
        raise RemoteError(
            f"{transport.url}: expected vectors of {dims} components, got shape {min(lengths)}. "
            "It serves another model; check LLMREC_REMOTE_URL and LLMREC_REMOTE_MODEL."
        )
    return np.stack(vectors)


def _vector(value: Any) -> np.ndarray:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4").astype(np.float32)
    if not isinstance(value, list):
        raise TypeError
    return np.array(value, dtype=np.float32)


def _largest(rows: int, dims: int) -> int:
    """Bytes that an answer may have."""
    return _BYTES_PER_ANSWER + rows * dims * _BYTES_PER_VALUE
