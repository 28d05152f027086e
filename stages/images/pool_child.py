"""The inside of a decode process: batches of payloads in, prepared pixels out, until the parent closes the pipe."""

import mmap
import os
import signal
import sys
import time
from dataclasses import replace
from math import prod
from multiprocessing.connection import Connection

import numpy as np

from stages.images.prepare import Preparation, Prepared, Request

BATCH_PAYLOADS = 16
_FLUSH_SECONDS = 0.02

Message = list[tuple[Prepared, int]]
"""What a child sends: results without their pixels, and how much of its slot along the first axis each has filled."""


def shared_bytes(preparation: Preparation) -> int:
    """Returns how much memory parent and child share: the pixels of one batch."""
    return BATCH_PAYLOADS * max(1, prod(preparation.shape))


def shared_pixels(descriptor: int, preparation: Preparation) -> np.ndarray:
    """Returns the shared memory as uint8 pixels, one slot of the preparation's shape for every place in a batch."""
    memory = mmap.mmap(descriptor, shared_bytes(preparation))
    return np.ndarray((BATCH_PAYLOADS, *preparation.shape), np.uint8, buffer=memory)


def serve() -> None:
    """The whole life of a decode process; its file descriptors are on its command line."""
    # Ctrl-C goes to the whole process group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    link = _Link(int(sys.argv[1]), int(sys.argv[2]))
    preparation: Preparation = link.receive()
    slots = shared_pixels(int(sys.argv[3]), preparation)
    _limit_memory(preparation.limits.memory_bytes)
    while True:
        _serve_batch(link, slots, preparation, link.receive())


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

    def send(self, results: Message) -> None:
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


def _serve_batch(link: _Link, slots: np.ndarray, preparation: Preparation, batch: list[Request]) -> None:
    """Pixels go through the shared slots, everything else through the pipe, several results at a time."""
    results: Message = []
    flushed = time.monotonic()
    for slot, (payload, wanted) in zip(slots, batch, strict=False):
        link.note_begun()
        signal.setitimer(signal.ITIMER_REAL, preparation.limits.seconds)
        prepared = preparation.prepare(payload, wanted)
        signal.setitimer(signal.ITIMER_REAL, 0)
        filled = 0
        if prepared.pixels is not None:
            filled = len(prepared.pixels)
            slot[:filled] = prepared.pixels
        results.append((replace(prepared, pixels=None), filled))
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
