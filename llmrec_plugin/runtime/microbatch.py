"""Texts of concurrent requests, encoded together.

Callers hand in texts and wait. One thread takes what waits, encodes it in one go and hands out the vectors; it
never waits for more texts to come, so a lone request is encoded at once, and batches grow by themselves while the
encoder is busy. A text that several callers want is encoded once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias

import numpy as np

logger = logging.getLogger(__name__)

MAX_WAITING_TOKENS = 65_536
"""Bound on what may wait: some seconds of work for a small encoder on two cores."""
TEXTS_PER_WRITE = 256
"""Vectors that may wait to be kept while more texts come."""
RECENT_TEXTS = 1_024
"""Vectors held in memory: a text that is done joins no second batch while its vector waits to be kept."""
_LINGER_SECONDS = 0.002
"""How long the thread looks out for more texts before it turns to keeping vectors, which would hold up the callers
that have just been woken (Python runs one thread at a time)."""

Vector: TypeAlias = np.ndarray | None
Encode: TypeAlias = Callable[[list[str]], Sequence[Vector]]


class Prepared(NamedTuple):
    """A loaded encoder, ready for batches.

    Attributes:
        encode: Distinct texts -> their (dims,) float32 vectors in order, None for one that is not finite.
        token_budget: About how many tokens to encode in one go.
    """

    encode: Encode
    token_budget: int


class _Call:
    """One caller's texts, and what it has got so far."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.queue = deque(texts)  # those that no batch has taken
        self.missing = len(texts)
        self.vectors: dict[str, Vector] = {}
        self.error: BaseException | None = None
        self.finished = threading.Event()

    def give(self, text: str, vector: Vector) -> None:
        self.vectors[text] = vector
        self.missing -= 1
        if not self.missing:
            self.finished.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.finished.set()


class MicroBatcher:
    """Encodes texts for any number of threads, in batches that they share.

    Waiting calls take turns, one text each, so a call of one text does not wait for all texts of a call of
    thousands. What callers no longer wait for is encoded when nothing else waits, so that it is there when it is
    asked for again; it is the first to be dropped when too much waits.

    Args:
        name: Of the feature, for messages and the thread.
        prepare: Gives the encoder; called in the thread before every batch, so loading delays no caller with a
            deadline. Its error goes to every waiting caller.
        keep: Called in the thread with finite vectors, after they were handed out and when there is time.
        count_tokens: About how many tokens a text has; must not be slow.
        max_waiting_tokens: Bound on the tokens that wait.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[], Prepared],
        keep: Callable[[dict[str, np.ndarray]], None],
        count_tokens: Callable[[str], int],
        max_waiting_tokens: int = MAX_WAITING_TOKENS,
    ) -> None:
        self._name = name
        self._prepare = prepare
        self._keep = keep
        self._count_tokens = count_tokens
        self._max_waiting_tokens = max_waiting_tokens
        # The executor starts its thread at first use, ends it with this object, and joins it at interpreter exit.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"llmrec-{name}")
        self._working = False
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._arrived = threading.Condition(self._lock)
        self._waiting: deque[_Call] = deque()  # calls with texts that no batch has taken
        self._late: deque[_Call] = deque()  # the same, of callers that are gone
        self._calls: dict[str, list[_Call]] = {}  # unfinished texts and who wants them
        self._taken: set[str] = set()  # those of them that a batch has taken
        self._waiting_tokens = 0  # of the others
        self._recent: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(self, texts: Sequence[str], until: float | None = None) -> dict[str, Vector]:
        """The vectors of `texts` that are there in time.

        Args:
            texts: Distinct texts.
            until: `time.monotonic` at which the caller leaves; None: waits for all. With a deadline and more
                work waiting than may wait, nothing is encoded; without one the caller waits for room.

        Returns:
            Text -> (dims,) float32 or, where the model gave no finite vector, None. Texts that were not ready in
            time are not in it.

        Raises:
            Exception: What loading the encoder or encoding one of these texts raised.
        """
        call = _Call(texts)
        if not texts or not self._add(call, until):
            return {}
        call.finished.wait(None if until is None else max(until - time.monotonic(), 0))
        with self._lock:
            if call in self._waiting:  # too late, or one of its texts failed
                self._waiting.remove(call)
                self._late.append(call)
            if call.error is not None:
                raise call.error
            return dict(call.vectors)

    def drain(self) -> None:
        """Returns when all that waits is encoded and kept."""
        self._thread.submit(lambda: None).result()

    # --- called in the caller's thread

    def _add(self, call: _Call, until: float | None) -> bool:
        """Whether the call's texts are among those that wait, or need not be."""
        with self._lock:
            while not self._make_room(self._new_tokens(call)):
                if until is not None:
                    return False
                self._room.wait()
            for text in call.queue:
                if text in self._recent:
                    call.give(text, self._recent[text])
            call.queue = deque(text for text in call.queue if text not in call.vectors)
            if not call.queue:
                return True
            if not self._working:
                self._thread.submit(self._work)  # raises at interpreter exit; nothing is changed yet
                self._working = True
            for text in call.queue:
                if text not in self._calls:
                    self._calls[text] = []
                    self._waiting_tokens += self._count_tokens(text)
                self._calls[text].append(call)
            self._waiting.append(call)
            self._arrived.notify()
            return True

    def _new_tokens(self, call: _Call) -> int:
        new = (text for text in call.queue if text not in self._calls and text not in self._recent)
        return sum(map(self._count_tokens, new))

    def _make_room(self, tokens: int) -> bool:
        """Whether so many more tokens may wait; drops what nobody waits for, oldest first, if that helps."""
        while self._waiting_tokens and self._waiting_tokens + tokens > self._max_waiting_tokens:
            if not self._late:
                return False
            self._drop(self._late.popleft())
        return True

    def _drop(self, call: _Call) -> None:
        for text in call.queue:
            if text in self._calls and text not in self._taken:
                self._calls[text] = [other for other in self._calls[text] if other is not call]
                if not self._calls[text]:
                    del self._calls[text]
                    self._waiting_tokens -= self._count_tokens(text)

    # --- called in the encoding thread

    def _work(self) -> None:
        """Encodes batch after batch until nothing waits."""
        finite: dict[str, np.ndarray] = {}
        while batch := self._next_batch():
            outcomes = _encode(*batch)
            self._hand_out(outcomes)
            finite |= {text: vector for text, vector in outcomes.items() if isinstance(vector, np.ndarray)}
            if len(finite) >= TEXTS_PER_WRITE:
                self._write(finite)
                finite = {}
        if finite:
            self._write(finite)

    def _next_batch(self) -> tuple[Encode, list[str]] | None:
        """The loaded encoder and the next texts; None: the work is done."""
        try:
            encode, token_budget = self._prepare()
        except BaseException as exc:  # whatever it is, no caller may wait for ever
            self._fail_all(exc)
            return None
        with self._lock:
            if not self._waiting:
                self._arrived.wait(_LINGER_SECONDS)
            texts = self._take(self._waiting, token_budget)
            if not texts and self._late and not self._process_ends():
                texts = self._take(self._late, token_budget)
            self._waiting_tokens -= sum(map(self._count_tokens, texts))
            self._room.notify_all()
            self._working = bool(texts)
        return (encode, texts) if texts else None

    def _process_ends(self) -> bool:
        """Whether the interpreter is shutting down, when an executor takes no more work."""
        try:
            self._thread.submit(lambda: None)
        except RuntimeError:
            return True
        return False

    def _write(self, vectors: dict[str, np.ndarray]) -> None:
        try:
            self._keep(vectors)
        except Exception:
            logger.exception("%s: vectors could not be kept", self._name)

    def _take(self, queue: deque[_Call], token_budget: int) -> list[str]:
        """Some texts of `queue`, of each call one in turn; called with the lock."""
        texts: list[str] = []
        tokens = 0
        while queue and tokens < token_budget:
            call = queue.popleft()
            while call.queue:
                text = call.queue.popleft()
                if text in self._calls and text not in self._taken:  # else another call's turn came first
                    texts.append(text)
                    tokens += self._count_tokens(text)
                    self._taken.add(text)
                    break
            if call.queue:
                queue.append(call)
        return texts

    def _hand_out(self, outcomes: Mapping[str, Vector | BaseException]) -> None:
        with self._lock:
            for text, outcome in outcomes.items():
                self._taken.remove(text)
                calls = self._calls.pop(text)
                if isinstance(outcome, BaseException):
                    self._fail(calls, outcome)
                    continue
                for call in calls:
                    call.give(text, outcome)
                if outcome is not None:
                    self._recent[text] = outcome
            while len(self._recent) > RECENT_TEXTS:
                self._recent.popitem(last=False)

    def _fail_all(self, error: BaseException) -> None:
        with self._lock:
            self._fail([*self._waiting, *self._late], error)
            self._waiting.clear()
            self._late.clear()
            self._calls.clear()
            self._waiting_tokens = 0
            self._room.notify_all()
            self._working = False

    def _fail(self, calls: Sequence[_Call], error: BaseException) -> None:
        for call in calls:
            call.fail(error)
        logger.error("%s: encoding failed for %d waiting requests: %r", self._name, len(calls), error)


def _encode(encode: Encode, texts: list[str]) -> dict[str, Vector | BaseException]:
    """What each text gave. When the batch fails each is tried alone, so that one text fails no other."""
    try:
        return dict(zip(texts, encode(texts), strict=True))
    except BaseException as exc:  # handed to the callers
        if len(texts) == 1:
            return {texts[0]: exc}
    return {text: outcome for text in texts for outcome in _encode(encode, [text]).values()}
