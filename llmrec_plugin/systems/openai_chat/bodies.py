"""A request as the body of an HTTP request or of a line of a batch file, and a completion from the answer's body."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from llmrec_plugin import Choice, Completion, Decoding, Json, Request, Scores, Segment, ShortText, Tags
from llmrec_plugin.errors import InputError, ProviderError, quoted
from llmrec_plugin.systems.openai_chat.configuration import Served, Structured

Output: TypeAlias = Tags | Choice | ShortText | Json | Scores

CHARS_PER_TOKEN = 4
"""The tokenizer is the endpoint's, so lengths in tokens are taken as this many characters each."""
LARGEST_SEED = 2**31 - 1
"""What every server takes."""
TOP = 20
"""Most probable first tokens that an endpoint lists at most."""

# What chat templates mark turns with. A server that reads marks in a message's text would take them for its own.
_MARK = re.compile(
    r"<(?=\s*[|\uff5c]|\s*/?\s*(?:s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn|start_of_image|think|tool_call|"
    r"tool_response|sys|<\s*/?\s*sys)\s*>)"
    r"|\[(?=\s*/?\s*(?:INST|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\s*\])",
    re.IGNORECASE,
)
_HARMLESS = {"<": "\u2039", "[": "\u27e6"}


def check_decoding(decoding: Decoding, generator: str) -> None:
    """Refuses what the API cannot express.

    Raises:
        ProviderError: Beam search, or a ban of repeated n-grams.
    """
    if decoding.method == "beam" or decoding.repetition_ngram:
        asked = "method='beam'" if decoding.method == "beam" else "repetition_ngram"
        raise ProviderError(
            f"The generator {generator} has no {asked}: an OpenAI-compatible endpoint decodes greedily or draws. "
            "Declare another Decoding, or use a model that is exported to ONNX."
        )


def to_body(
    request: Request,
    served: Served,
    decoding: Decoding,
    output: Output | None,
    structured: Structured,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """What is sent for one request.

    Raises:
        InputError: The instructions alone are longer than the model's context.
    """
    prompt, system = write_prompt(request, served, decoding.max_new_tokens)
    body: dict[str, Any] = {"model": served.model, "max_tokens": decoding.max_new_tokens}
    body |= _asked(prompt, system, chat=served.chat)
    if decoding.method == "sample":
        body |= {"temperature": decoding.temperature, "top_p": decoding.top_p}
        body |= {"seed": (request.seed ^ decoding.seed) & LARGEST_SEED}
        body |= {} if decoding.top_k is None else {"top_k": decoding.top_k}
    else:
        body |= {"temperature": 0}
    return with_extra(body | _kept_to(output, structured), extra)


def with_extra(body: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """A body with further fields; those that are None are left out."""
    return {name: value for name, value in {**body, **extra}.items() if value is not None}


def write_prompt(request: Request, served: Served, new_tokens: int) -> tuple[str, str]:
    """A request's prompt and its system text; data is cut where they are too long together.

    Raises:
        InputError: The instructions alone are longer than the model's context.
    """
    limit = (served.max_tokens - new_tokens) * CHARS_PER_TOKEN - len(request.system)
    parts = [_harmless(segment) if segment.data else segment.text for segment in request.user]
    limit -= sum(len(segment.text) for segment in request.user if not segment.data)
    if limit < 0:
        raise InputError(
            f"Model {served.model!r} has a context of {served.max_tokens} tokens, of which {new_tokens} are to be "
            f"written: the instructions are {-limit} characters too long. Shorten the prompt, or declare fewer "
            "max_new_tokens."
        )
    longest = _level((len(part) for part, segment in zip(parts, request.user, strict=True) if segment.data), limit)
    cut = [part[:longest] if segment.data else part for part, segment in zip(parts, request.user, strict=True)]
    return "".join(cut), request.system


def read_completion(body: Any, served: Served) -> Completion:
    """The completion in an answer's body.

    Raises:
        ValueError: It is none of this model; says why.
    """
    if not isinstance(body, dict):
        raise ValueError("expected a JSON object")
    name = body.get("model")
    if isinstance(name, str) and not served.is_named(name):
        raise ValueError(
            f"expected an answer by {served.model!r}, version {served.version!r}, got one by {name!r}; "
            "if that is the model, declare its source with this name as the version"
        )
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise ValueError("expected choices with one completion")
    message = choice.get("message") if served.chat else choice
    message = message if isinstance(message, dict) else {}
    text = message.get("content" if served.chat else "text")
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        return Completion("", "error", error="the endpoint's content filter withheld the answer")
    if message.get("refusal"):
        return Completion("", "error", error=f"the model refused: {quoted(message['refusal'])}")
    if not isinstance(text, str):
        raise ValueError(f"expected a completion's text, got finish_reason {reason!r} and none")
    return Completion(text, "length" if reason == "length" else "stop")


def read_used(body: Any) -> int | None:
    """Tokens of prompt and answer, where the answer says them."""
    usage = body.get("usage") if isinstance(body, dict) else None
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if isinstance(total, int) and not isinstance(total, bool) and total >= 0 else None


def estimate(body: Mapping[str, Any]) -> int:
    """Tokens that a body may cost at most, by the length of its text."""
    texts = [body.get("prompt", ""), *(message["content"] for message in body.get("messages", ()))]
    new = body.get("max_tokens") or body.get("max_completion_tokens") or 0
    return sum(map(len, texts)) // CHARS_PER_TOKEN + int(new)


# --- scores


def first_token_body(request: Request, served: Served, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Asks a chat model for the most probable first tokens of its answer."""
    prompt, system = write_prompt(request, served, 1)
    asked = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": TOP}
    return with_extra({"model": served.model, **asked, **_asked(prompt, system, chat=True)}, extra)


def first_token_scores(body: Any, answers: Sequence[str]) -> list[float]:
    """Log probability of each answer as the first token, blanks around it aside.

    An answer that is not among the tokens listed gets the log probability of the last of these, which it is below; all
    are NaN if none is listed.

    Raises:
        LookupError, TypeError, ValueError: The answer's body holds no such tokens.
    """
    listed = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    tokens = [(str(item["token"]), float(item["logprob"])) for item in listed]
    if not tokens:
        raise ValueError("no tokens are listed")
    found = [[logprob for token, logprob in tokens if token.strip() == answer.strip()] for answer in answers]
    if not any(found):
        return [math.nan] * len(answers)
    least = min(logprob for _, logprob in tokens)
    return [math.log(sum(map(math.exp, logprobs))) if logprobs else least for logprobs in found]


def echo_body(request: Request, answer: str, served: Served, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Asks for the log probabilities of the tokens of prompt and answer."""
    prompt, system = write_prompt(request, served, len(answer))
    asked = {"max_tokens": 0, "temperature": 0, "logprobs": 1, "echo": True}
    whole = _asked(prompt + answer, system, chat=False)
    return with_extra({"model": served.model, **asked, **whole}, extra)


def echo_score(body: Any, answer: str) -> float:
    """Log probability of the answer at the end of an echoed prompt; NaN if no token begins where it begins.

    Raises:
        LookupError, TypeError, ValueError: The answer's body holds no log probabilities.
    """
    found = body["choices"][0]["logprobs"]
    tokens, logprobs = found["tokens"], found["token_logprobs"]
    if len(tokens) != len(logprobs) or not tokens:
        raise ValueError("expected a log probability for each token")
    rest, total = answer, 0.0
    for token, logprob in zip(reversed(tokens), reversed(logprobs), strict=True):
        if not token or not rest.endswith(token) or logprob is None:
            return math.nan
        rest, total = rest.removesuffix(token), total + float(logprob)
        if not rest:
            return total
    return math.nan


# --- parts


def _asked(prompt: str, system: str, *, chat: bool) -> dict[str, Any]:
    if not chat:
        return {"prompt": f"{system}\n\n{prompt}" if system else prompt}
    messages = [{"role": "system", "content": system}] if system else []
    return {"messages": [*messages, {"role": "user", "content": prompt}]}


def _harmless(segment: Segment) -> str:
    """A segment of data cut to its tokens, which spells no mark of a chat template."""
    text = segment.text if segment.max_tokens is None else segment.text[: segment.max_tokens * CHARS_PER_TOKEN]
    return _MARK.sub(lambda mark: _HARMLESS[mark[0]], text)


def _level(lengths: Iterable[int], limit: int) -> int:
    """The length to which parts are cut so that they fit together, long ones first."""
    waiting = sorted(lengths)
    while waiting and waiting[0] * len(waiting) <= limit:
        limit -= waiting.pop(0)
    return limit // len(waiting) if waiting else limit + 10**9


def _kept_to(output: Output | None, structured: Structured) -> dict[str, Any]:
    """The fields that keep a model to an output's form."""
    if structured == "none" or not isinstance(output, (Tags, Choice, Json)):
        return {}
    schema = _schema(output)
    if structured == "json_schema":
        strict = {} if isinstance(output, Json) else {"strict": True}  # which restricts what a schema may say
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "value", "schema": schema} | strict}}
    if isinstance(output, Choice):
        options = list(output.options)
        return {"guided_choice": options} if structured == "guided" else {"structured_outputs": {"choice": options}}
    return {"guided_json": schema} if structured == "guided" else {"structured_outputs": {"json": schema}}


def _schema(output: Tags | Choice | Json) -> Any:
    """The output as JSON Schema with an object at its root, as the API wants it."""
    if isinstance(output, Json):
        return json.loads(output.schema)
    if isinstance(output, Choice):
        return _object("choice", {"type": "string", "enum": list(output.options)})
    items = {"type": "string", "enum": list(output.vocabulary)}
    return _object("tags", {"type": "array", "items": items, "minItems": 1, "maxItems": output.max_items})


def _object(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}
