"""Runs an iterator in a background thread, a few items ahead of whoever takes them."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, cast

Item = TypeVar("Item")

_END: Final = object()


def prefetched(items: Iterator[Item], *, num_ahead: int = 2) -> Generator[Item]:
    """Yields every one of `items` in order; a background thread is at most `num_ahead` of them ahead.

    An error of `items` is raised when its item is due. Closing the generator ends the thread, once the item that is
    being made is done, and closes `items` where it can be closed.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        waiting = deque(thread.submit(next, items, _END) for _ in range(num_ahead))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(next, items, _END))
                yield cast(Item, item)
                # It may be large, and the next one takes time.
                del item
        finally:
            thread.shutdown(cancel_futures=True)
            if isinstance(items, Generator):
                items.close()
