"""Texts of concurrent callers in shared batches, with an encoder that the test lets go batch by batch."""

import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from llmrec_plugin.runtime import microbatch
from llmrec_plugin.runtime.microbatch import MicroBatcher, Prepared

PATIENCE = 20  # seconds after which a test that waits in vain fails


def vector(text):
    return np.frombuffer(text.encode().ljust(8, b"\0")[:8], dtype=np.uint8).astype(np.float32)


class Model:
    """Encodes one word as its bytes; with `held`, each batch waits for `let_go`."""

    def __init__(self, held=False):
        self.batches = []
        self.threads = []  # by name, in which the batches were encoded
        self.kept = {}
        self.loads = 0
        self.load_error = None
        self.poison = set()
        self._begun = threading.Semaphore(0)
        self._gates = threading.Semaphore(0 if held else 10**6)

    def prepare(self):
        self.loads += 1
        if self.load_error:
            raise self.load_error
        return Prepared(self.encode, token_budget=4)

    def encode(self, texts):
        self.batches.append(list(texts))
        self.threads.append(threading.current_thread().name)
        self._begun.release()
        assert self._gates.acquire(timeout=PATIENCE)
        if self.poison & set(texts):
            raise ValueError(f"cannot encode {sorted(self.poison & set(texts))}")
        return [None if text == "nan" else vector(text) for text in texts]

    def begun(self):
        """Returns when one more batch has begun."""
        assert self._begun.acquire(timeout=PATIENCE)

    def let_go(self, batches=1):
        self._gates.release(batches)

    def let_all_go(self):
        self.let_go(10**6)

    def batcher(self, name="feature", **options):
        return MicroBatcher(name, self.prepare, self.kept.update, lambda text: 1, **options)


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def soon():
    """A deadline that has passed when the caller begins to wait."""
    return time.monotonic()


@pytest.fixture
def callers():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def check(answer, texts):
    assert answer.keys() == set(texts)
    for text in texts:
        np.testing.assert_array_equal(answer[text], vector(text))


def waiting(batcher, count):
    """Returns when so many calls wait."""
    until(lambda: len(batcher._waiting.calls) == count)


# --- batches


def test_a_lone_call_is_encoded_at_once():
    model = Model()
    check(model.batcher().encode(["a", "b"]), ["a", "b"])
    assert model.batches == [["a", "b"]]


def test_what_came_while_the_encoder_was_busy_is_one_batch(callers):
    model = Model(held=True)
    batcher = model.batcher()
    first = callers.submit(batcher.encode, ["a"])
    model.begun()
    others = [callers.submit(batcher.encode, [text]) for text in "bcd"]
    waiting(batcher, 3)
    model.let_all_go()
    for text, future in zip("abcd", [first, *others], strict=True):
        check(future.result(PATIENCE), [text])
    assert [sorted(batch) for batch in model.batches] == [["a"], ["b", "c", "d"]]


def test_a_batch_holds_no_more_than_the_budget(callers):
    model = Model()
    texts = [f"t{number}" for number in range(10)]
    check(model.batcher().encode(texts), texts)
    assert [len(batch) for batch in model.batches] == [4, 4, 2]


def test_a_call_of_one_text_does_not_wait_for_all_texts_of_a_long_one(callers):
    model = Model(held=True)
    batcher = model.batcher()
    long = callers.submit(batcher.encode, [f"long{number}" for number in range(100)])
    model.begun()
    short = callers.submit(batcher.encode, ["short"])
    waiting(batcher, 2)
    model.let_go(2)
    check(short.result(PATIENCE), ["short"])
    assert "short" in model.batches[1]
    assert not long.done()
    model.let_all_go()
    assert len(long.result(PATIENCE)) == 100


def test_a_text_that_two_calls_want_is_encoded_once_whether_it_waits_or_is_in_the_encoder(callers):
    model = Model(held=True)
    batcher = model.batcher()
    one = callers.submit(batcher.encode, ["a"])
    model.begun()
    same = callers.submit(batcher.encode, ["a"])  # in the encoder
    two = callers.submit(batcher.encode, ["b", "c"])
    both = callers.submit(batcher.encode, ["c", "a", "d"])  # waiting, in the encoder, new
    waiting(batcher, 3)
    model.let_all_go()
    for future, texts in ((one, "a"), (same, "a"), (two, "bc"), (both, "cad")):
        check(future.result(PATIENCE), texts)
    assert Counter(text for batch in model.batches for text in batch) == Counter("abcd")


def test_many_threads_get_their_own_vectors_and_each_text_is_encoded_once():
    model = Model()
    batcher = model.batcher()
    vocabulary = [f"t{number}" for number in range(300)]
    together = threading.Barrier(16)

    def work(seed):
        choose = np.random.default_rng(seed)
        together.wait(PATIENCE)
        for _ in range(60):
            texts = [str(text) for text in choose.choice(vocabulary, choose.integers(1, 12), replace=False)]
            check(batcher.encode(texts), texts)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    batcher.drain()
    counts = Counter(text for batch in model.batches for text in batch)
    assert set(counts.values()) == {1}
    assert model.kept.keys() == counts.keys()
    assert not batcher._waiting
    assert not batcher._waiting._taken
    assert batcher._waiting.tokens == 0


def test_a_vector_that_is_not_finite_is_none_and_not_kept():
    model = Model()
    batcher = model.batcher()
    answer = batcher.encode(["a", "nan"])
    assert answer["nan"] is None
    batcher.drain()
    assert model.kept.keys() == {"a"}


def test_no_texts_need_no_encoder():
    model = Model()
    assert model.batcher().encode([]) == {}
    assert model.loads == 0


def test_the_vectors_in_memory_are_bounded(monkeypatch):
    monkeypatch.setattr(microbatch, "RECENT_TEXTS", 3)
    model = Model()
    batcher = model.batcher()
    batcher.encode([f"t{number}" for number in range(10)])
    assert len(batcher._recent) == 3


# --- who encodes


def test_a_caller_without_a_deadline_encodes_itself_when_nothing_else_waits():
    model = Model()
    batcher = model.batcher()
    for text in "abc":
        check(batcher.encode([text]), [text])
    assert set(model.threads) == {threading.current_thread().name}
    until(lambda: model.kept.keys() == set("abc"))  # without being asked to


def test_a_caller_with_a_deadline_never_encodes_itself():
    model = Model()
    check(model.batcher().encode(["a"], time.monotonic() + PATIENCE), ["a"])
    assert model.threads == ["llmrec-feature"]


def test_a_caller_encodes_one_batch_and_leaves_the_rest_to_the_batcher(callers):
    model = Model(held=True)
    batcher = model.batcher()
    short = callers.submit(batcher.encode, ["short"])
    model.begun()
    long = callers.submit(batcher.encode, [f"long{number}" for number in range(20)])
    waiting(batcher, 1)
    model.let_go()
    check(short.result(PATIENCE), ["short"])  # though the long one waits
    model.let_all_go()
    assert len(long.result(PATIENCE)) == 20
    assert model.threads[0] != "llmrec-feature"
    assert set(model.threads[1:]) == {"llmrec-feature"}


@pytest.mark.parametrize("deadline", [None, PATIENCE])
def test_no_lock_is_held_while_the_encoder_works(callers, deadline):
    """Whoever encodes, others add texts, leave at their deadline and get what is at hand."""
    model = Model(held=True)
    batcher = model.batcher()
    model.let_go()
    batcher.encode(["known"])
    model.begun()
    busy = callers.submit(batcher.encode, ["busy"], deadline and time.monotonic() + deadline)
    model.begun()
    check(callers.submit(batcher.encode, ["known"]).result(PATIENCE), ["known"])
    assert callers.submit(batcher.encode, ["late"], soon()).result(PATIENCE) == {}
    assert not busy.done()
    model.let_all_go()
    check(busy.result(PATIENCE), ["busy"])


def test_an_interrupt_of_the_caller_that_encodes_fails_who_waits_and_the_next_call_is_served(callers):
    model = Model(held=True)
    batcher = model.batcher()

    def interrupt(texts):
        Model.encode(model, texts)
        raise KeyboardInterrupt

    model.encode = interrupt
    first = callers.submit(batcher.encode, ["a"])
    model.begun()
    second = callers.submit(batcher.encode, ["a", "b"])
    waiting(batcher, 1)
    model.let_go()
    for future in (first, second):
        with pytest.raises(KeyboardInterrupt):
            future.result(PATIENCE)
    del model.encode
    model.let_all_go()
    check(batcher.encode(["a", "b"]), ["a", "b"])
    assert not batcher._waiting


def test_callers_do_not_get_far_ahead_of_a_disk_that_is_slow(callers, monkeypatch):
    monkeypatch.setattr(microbatch, "TEXTS_PER_WRITE", 2)
    model = Model()
    writing, go_on = threading.Event(), threading.Event()

    def keep(vectors):
        writing.set()
        assert go_on.wait(PATIENCE)
        model.kept.update(vectors)

    batcher = MicroBatcher("feature", model.prepare, keep, lambda text: 1)
    batcher.encode(["a"])
    assert writing.wait(PATIENCE)
    for text in "bc":  # while a is written
        check(batcher.encode([text]), [text])
    patient = callers.submit(batcher.encode, ["d"])
    waiting(batcher, 1)
    go_on.set()
    check(patient.result(PATIENCE), ["d"])
    batcher.drain()
    assert model.kept.keys() == set("abcd")


def test_a_caller_does_the_work_of_a_thread_that_cannot_be_started(monkeypatch, caplog):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(microbatch, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    model = Model()
    check(model.batcher().encode(["a"]), ["a"])
    assert model.kept.keys() == {"a"}
    assert "can't start new thread" in caplog.text


# --- deadlines


def test_a_call_that_is_late_gets_what_is_there_and_the_rest_is_encoded_all_the_same(callers):
    model = Model(held=True)
    batcher = model.batcher()
    late = callers.submit(batcher.encode, ["a", "b", "c", "d", "e"], time.monotonic() + 0.05)
    model.begun()  # a to d
    assert late.result(PATIENCE) == {}
    model.let_all_go()
    check(batcher.encode(["a"]), ["a"])
    batcher.drain()
    assert model.kept.keys() == set("abcde")
    assert Counter(text for batch in model.batches for text in batch) == Counter("abcde")


def test_a_late_call_gets_the_texts_of_finished_batches(callers):
    model = Model(held=True)
    batcher = model.batcher()
    answers = []
    caller = threading.Thread(target=lambda: answers.append(batcher.encode("abcde", time.monotonic() + 0.5)))
    caller.start()
    model.begun()
    model.let_go()
    model.begun()  # the batch of e, which is not let go
    caller.join(PATIENCE)
    check(answers[0], "abcd")
    model.let_all_go()


def test_what_callers_wait_for_comes_before_what_they_gave_up(callers):
    model = Model(held=True)
    batcher = model.batcher()
    busy = callers.submit(batcher.encode, ["busy"])
    model.begun()
    assert batcher.encode(["x", "y", "z"], soon()) == {}
    live = callers.submit(batcher.encode, ["a", "y"])
    waiting(batcher, 1)
    model.let_all_go()
    check(live.result(PATIENCE), ["a", "y"])
    busy.result(PATIENCE)
    batcher.drain()
    assert model.batches == [["busy"], ["a", "y"], ["x", "z"]]


def test_loading_does_not_hold_up_a_caller_with_a_deadline(callers):
    model = Model()
    gate = threading.Event()
    load = model.prepare
    model.prepare = lambda: gate.wait(PATIENCE) and load()
    batcher = model.batcher()
    assert batcher.encode(["a"], soon()) == {}
    gate.set()
    batcher.drain()
    assert model.kept.keys() == {"a"}
    check(batcher.encode(["a"], soon()), ["a"])  # at hand, so it is in time


# --- too much


def test_when_too_much_waits_a_call_with_a_deadline_gets_nothing_and_one_without_waits_for_room(callers):
    model = Model(held=True)
    batcher = model.batcher(max_waiting_tokens=6)
    busy = callers.submit(batcher.encode, ["busy"])
    model.begun()
    full = callers.submit(batcher.encode, "abcdef")
    waiting(batcher, 1)
    begun = time.monotonic()
    assert batcher.encode(["x"], begun + 3600) == {}  # at once, an hour before its deadline
    known = callers.submit(batcher.encode, "ab", time.monotonic() + PATIENCE)  # adds nothing, so it may wait
    patient = callers.submit(batcher.encode, ["g"])
    until(lambda: batcher._room._waiters)
    assert batcher._waiting.tokens == 6
    model.let_all_go()
    for future, texts in ((busy, ["busy"]), (full, "abcdef"), (known, "ab"), (patient, "g")):
        check(future.result(PATIENCE), texts)
    assert not any("x" in batch for batch in model.batches)


def test_a_call_larger_than_what_may_wait_is_served_alone():
    model = Model()
    texts = [f"t{number}" for number in range(50)]
    check(model.batcher(max_waiting_tokens=6).encode(texts), texts)


def test_what_nobody_waits_for_makes_room_and_shared_texts_stay(callers):
    model = Model(held=True)
    batcher = model.batcher(max_waiting_tokens=6)
    busy = callers.submit(batcher.encode, ["busy"])
    model.begun()
    assert batcher.encode("abc", soon()) == {}
    assert batcher.encode("def", soon()) == {}
    live = callers.submit(batcher.encode, "cgh", time.monotonic() + PATIENCE)
    waiting(batcher, 1)
    assert batcher._waiting.tokens == 6  # c, g, h and d, e, f
    model.let_all_go()
    check(live.result(PATIENCE), "cgh")
    busy.result(PATIENCE)
    batcher.drain()
    assert set().union(*model.batches) == {"busy", *"cdefgh"}


def test_endless_late_calls_do_not_fill_the_memory(callers):
    model = Model(held=True)
    batcher = model.batcher(max_waiting_tokens=50)
    busy = callers.submit(batcher.encode, ["busy"])
    model.begun()
    for number in range(1000):
        assert batcher.encode([f"t{number}"], soon()) == {}
    assert len(batcher._waiting.late) <= 50
    assert len(batcher._waiting) <= 51
    model.let_all_go()
    busy.result(PATIENCE)
    batcher.drain()
    assert not batcher._waiting


# --- errors


def test_a_text_that_fails_fails_only_the_calls_that_want_it(callers):
    model = Model(held=True)
    model.poison = {"bad"}
    batcher = model.batcher()
    busy = callers.submit(batcher.encode, ["busy"])
    model.begun()
    wanting = [callers.submit(batcher.encode, texts) for texts in (["bad"], ["a", "bad"], ["bad", "b"])]
    other = callers.submit(batcher.encode, ["a", "c"])
    waiting(batcher, 4)
    model.let_all_go()
    for future in wanting:
        with pytest.raises(ValueError, match="cannot encode"):
            future.result(PATIENCE)
    check(other.result(PATIENCE), ["a", "c"])
    busy.result(PATIENCE)
    check(batcher.encode(["b"]), ["b"])
    batcher.drain()
    assert model.kept.keys() == {"busy", "a", "b", "c"}


def test_an_error_that_nobody_waits_for_is_logged(callers, caplog):
    model = Model(held=True)
    model.poison = {"bad"}
    batcher = model.batcher()
    assert batcher.encode(["bad"], soon()) == {}
    model.let_all_go()
    batcher.drain()
    assert "cannot encode ['bad']" in caplog.text


def test_an_encoder_that_cannot_be_loaded_is_an_error_for_all_that_wait_and_is_tried_again(callers):
    model = Model()
    model.load_error = OSError("no such model")
    batcher = model.batcher()
    for future in [callers.submit(batcher.encode, [text]) for text in "aab"]:
        with pytest.raises(OSError, match="no such model"):
            future.result(PATIENCE)
    model.load_error = None
    check(batcher.encode(["a", "c"]), ["a", "c"])


def test_vectors_that_cannot_be_kept_are_handed_out(caplog):
    model = Model()
    model.kept = None

    def fail(vectors):
        raise RuntimeError("no room")

    batcher = MicroBatcher("feature", model.prepare, fail, lambda text: 1)
    for text in "ab":
        check(batcher.encode([text]), [text])
        batcher.drain()
    assert caplog.text.count("could not be kept") == 2


# --- the end


def test_the_thread_ends_when_it_has_looked_for_work_in_vain_and_is_started_again(monkeypatch):
    monkeypatch.setattr(microbatch, "_LOOK_SECONDS", 0.001)
    model = Model()
    batcher = model.batcher("ending")
    for text in "ab":
        batcher.encode([text])
        until(lambda: not any(thread.name == "llmrec-ending" for thread in threading.enumerate()))
        assert text in model.kept  # and before it ends, it keeps
    check(batcher.encode(["c"], time.monotonic() + PATIENCE), ["c"])


ENDING = """
import sys, threading, time
import numpy as np
from llmrec_plugin.runtime.microbatch import MicroBatcher, Prepared

begun = threading.Event()
batches = []

def encode(texts):
    batches.append(texts)
    begun.set()
    time.sleep(0.2)
    return [np.ones(2, np.float32)] * len(texts)

batcher = MicroBatcher("f", lambda: Prepared(encode, 1), lambda vectors: None, lambda text: 1)
thread = threading.Thread(target=lambda: print(sorted(batcher.encode(["live"]))))
batcher.encode(["first"], time.monotonic())
begun.wait()
batcher.encode([f"late{number}" for number in range(1000)], time.monotonic())
thread.start()
threading._register_atexit(lambda: print("ending", flush=True))
"""


def test_a_process_that_ends_serves_who_waits_and_drops_the_rest():
    """A thousand late texts of 0.2 s each are not worked off."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ENDING], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["ending", "['live']"]
