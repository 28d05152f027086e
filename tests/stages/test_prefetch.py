"""An iterator that runs ahead gives the same items, and its errors come when their item is due."""

import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from stages.prefetch import prefetched


def counted(made: list[int], *, until: int = 10, fails_at: int = -1) -> Iterator[int]:
    try:
        for number in range(until):
            if number == fails_at:
                raise ValueError(f"item {number}")
            made.append(number)
            yield number
    finally:
        made.append(-1)


def test_every_item_comes_in_order() -> None:
    assert list(prefetched(counted([]))) == list(range(10))
    assert list(prefetched(iter([]))) == []


def test_an_error_comes_when_its_item_is_due() -> None:
    seen = []
    with pytest.raises(ValueError, match="item 4"):
        for number in prefetched(counted([], fails_at=4)):
            seen.append(number)
    assert seen == [0, 1, 2, 3]
    one_by_one = prefetched(counted([], fails_at=2))
    assert [next(one_by_one), next(one_by_one)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(one_by_one)


def test_it_is_only_so_many_items_ahead_and_closing_it_ends_thread_and_items() -> None:
    made: list[int] = []
    ahead = prefetched(counted(made, until=1000), num_ahead=3)
    assert next(ahead) == 0
    for _ in range(200):
        if len(made) == 4:
            break
        time.sleep(0.01)
    assert made == [0, 1, 2, 3]
    ahead.close()
    assert made[-1] == -1 and len(made) < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


class Large:
    """Something that should not stay."""


def test_an_item_that_was_taken_is_forgotten_while_the_next_one_is_waited_for() -> None:
    is_due = threading.Event()

    def items() -> Iterator[Large]:
        yield Large()
        is_due.wait(10)
        yield Large()

    ahead = prefetched(items(), num_ahead=1)
    taken = weakref.ref(next(ahead))
    waiting = threading.Thread(target=next, args=(ahead,))
    waiting.start()
    for _ in range(200):
        if taken() is None:
            break
        time.sleep(0.01)
    was_forgotten = taken() is None
    is_due.set()
    waiting.join()
    assert was_forgotten
