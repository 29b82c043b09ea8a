"""Texts of concurrent requests, encoded (or answered by a generator) together.

Callers hand in texts and wait. One thread at a time takes what waits, encodes it in one go and hands out the values;
it never waits for more texts to come, so a lone request is encoded at once, and batches grow by themselves while the
encoder is busy. A text that several callers want is encoded once.

That thread is the caller's own when nothing else waits and it has no deadline: it leads, which spares it two changes
of threads. Otherwise, and for all that came meanwhile, it is the batcher's thread. The batcher's thread also keeps
the values, after they were handed out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeAlias

from llmrec_plugin.runtime.waiting import Call, T, WaitingTexts

logger = logging.getLogger(__name__)

MAX_WAITING_TOKENS = 65_536
"""Bound on what may wait: some seconds of work for a small encoder on two cores."""
TEXTS_PER_WRITE = 256
"""Values that may wait to be kept while more texts come."""
RECENT_TEXTS = 1_024
"""Values held in memory: a text that is done joins no second batch while its value waits to be kept."""
_LOOK_SECONDS = 0.05
"""How long the batcher's thread looks out for texts before it keeps values: keeping holds up callers that have just
been answered, as Python runs one thread at a time."""
_LOOKS = 20
"""How often it looks out in vain before it ends. Until then no caller needs to wake it to have its values kept,
which would hold up the caller, too."""

Encode: TypeAlias = Callable[[list[str]], Sequence[T | None]]


class Prepared(NamedTuple, Generic[T]):
    """A loaded encoder, ready for batches.

    Attributes:
        encode: Distinct texts -> their values in order, e.g. (dims,) float32 vectors; None where there is none.
        token_budget: About how many tokens to encode in one go.
    """

    encode: Encode[T]
    token_budget: int


class MicroBatcher(Generic[T]):
    """Encodes texts for any number of threads, in batches that they share.

    Calls take turns, see `WaitingTexts`. What callers no longer wait for is encoded when nothing else waits, so that
    it is there when it is asked for again; it is the first to be dropped when too much waits. No lock is held while
    the encoder works.

    Args:
        name: Of the feature, for messages and the thread.
        prepare: Gives the encoder; called before every batch, and never in the thread of a caller with a deadline,
            so loading delays none. Its error goes to every waiting caller.
        keep: Called in the batcher's thread with valid values, after they were handed out and when there is time.
        count_tokens: About how many tokens a text has; must not be slow.
        max_waiting_tokens: Bound on the tokens that wait.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[], Prepared[T]],
        keep: Callable[[dict[str, T]], None],
        count_tokens: Callable[[str], int],
        max_waiting_tokens: int = MAX_WAITING_TOKENS,
    ) -> None:
        self._name = name
        self._prepare = prepare
        self._keep = keep
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._arrived = threading.Condition(self._lock)  # what the batcher's thread waits for
        self._settled = threading.Condition(self._lock)
        self._encoding = False  # by a caller or by the batcher's thread, never by two at a time
        self._running = False  # the batcher's thread is at work or looks out for it
        self._keeping = False
        self._draining = 0
        self._waiting: WaitingTexts[T] = WaitingTexts(count_tokens, max_waiting_tokens)
        self._recent: OrderedDict[str, T] = OrderedDict()
        self._unkept: dict[str, T] = {}

    def encode(self, texts: Sequence[str], until: float | None = None) -> dict[str, T | None]:
        """The values of `texts` that are there in time.

        Args:
            texts: Distinct texts.
            until: `time.monotonic` at which the caller leaves; None: waits for all. With a deadline and more
                work waiting than may wait, nothing is encoded and only what is at hand comes back; without one the
                caller waits for room.

        Returns:
            Text -> its value or, where the model gave none that is valid, None. Texts that were not ready in
            time are not in it.

        Raises:
            Exception: What loading the encoder or encoding one of these texts raised.
        """
        call: Call[T] = Call(texts)
        with self._lock:
            if not self._find_room(call, until):
                return dict(call.values)
            leads = bool(call.queue) and self._add(call, may_lead=until is None)
        if leads:
            self._encode_batch()
        if call.missing:
            call.finished.wait(None if until is None else max(until - time.monotonic(), 0))
        with self._lock:
            self._waiting.give_up(call)  # too late, or one of its texts failed
            if call.error is not None:
                raise call.error
            return dict(call.values)

    def __len__(self) -> int:
        """How many texts wait or are being encoded."""
        with self._lock:
            return len(self._waiting)

    def drain(self) -> None:
        """Returns when all that waits is encoded and kept."""
        with self._lock:
            self._draining += 1
            self._arrived.notify()
            while self._encoding or self._has_texts() or self._unkept or self._keeping:
                self._settled.wait()
            self._draining -= 1

    # --- called with the lock

    def _find_room(self, call: Call[T], until: float | None) -> bool:
        """Takes from the call what is at hand; whether the rest may wait."""
        while True:
            for text in call.queue:
                if text in self._recent:
                    call.give(text, self._recent[text])
            call.queue = deque(text for text in call.queue if text not in call.values)
            if self._waiting.make_room(call):
                return True
            if until is not None:
                return False
            self._room.wait()

    def _add(self, call: Call[T], *, may_lead: bool) -> bool:
        """Lets the call's texts wait; returns whether its caller is to encode the next batch."""
        is_idle = not self._encoding and not self._waiting.calls
        # A caller that leads writes nothing, so it must not get far ahead of a disk that is slow.
        leads = may_lead and is_idle and len(self._unkept) < TEXTS_PER_WRITE
        if not leads and not self._encoding:  # else who encodes will see to it
            self._wake()
        self._waiting.add(call)
        self._encoding |= leads
        return leads

    def _wake(self) -> None:
        """Sets the batcher's thread to work.

        Raises:
            RuntimeError: No thread can be started.
        """
        if self._running:
            self._arrived.notify()
        else:
            threading.Thread(target=self._work, name=f"llmrec-{self._name}").start()  # the interpreter waits for it
            self._running = True

    def _next_task(self) -> Callable[[], None] | None:
        """What the batcher's thread has to do next; None: nothing, it ends."""
        looks = 0
        while True:
            hurries = self._draining > 0 or _process_ends()
            if len(self._unkept) >= TEXTS_PER_WRITE:
                return self._keep_values
            if not self._encoding and self._has_texts():
                self._encoding = True
                return self._encode_batch
            if self._unkept and (looks or hurries):
                return self._keep_values
            if not self._encoding and (looks == _LOOKS or _process_ends()):
                self._running = False
                return None
            looks = 0 if self._arrived.wait(_LOOK_SECONDS) else min(looks + 1, _LOOKS)

    def _has_texts(self) -> bool:
        """Whether texts wait that are to be encoded: of callers that are gone only while the process goes on."""
        return bool(self._waiting.calls or (self._waiting.late and not _process_ends()))

    # --- called without it

    def _work(self) -> None:
        """What the batcher's thread does."""
        while True:
            with self._lock:
                task = self._next_task()
            if task is None:
                return
            task()

    def _encode_batch(self) -> None:
        """Encodes the next texts and hands out their values; called by the one thread that has set `_encoding`."""
        try:
            encode, token_budget = self._prepare()
            with self._lock:
                texts = self._waiting.take(token_budget)
                self._room.notify_all()
            outcomes = _encode(encode, texts)
        except BaseException as exc:  # whatever it is, no caller may wait for ever
            with self._lock:
                self._log(exc, self._waiting.fail(exc))
                self._room.notify_all()
        else:
            with self._lock:
                self._hand_out(outcomes)
        finally:
            self._release()

    def _release(self) -> None:
        """Lets others encode, and leaves what remains to do to the batcher's thread."""
        with self._lock:
            self._encoding = False
            self._settled.notify_all()
            if not (self._waiting or self._draining or (self._unkept and not self._running)):
                return  # a thread that is running finds values to keep by itself
            try:
                self._wake()
                return
            except RuntimeError as exc:
                logger.warning("%s: %s; a request does the work of the thread.", self._name, exc)
                self._running = True
        self._work()

    def _hand_out(self, outcomes: dict[str, T | BaseException | None]) -> None:
        valid = {
            text: value
            for text, value in outcomes.items()
            if value is not None and not isinstance(value, BaseException)
        }
        self._unkept |= valid
        self._recent |= valid
        while len(self._recent) > RECENT_TEXTS:
            self._recent.popitem(last=False)
        failed = self._waiting.hand_out(outcomes)
        for error in {id(item): item for item in outcomes.values() if isinstance(item, BaseException)}.values():
            self._log(error, failed)

    def _keep_values(self) -> None:
        with self._lock:
            values, self._unkept = self._unkept, {}
            self._keeping = True
        try:
            self._keep(values)
        except Exception:
            logger.exception("%s: values could not be kept", self._name)
        with self._lock:
            self._keeping = False
            self._settled.notify_all()

    def _log(self, error: BaseException, failed: int) -> None:
        logger.error("%s: encoding failed for %d waiting requests: %r", self._name, failed, error)


def _process_ends() -> bool:
    """Whether the interpreter only waits for its threads to end."""
    return not threading.main_thread().is_alive()


def _encode(encode: Encode[T], texts: list[str]) -> dict[str, T | BaseException | None]:
    """What each text gave. When the batch fails each is tried alone, so that one text fails no other."""
    if not texts:  # their callers have left, and others came first
        return {}
    try:
        return dict(zip(texts, encode(texts), strict=True))
    except Exception as exc:  # handed to the callers
        if len(texts) == 1:
            return {texts[0]: exc}
    return {text: outcome for text in texts for outcome in _encode(encode, [text]).values()}
