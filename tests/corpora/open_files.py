"""A process that may open only a few more files, as under a low `ulimit -n`."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def few_open_files(more: int) -> Iterator[None]:
    """Lets this process open `more` files beyond those that it has open, and no limit can be raised, while inside."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest free numbers are given out first, so that there are no gaps below the limit.
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
