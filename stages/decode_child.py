"""The inside of a decode process: batches of payloads in, prepared pixels out, until the parent closes the pipe."""

import mmap
import os
import signal
import sys
import time
from multiprocessing.connection import Connection

import numpy as np

from stages.prepare import Job, Prepared, PreparePlan

BATCH_PAYLOADS = 16
_FLUSH_SECONDS = 0.02


def shared_bytes(plan: PreparePlan) -> int:
    """Returns how much memory parent and child share: the pixels of one batch."""
    height, width = plan.preprocess.size
    return BATCH_PAYLOADS * height * width * 3


def shared_pixels(descriptor: int, plan: PreparePlan) -> np.ndarray:
    """Returns the shared memory as uint8 pixels, one slot (HWC) for every place in a batch."""
    height, width = plan.preprocess.size
    memory = mmap.mmap(descriptor, shared_bytes(plan))
    return np.frombuffer(memory, dtype=np.uint8).reshape(BATCH_PAYLOADS, height, width, 3)


def serve() -> None:
    """The whole life of a decode process; its file descriptors are on its command line."""
    # Ctrl-C goes to the whole process group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    link = _Link(int(sys.argv[1]), int(sys.argv[2]))
    plan: PreparePlan = link.receive()
    slots = shared_pixels(int(sys.argv[3]), plan)
    _limit_memory(plan.limits.memory_bytes)
    while True:
        _serve_batch(link, slots, plan, link.receive())


class _Link:
    """The way to the parent. When the parent closes it, or is gone, the process ends without a word."""

    def __init__(self, connection_fd: int, begun_fd: int) -> None:
        self._connection = Connection(connection_fd)
        self._begun_fd = begun_fd

    def receive(self):  # type: ignore[no-untyped-def]
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            sys.exit(0)

    def send(self, results: list[Prepared]) -> None:
        try:
            self._connection.send(results)
        except OSError:
            sys.exit(0)

    def note_begun(self) -> None:
        """Tells the parent that one more payload is begun, so that it knows which one was fatal."""
        try:
            os.write(self._begun_fd, b".")
        except OSError:
            sys.exit(0)


def _serve_batch(link: _Link, slots: np.ndarray, plan: PreparePlan, batch: list[Job]) -> None:
    """Pixels go through the shared slots, everything else through the pipe, several results at a time."""
    results: list[Prepared] = []
    flushed = time.monotonic()
    for slot, (payload, crop) in enumerate(batch):
        link.note_begun()
        signal.setitimer(signal.ITIMER_REAL, plan.limits.seconds)
        prepared = plan.prepare(payload, crop)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if prepared.pixels is not None:
            slots[slot] = prepared.pixels
        results.append(Prepared(None, prepared.status, prepared.reason, prepared.width, prepared.height))
        now = time.monotonic()
        if now - flushed > _FLUSH_SECONDS:
            link.send(results)
            results, flushed = [], now
    if results:
        link.send(results)


def _limit_memory(memory_bytes: int) -> None:
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
