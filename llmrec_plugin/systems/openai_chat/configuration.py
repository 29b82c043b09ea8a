"""Which endpoint serves a generator, read from the environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from llmrec_plugin import Artifact
from llmrec_plugin.errors import ArtifactMismatchError, ProviderError, SettingsError
from llmrec_plugin.systems.remote.configuration import Secret, read_count, read_key, read_seconds, read_url

Structured: TypeAlias = Literal["none", "json_schema", "structured_outputs", "guided"]

_CHAT, _PLAIN = "/chat/completions", "/completions"


@dataclass(frozen=True)
class Served:
    """The model that an artifact names.

    Attributes:
        model: What the endpoint calls it.
        version: Of what is served, as it was declared.
        chat: Whether it is asked for chat completions.
        max_tokens: Longest prompt and output together, in tokens.
        artifact_id: The artifact.
    """

    model: str
    version: str
    chat: bool
    max_tokens: int
    artifact_id: str

    def is_named(self, name: str) -> bool:
        """Whether an answer by a model of this name is one of this model: by its name, its version, or both."""
        return name in (self.model, self.version, *(f"{self.model}{mark}{self.version}" for mark in "-@:"))


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """An endpoint, and how it is used.

    Attributes:
        url: Where requests go, http or https, path included (``LLMREC_OPENAI_URL``).
        key: Sent as bearer token, if there is one (``LLMREC_OPENAI_KEY``).
        timeout: Seconds that one attempt may take (``LLMREC_OPENAI_TIMEOUT``; default 120).
        retries: Attempts after the first (``LLMREC_OPENAI_RETRIES``; default 4).
        concurrency: Requests at a time (``LLMREC_OPENAI_CONCURRENCY``; default 8).
        per_minute: Requests per minute, further attempts included; 0 for any number (``LLMREC_OPENAI_PER_MINUTE``).
        token_limit: Tokens of prompts and answers that a process may use per model; 0 for any number
            (``LLMREC_OPENAI_TOKEN_LIMIT``).
        structured: How the endpoint is told to keep to the output's form (``LLMREC_OPENAI_STRUCTURED``): ``none``;
            ``json_schema``: by ``response_format``; ``structured_outputs``: by vLLM's field; ``guided``: by those
            that vLLM had before 0.12.
        extra: Fields that every request gets as well, JSON; null leaves one out (``LLMREC_OPENAI_EXTRA``). Not shown,
            since a gateway may want a secret there.
    """

    url: str
    key: Secret
    timeout: float
    retries: int
    concurrency: int
    per_minute: int
    token_limit: int
    structured: Structured
    extra: Mapping[str, Any] = field(repr=False)

    @property
    def deadline(self) -> float:
        """Seconds that a request may take in all, attempts and pauses together."""
        return self.timeout * (self.retries + 1)


def load_endpoint_settings(chat: bool, environ: Mapping[str, str] | None = None) -> EndpointSettings:
    """The endpoint that `environ` (default: this process's environment) names.

    Args:
        chat: Whether it is asked for chat completions.

    Raises:
        SettingsError: A variable is missing or holds an invalid value.
    """
    env = os.environ if environ is None else environ
    if not env.get("LLMREC_OPENAI_URL", "").strip():
        raise SettingsError(
            "A model behind an endpoint needs LLMREC_OPENAI_URL, the address of an OpenAI-compatible server, "
            "e.g. http://localhost:8000/v1, and LLMREC_OPENAI_KEY if it wants a key."
        )
    parts = read_url(env, "LLMREC_OPENAI_URL", "LLMREC_OPENAI_KEY")
    path = parts.path.rstrip("/")
    root = path.removesuffix(_CHAT).removesuffix(_PLAIN)
    root = root if root != path or path.endswith("/v1") else f"{path}/v1"
    return EndpointSettings(
        url=parts._replace(path=root + (_CHAT if chat else _PLAIN)).geturl(),
        key=read_key(env, "LLMREC_OPENAI_KEY", parts),
        timeout=read_seconds(env, "LLMREC_OPENAI_TIMEOUT", 120.0),
        retries=read_count(env, "LLMREC_OPENAI_RETRIES", 4, least=0),
        concurrency=read_count(env, "LLMREC_OPENAI_CONCURRENCY", 8),
        per_minute=read_count(env, "LLMREC_OPENAI_PER_MINUTE", 0, least=0),
        token_limit=read_count(env, "LLMREC_OPENAI_TOKEN_LIMIT", 0, least=0),
        structured=read_structured(env),
        extra=read_extra(env),
    )


def read_structured(env: Mapping[str, str]) -> Structured:
    """How the endpoint is told to keep to the output's form."""
    name = env.get("LLMREC_OPENAI_STRUCTURED") or "none"
    if name not in get_args(Structured):
        raise SettingsError(f"LLMREC_OPENAI_STRUCTURED must be {', '.join(get_args(Structured))}, got {name!r}.")
    return cast(Structured, name)


def read_extra(env: Mapping[str, str]) -> Mapping[str, Any]:
    """Fields that every request gets as well."""
    text = env.get("LLMREC_OPENAI_EXTRA") or "{}"
    try:
        extra = json.loads(text)
    except ValueError:
        extra = None  # nothing is raised from the exception, which quotes the text
    if not isinstance(extra, dict):
        raise SettingsError(
            "LLMREC_OPENAI_EXTRA must be a JSON object (its value is not shown), e.g. "
            '{"chat_template_kwargs": {"enable_thinking": false}}.'
        )
    return extra


def load_batch_folder(model: str, environ: Mapping[str, str] | None = None) -> Path:
    """The folder of a model's batch files.

    Raises:
        SettingsError: ``LLMREC_BATCH_FOLDER`` is not set.
    """
    env = os.environ if environ is None else environ
    folder = env.get("LLMREC_BATCH_FOLDER", "").strip()
    if not folder:
        raise SettingsError(
            "LLMREC_GENERATOR=batch-file needs LLMREC_BATCH_FOLDER, the folder where requests are written and "
            "answers are found."
        )
    return Path(folder).expanduser().absolute() / model


def read_served(artifact: Artifact, generator: str) -> Served:
    """The model that an artifact names.

    Raises:
        ProviderError: It is a model that is here, and behind no endpoint.
        ArtifactMismatchError: Its file is not what an export writes.
    """
    manifest = artifact.manifest
    if "endpoint.json" not in manifest.files:
        raise ProviderError(
            f"LLMREC_GENERATOR={generator} runs models behind an endpoint, but {manifest.model!r} was exported from "
            f"{manifest.source.get('source')!r}. Set LLMREC_GENERATOR=auto, or declare the model with source "
            "'endpoint:<served model>@<version>'."
        )
    path = artifact.path("endpoint.json")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return Served(
            model=str(about["model"]),
            version=str(about["version"]),
            chat=bool(about["chat"]),
            max_tokens=manifest.max_tokens,
            artifact_id=artifact.id,
        )
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise ArtifactMismatchError(
            f"{path}: expected model, version and chat ({type(exc).__name__}: {exc}). "
            f"Run `llmrec export {manifest.model}` again."
        ) from exc


def check_device(device: str, generator: str) -> None:
    """Refuses a GPU of this machine."""
    if device not in ("auto", "cpu"):
        raise ProviderError(
            f"LLMREC_DEVICE={device} was asked for, but the generator {generator} computes elsewhere. "
            "Set LLMREC_DEVICE=auto."
        )
