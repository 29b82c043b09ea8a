"""Texts that wait to be encoded: who wants which, whose turn it is, how much there is. Without threads and locks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Call(Generic[T]):
    """One caller's texts, and what it has got so far."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.queue = deque(texts)  # those that no batch has taken
        self.missing = len(texts)
        self.values: dict[str, T | None] = {}
        self.error: BaseException | None = None
        self.finished = threading.Event()

    def give(self, text: str, value: T | None) -> None:
        self.values[text] = value
        self.missing -= 1
        if not self.missing:
            self.finished.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.finished.set()


class WaitingTexts(Generic[T]):
    """The texts that callers want and that are not there yet.

    Waiting calls take turns, one text each, so a call of one text does not wait for all texts of a call of
    thousands. A text that several calls want is taken once.

    Args:
        count_tokens: About how many tokens a text has; must not be slow.
        max_tokens: Bound on the tokens that wait.

    Attributes:
        calls: Those with texts that no batch has taken.
        late: The same, of callers that are gone.
        tokens: Tokens of the texts that no batch has taken.
    """

    def __init__(self, count_tokens: Callable[[str], int], max_tokens: int) -> None:
        self.calls: deque[Call[T]] = deque()
        self.late: deque[Call[T]] = deque()
        self.tokens = 0
        self._count_tokens = count_tokens
        self._max_tokens = max_tokens
        self._wanted: dict[str, list[Call[T]]] = {}  # unfinished texts and who wants them
        self._taken: set[str] = set()  # those of them that a batch has taken

    def __len__(self) -> int:
        """How many texts are unfinished."""
        return len(self._wanted)

    def make_room(self, call: Call[T]) -> bool:
        """Whether the call's texts may wait, too; drops what nobody waits for, oldest first, if that helps."""
        tokens = sum(self._count_tokens(text) for text in call.queue if text not in self._wanted)
        while self.tokens and self.tokens + tokens > self._max_tokens:
            if not self.late:
                return False
            self._drop(self.late.popleft())
        return True

    def add(self, call: Call[T]) -> None:
        """Lets the call's texts wait; for those that others wait for, too, it joins them."""
        for text in call.queue:
            if text not in self._wanted:
                self._wanted[text] = []
                self.tokens += self._count_tokens(text)
            self._wanted[text].append(call)
        self.calls.append(call)

    def give_up(self, call: Call[T]) -> None:
        """Its caller leaves: what it still waits for comes after all that others wait for."""
        if call in self.calls:
            self.calls.remove(call)
            self.late.append(call)

    def take(self, token_budget: int) -> list[str]:
        """The next texts, about `token_budget` tokens of them, of each call one in turn; the late when it is theirs."""
        texts = self._take(self.calls, token_budget) or self._take(self.late, token_budget)
        self.tokens -= sum(map(self._count_tokens, texts))
        return texts

    def hand_out(self, outcomes: Mapping[str, T | BaseException | None]) -> int:
        """Gives what became of taken texts to all that want them; returns how many calls failed."""
        failed = 0
        for text, outcome in outcomes.items():
            self._taken.remove(text)
            for call in self._wanted.pop(text):
                if isinstance(outcome, BaseException):
                    call.fail(outcome)
                    failed += 1
                else:
                    call.give(text, outcome)
        return failed

    def fail(self, error: BaseException) -> int:
        """Gives up everything, and the error to all that wait; returns how many calls failed."""
        failed = {id(call): call for calls in self._wanted.values() for call in calls}
        for call in failed.values():
            call.fail(error)
        self.calls.clear()
        self.late.clear()
        self._wanted.clear()
        self._taken.clear()
        self.tokens = 0
        return len(failed)

    def _take(self, queue: deque[Call[T]], token_budget: int) -> list[str]:
        texts: list[str] = []
        tokens = 0
        while queue and tokens < token_budget:
            call = queue.popleft()
            while call.queue:
                text = call.queue.popleft()
                if text in self._wanted and text not in self._taken:  # else another call's turn came first
                    texts.append(text)
                    tokens += self._count_tokens(text)
                    self._taken.add(text)
                    break
            if call.queue:
                queue.append(call)
        return texts

    def _drop(self, call: Call[T]) -> None:
        for text in call.queue:
            if text in self._wanted and text not in self._taken:
                self._wanted[text] = [other for other in self._wanted[text] if other is not call]
                if not self._wanted[text]:
                    del self._wanted[text]
                    self.tokens -= self._count_tokens(text)
