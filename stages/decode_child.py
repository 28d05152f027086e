"""The inside of a decode process: batches of payloads in, prepared pixels out, until the parent closes the pipe."""

import os
import signal
import sys
import time
from multiprocessing.connection import Connection

from stages.prepare import Job, Prepared, PreparePlan

_FLUSH_SECONDS = 0.02


def serve() -> None:
    """The whole life of a decode process; its two file descriptors are on its command line."""
    # Ctrl-C goes to the whole process group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection = Connection(int(sys.argv[1]))
    started_fd = int(sys.argv[2])
    try:
        plan: PreparePlan = connection.recv()
        _limit_memory(plan.limits.memory_bytes)
        while True:
            _serve_batch(connection, started_fd, plan, connection.recv())
    except (EOFError, OSError):
        # The parent closed its end, or is gone.
        return


def _serve_batch(connection: Connection, started_fd: int, plan: PreparePlan, batch: list[Job]) -> None:
    results: list[Prepared] = []
    flushed = time.monotonic()
    for payload, crop in batch:
        os.write(started_fd, b".")
        signal.setitimer(signal.ITIMER_REAL, plan.limits.seconds)
        results.append(plan.prepare(payload, crop))
        signal.setitimer(signal.ITIMER_REAL, 0)
        now = time.monotonic()
        if now - flushed > _FLUSH_SECONDS:
            connection.send(results)
            results, flushed = [], now
    if results:
        connection.send(results)


def _limit_memory(memory_bytes: int) -> None:
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
