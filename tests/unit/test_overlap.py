"""Work done ahead."""

import threading

import pytest

from llmrec_plugin.runtime.overlap import ahead

PATIENCE = 20  # seconds after which a test that waits in vain fails


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_order(count):
    assert list(ahead(lambda value: value * 2, range(count))) == [value * 2 for value in range(count)]


def test_the_next_result_is_computed_while_the_last_is_used_and_none_beyond_it():
    begun = [threading.Event() for _ in range(4)]
    results = ahead(lambda index: begun[index].set(), range(4))
    next(results)
    assert begun[1].wait(PATIENCE)
    assert not begun[2].is_set()
    next(results)
    assert begun[2].wait(PATIENCE)
    assert not begun[3].is_set()
    results.close()


def test_a_single_result_needs_no_thread():
    assert list(ahead(lambda _: threading.current_thread(), [0])) == [threading.current_thread()]


def test_an_error_comes_where_its_result_would_and_no_thread_is_left():
    before = threading.active_count()
    results = ahead(lambda value: 1 // value, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before


def test_an_iterator_that_is_closed_leaves_no_thread():
    before = threading.active_count()
    results = ahead(lambda value: value, [1, 2, 3])
    next(results)
    results.close()
    assert threading.active_count() == before
