"""A generator behind an OpenAI-compatible endpoint, as a session."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import Any, TypeVar

import numpy as np

from llmrec_plugin import Artifact, Completion, Decoding, Request
from llmrec_plugin.errors import LLMRecError, ProviderError, RemoteError
from llmrec_plugin.systems.openai_chat import bodies
from llmrec_plugin.systems.openai_chat.bodies import Output
from llmrec_plugin.systems.openai_chat.configuration import (
    EndpointSettings,
    Served,
    check_device,
    load_endpoint_settings,
    read_served,
)
from llmrec_plugin.systems.openai_chat.limits import Breaker, Budget, Pace
from llmrec_plugin.systems.remote.transport import Answer, Clock, Transport, Wording

logger = logging.getLogger(__name__)

T = TypeVar("T")

NAME = "openai"
_LARGEST = 1 << 20
_BYTES_PER_TOKEN = 1024
"""An answer with the twenty most probable tokens of each of its tokens has some hundred bytes per token."""
_REFUSED = (400, 413, 422)
"""Statuses that are about the one request, and say nothing about the others."""

_WORDING = Wording(
    wanted="completion",
    variables="LLMREC_OPENAI",
    check="Check LLMREC_OPENAI_URL, LLMREC_OPENAI_EXTRA and LLMREC_OPENAI_STRUCTURED.",
    remedies={
        401: "Set LLMREC_OPENAI_KEY to a key that the endpoint accepts.",
        403: "Set LLMREC_OPENAI_KEY to a key that the endpoint accepts.",
        404: "Check LLMREC_OPENAI_URL, and the served model's name in the source of the GeneratorModel.",
        413: "The prompt is too long for the endpoint; lower max_tokens of its slots or of the GeneratorModel.",
    },
)


def open_endpoint(artifact: Artifact, *, device: str, threads: int | None) -> EndpointSession:
    """The generator of `artifact` at the endpoint of the environment; see `llmrec_plugin.generation.GeneratorOpener`.

    Raises:
        SettingsError: A setting of the endpoint is missing or invalid.
        ProviderError: A GPU of this machine was asked for, or the model is behind no endpoint.
    """
    check_device(device, NAME)
    served = read_served(artifact, NAME)
    return EndpointSession(served, load_endpoint_settings(served.chat))


class EndpointSession:
    """An endpoint that serves a generator.

    Args:
        served: The model.
        settings: The endpoint.
        clock: Time and chance.
    """

    def __init__(self, served: Served, settings: EndpointSettings, clock: Clock | None = None) -> None:
        self._served, self._settings = served, settings
        self._clock = clock or Clock()
        self._pace = Pace(settings.per_minute, self._clock)
        self._budget = Budget(settings.token_limit)
        self._breaker = Breaker(self._clock)
        self._transport = Transport(settings, self._clock, wording=_WORDING, turn=self._pace.turn)
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="llmrec-openai")
        self._length_field = "max_tokens"
        self.provider = f"{NAME} at {settings.url}"

    def generate(
        self,
        requests: Sequence[Request],
        decoding: Decoding,
        output: Output | None = None,
        *,
        done: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """What the model writes for each request; see `llmrec_plugin.generation.GenerationSession`.

        Raises:
            ProviderError: The decoding is none that the API can express.
            InputError: The instructions alone are longer than the model's context.
        """
        bodies.check_decoding(decoding, NAME)
        structured, extra = self._settings.structured, self._settings.extra
        asked = [bodies.to_body(item, self._served, decoding, output, structured, extra) for item in requests]
        completions = [Completion("", "error", lasting=False)] * len(asked)
        with closing(self._each(self._complete, asked)) as results:
            for number, completion in results:
                completions[number] = completion
                if done is not None:
                    done(number, completion)
        return completions

    def score(self, requests: Sequence[Request], answers: Sequence[str]) -> np.ndarray:
        """Log probability of each answer after each prompt; see `llmrec_plugin.generation.GenerationSession`.

        A chat model is asked once per prompt for its most probable first tokens, so an answer must be one token. Others
        are asked for the log probabilities of the echoed prompt, once per answer, which few servers have.

        Raises:
            RemoteError: The endpoint gives no log probabilities, or answered no request.
        """
        extra = self._settings.extra
        asked: list[tuple[dict[str, Any], Sequence[str]]]
        if self._served.chat:
            asked = [(bodies.first_token_body(item, self._served, extra), answers) for item in requests]
        else:
            asked = [
                (bodies.echo_body(item, text, self._served, extra), [text]) for item in requests for text in answers
            ]
        scores: list[list[float]] = [[]] * len(asked)
        failures: list[ProviderError] = []
        with closing(self._each(self._scores, asked)) as results:
            for number, result in results:
                if isinstance(result, ProviderError):
                    failures.append(result)
                    result = [np.nan] * len(asked[number][1])
                scores[number] = result
        if failures and len(failures) == len(asked):
            raise failures[0]
        if failures:
            logger.warning("%d of %d requests gave no scores, e.g.: %s", len(failures), len(asked), failures[0])
        return np.array(scores, dtype=np.float32).reshape(len(requests), len(answers))

    def _each(self, work: Callable[[Any], T], asked: Sequence[Any]) -> Generator[tuple[int, T], None, None]:
        """Position and result of each item, as they come."""
        futures = {self._pool.submit(work, item): number for number, item in enumerate(asked)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            for future in futures:
                future.cancel()

    def _complete(self, body: dict[str, Any]) -> Completion:
        """The completion of one body, whatever happens."""
        try:
            return self._ask(body, lambda found: bodies.read_completion(found, self._served))
        except LLMRecError as exc:
            trouble = str(exc)
        except Exception as exc:  # a row's trouble must not lose the rows that were answered
            trouble = f"{self._settings.url}: {type(exc).__name__}: {exc}"
        return Completion("", "error", error=self._settings.key.hide(trouble), lasting=False)

    def _scores(self, item: tuple[dict[str, Any], Sequence[str]]) -> list[float] | ProviderError:
        """The log probabilities of one prompt's answers, or why there are none."""
        body, answers = item

        def read(found: Any) -> list[float]:
            try:
                if self._served.chat:
                    return bodies.first_token_scores(found, answers)
                return [bodies.echo_score(found, answers[0])]
            except (LookupError, TypeError, ValueError) as exc:
                raise RemoteError(
                    f"{self._settings.url} gives no log probabilities ({type(exc).__name__}: {exc}), which Scores "
                    "need. Use a server that has them, such as vLLM, or declare a Choice."
                ) from exc

        try:
            return self._ask(body, read)
        except ProviderError as exc:
            return exc

    def _ask(self, body: dict[str, Any], read: Callable[[Any], T]) -> T:
        """What `read` makes of the answer's body.

        Raises:
            RemoteError: There is no answer, or `read` raised `ValueError`; or no request is made for a while.
            ProviderError: The tokens of this process are used up.
        """
        refusal = self._breaker.refusal()
        if refusal:
            raise RemoteError(f"{self._settings.url} is {refusal}")
        tokens = bodies.estimate(body)
        if not self._budget.hold(tokens):
            raise ProviderError(
                f"LLMREC_OPENAI_TOKEN_LIMIT={self._settings.token_limit} is reached: {self._budget.used} tokens were "
                "used, and others are on their way. What was answered is kept; raise the limit and run again."
            )
        used = 0
        try:
            answer = self._post(body, _LARGEST + _BYTES_PER_TOKEN * tokens)
            if answer.status == 200:
                found = self._parsed(answer)
                counted = bodies.read_used(found)
                used = tokens if counted is None else counted
                result = read(found)
        except (RemoteError, ValueError) as exc:
            trouble = self._settings.key.hide(str(exc))
            error = RemoteError(trouble if isinstance(exc, RemoteError) else f"{self._settings.url}: {trouble}.")
            self._breaker.failed(str(error))
            raise error from None  # frames of the exception hold what was being sent
        finally:
            self._budget.settle(tokens, used)
        self._breaker.succeeded()
        if answer.status != 200:  # it is about this request alone
            raise self._transport.refusal(answer)
        return result

    def _post(self, body: Mapping[str, Any], largest: int) -> Answer:
        wait = self._pace.turn()
        if wait > 0:
            self._clock.sleep(wait)
        field = self._length_field
        answer = self._transport.post(_with_length(body, field), largest, accept=_REFUSED)
        if answer.status == 400 and b"max_completion_tokens" in answer.body and field == "max_tokens":
            self._length_field = "max_completion_tokens"  # some models take no max_tokens
            answer = self._transport.post(_with_length(body, self._length_field), largest, accept=_REFUSED)
        return answer

    def _parsed(self, answer: Answer) -> Any:
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or "choices" not in found:  # some gateways answer 200 with an error in it
            raise self._transport.unexpected(answer, "a JSON object with choices")
        return found


def _with_length(body: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A body whose most tokens are called `field`."""
    return {field if name == "max_tokens" else name: value for name, value in body.items()}
