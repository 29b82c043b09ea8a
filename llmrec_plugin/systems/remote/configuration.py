"""Which endpoint, read from the environment."""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args
from urllib.parse import SplitResult, urlsplit

from llmrec_plugin.errors import SettingsError

logger = logging.getLogger(__name__)

API: TypeAlias = Literal["openai", "tei"]
PATHS: dict[API, str] = {"openai": "/v1/embeddings", "tei": "/embed"}
BATCHES: dict[API, int] = {"openai": 256, "tei": 32}
"""Texts per request; text-embeddings-inference refuses more than 32 unless it was started with another limit."""


class Secret:
    """A string that no message, log, repr or traceback shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(...)" if self._value else "Secret()"

    def __reduce__(self) -> str:
        raise TypeError("A secret is not pickled; read it from the environment where it is needed.")

    def reveal(self) -> str:
        """The string itself."""
        return self._value

    def hide(self, text: str) -> str:
        """`text` with stars in place of the secret, for what a server answered."""
        return text.replace(self._value, "***") if self._value else text


@dataclass(frozen=True, kw_only=True)
class RemoteSettings:
    """An endpoint, and how it is used.

    Attributes:
        url: Where requests go, http or https, path included (``LLMREC_REMOTE_URL``).
        api: What it speaks (``LLMREC_REMOTE_API``; default ``openai``).
        model: What the endpoint calls the model (``LLMREC_REMOTE_MODEL``; default: the name of the artifact's model).
        key: Sent as bearer token, if there is one (``LLMREC_REMOTE_KEY``).
        timeout: Seconds that one attempt may take (``LLMREC_REMOTE_TIMEOUT``; default 30).
        retries: Attempts after the first (``LLMREC_REMOTE_RETRIES``; default 4).
        concurrency: Requests at a time (``LLMREC_REMOTE_CONCURRENCY``; default 8).
        batch: Most texts of a request, one of them golden (``LLMREC_REMOTE_BATCH``; default see `BATCHES`).
    """

    url: str
    api: API
    model: str
    key: Secret
    timeout: float
    retries: int
    concurrency: int
    batch: int

    @property
    def deadline(self) -> float:
        """Seconds that a request may take in all, attempts and pauses together."""
        return self.timeout * (self.retries + 1)


def load_remote_settings(model: str, environ: Mapping[str, str] | None = None) -> RemoteSettings:
    """The endpoint that `environ` (default: this process's environment) names.

    Args:
        model: Name of the artifact's model.

    Raises:
        SettingsError: A variable is missing or holds an invalid value.
    """
    env = os.environ if environ is None else environ
    api = cast(API, env.get("LLMREC_REMOTE_API") or "openai")
    if api not in get_args(API):
        raise SettingsError(f"LLMREC_REMOTE_API must be openai or tei, got {api!r}.")
    url = _address(env, api)
    return RemoteSettings(
        url=url.geturl(),
        api=api,
        model=env.get("LLMREC_REMOTE_MODEL") or model,
        key=read_key(env, "LLMREC_REMOTE_KEY", url),
        timeout=read_seconds(env, "LLMREC_REMOTE_TIMEOUT", 30.0),
        retries=read_count(env, "LLMREC_REMOTE_RETRIES", 4, least=0),
        concurrency=read_count(env, "LLMREC_REMOTE_CONCURRENCY", 8),
        batch=read_count(env, "LLMREC_REMOTE_BATCH", BATCHES[api], least=2),
    )


def _address(env: Mapping[str, str], api: API) -> SplitResult:
    """The address of the API, where the variable may name the server, its ``/v1``, or the address itself."""
    if not env.get("LLMREC_REMOTE_URL", "").strip():
        raise SettingsError(
            "LLMREC_RUNTIME=remote needs LLMREC_REMOTE_URL, the address of a server that serves this very model, "
            "e.g. http://localhost:8080, and LLMREC_REMOTE_API=openai or tei."
        )
    parts = read_url(env, "LLMREC_REMOTE_URL", "LLMREC_REMOTE_KEY")
    path = parts.path.rstrip("/")
    whole = PATHS[api]
    version, _, name = whole.rpartition("/")  # "/v1", "embeddings"
    if not path.endswith(f"/{name}"):
        path += f"/{name}" if version and path.endswith(version) else whole
    return parts._replace(path=path)


def read_url(env: Mapping[str, str], name: str, key: str) -> SplitResult:
    """The http or https address in a variable; `key` is where a key belongs.

    Raises:
        SettingsError: It is none, or holds more than an address.
    """
    text = env.get(name, "").strip()
    expected = f"{name} must be an address such as https://host:8080"
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises where it is no number
    except ValueError as exc:
        raise SettingsError(f"{expected}; {exc}.") from exc
    if "@" in parts.netloc or parts.query or parts.fragment:  # not shown: it may be a secret
        raise SettingsError(f"{expected}, without user, query and fragment. A key belongs in {key}.")
    plain = text.isascii() and text.isprintable() and " " not in text
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise SettingsError(f"{expected}, got {text!r}.")
    return parts


def read_key(env: Mapping[str, str], name: str, url: SplitResult) -> Secret:
    """The key in a variable, empty if there is none; warns if it would go to `url` for others to read.

    Raises:
        SettingsError: It holds characters that a header cannot carry.
    """
    key = env.get(name, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise SettingsError(
            f"{name} holds characters that a header cannot carry (its value is not shown): expected printable ASCII "
            "without spaces. Set it again, without line breaks."
        )
    if key and url.scheme == "http" and not _is_here(url.hostname or ""):
        logger.warning("%s goes to %s unencrypted; use https where others share the network.", name, url.netloc)
    return Secret(key)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_count(env: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    """The integer in a variable.

    Raises:
        SettingsError: It is none, or less than `least`.
    """
    text = env.get(name) or str(default)
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise SettingsError(f"{name} must be an integer of at least {least}, got {text!r}.")
    return int(text)


def read_seconds(env: Mapping[str, str], name: str, default: float) -> float:
    """The seconds in a variable.

    Raises:
        SettingsError: It is no positive number.
    """
    text = env.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SettingsError(f"{name} must be a positive number of seconds, got {text!r}.")
    return seconds
