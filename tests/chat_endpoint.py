"""A local endpoint that answers chat and plain completions, and misbehaves on demand."""

from __future__ import annotations

import time
from typing import Any

from endpoint import Endpoint, Reply


class ChatEndpoint(Endpoint):
    """Writes the last word of a prompt, or what else is asked for, in capitals.

    Attributes:
        name: The model that answers say they are by; None leaves it out.
        delay: Seconds before an answer.
        finish: What answers say they ended by.
        write: Prompt -> what is written, before it is put in capitals.
        knows_max_tokens: Whether ``max_tokens`` is accepted.
        logprobs: Whether log probabilities are given.
    """

    def __init__(self, name: str | None = "writer") -> None:
        super().__init__(lambda texts: texts)
        self.name, self.delay, self.finish = name, 0.0, "stop"
        self.write = last_word
        self.knows_max_tokens = self.logprobs = True

    def answer(self, path: str, body: dict[str, Any]) -> Reply:
        time.sleep(self.delay)
        with self._lock:
            planned = self.replies.pop(0) if self.replies else None
        if planned is not None:
            return planned
        if "max_tokens" in body and not self.knows_max_tokens:
            return Reply(400, {"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead."}})
        if path == "/v1/chat/completions":
            return self._usual(self._chat(body))
        if path == "/v1/completions":
            return self._usual(self._plain(body))
        return Reply(404, {"detail": "Not Found"})

    def _chat(self, body: dict[str, Any]) -> Any:
        prompt = body["messages"][-1]["content"]
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": self.write(prompt).upper()}}
        if body.get("logprobs") and self.logprobs:
            top = [("Yes", -0.25), (" Yes", -2.0), ("no", -3.0), ("perhaps", -6.0)]
            listed = [{"token": token, "logprob": logprob} for token, logprob in top]
            choice["logprobs"] = {"content": [{"token": "Yes", "logprob": -0.25, "top_logprobs": listed}]}
        return self._whole(choice, prompt)

    def _plain(self, body: dict[str, Any]) -> Any:
        prompt = body["prompt"]
        choice: dict[str, Any] = {"index": 0, "text": self.write(prompt).upper()}
        if body.get("echo") and self.logprobs:
            words = prompt.split(" ")
            tokens = [words[0], *(f" {word}" for word in words[1:])]
            logprobs = [None, *(-len(token) / 4 for token in tokens[1:])]
            choice["logprobs"] = {"tokens": tokens, "token_logprobs": logprobs}
        return self._whole(choice, prompt)

    def _whole(self, choice: dict[str, Any], prompt: str) -> Any:
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1, "total_tokens": len(prompt) + 1}
        whole = {"object": "completion", "choices": [choice | {"finish_reason": self.finish}], "usage": usage}
        return whole | ({} if self.name is None else {"model": self.name})


def last_word(text: str) -> str:
    return text.split()[-1]
