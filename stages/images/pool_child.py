"""The inside of a decode process: payloads in, pixels into shared memory, until the parent closes the pipe."""

import os
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import NamedTuple

from stages.images.prepare import Preparation, Prepared, Request
from stages.images.shared_pixels import MappedSlabs

BATCH_PAYLOADS = 16
_FLUSH_SECONDS = 0.2


class Task(NamedTuple):
    """What a child is asked for: `requests`, and for each the row of the slab at that place where its pixels go."""

    requests: list[Request]
    rows: list[int]
    offset_bytes: int
    size_bytes: int


Message = list[tuple[Prepared, int]]
"""What a child sends: results without their pixels, and how much of its row along the first axis each has filled."""


def serve() -> None:
    """The whole life of a decode process; its file descriptors are on its command line."""
    # Ctrl-C goes to the whole process group; the parent decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    link = _Link(int(sys.argv[1]), int(sys.argv[2]))
    preparation: Preparation = link.receive()
    slabs = MappedSlabs(int(sys.argv[3]), preparation.shape)
    _limit_memory(preparation.limits.memory_bytes)
    while True:
        _serve_task(link, slabs, preparation, link.receive())


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


def _serve_task(link: _Link, slabs: MappedSlabs, preparation: Preparation, task: Task) -> None:
    """Pixels go into the shared slab, everything else through the pipe, several results at a time."""
    pixels = slabs.slab(task.offset_bytes, task.size_bytes)
    results: Message = []
    flushed = time.monotonic()
    for row, (payload, wanted) in zip(task.rows, task.requests, strict=True):
        link.note_begun()
        signal.setitimer(signal.ITIMER_REAL, preparation.limits.seconds)
        prepared = preparation.prepare(payload, wanted)
        signal.setitimer(signal.ITIMER_REAL, 0)
        filled = 0
        if prepared.pixels is not None:
            filled = len(prepared.pixels)
            pixels[row, :filled] = prepared.pixels
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
