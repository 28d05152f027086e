"""A pool of decode processes: payloads in, pixels out, in order; a decoder that dies or hangs takes nothing with it.

Every process is a fresh interpreter that imports Pillow and NumPy only. It is started by its own command line, not
through `multiprocessing`, which would import the caller's main module (and torch with it) into every child.
The time limit is a kernel alarm inside the child, so it also ends a decoder that never returns to Python, and a
child whose parent was killed ends itself: at the end of its pipe, or at the alarm.
"""

import contextlib
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import IO

import numpy as np

from cache_schema.errors import EnvironmentProblem
from stages.images.pool_child import BATCH_PAYLOADS, shared_bytes, shared_pixels
from stages.images.prepare import Preparation, Prepared, Request

_CHILD = "from stages.images.pool_child import serve; serve()"
_BATCH_BYTES = 4 << 20
_STARTS_WITHOUT_WORK = 3
_DEADLINE_SLACK_SECONDS = 10.0


class DecodePool:
    """Prepares payloads in `num_workers` processes, or inline when it is 0 (the time limit is then not enforced).

    Use it as a context manager, or call `close`. Several `map` calls may be under way at once. The same payloads give
    the same pixels whatever the number of workers.

    Args:
        num_workers: decode processes; each costs about 40 MB.
        preparation: what is done to every payload.
        max_in_flight: payloads handed out and not yet consumed, per `map` call; with `max_in_flight_bytes` it bounds
            memory and sets how far decoding runs ahead.
        max_in_flight_bytes: likewise for the bytes of the payloads.
    """

    def __init__(
        self,
        num_workers: int,
        preparation: Preparation,
        *,
        max_in_flight: int = 256,
        max_in_flight_bytes: int = 256 << 20,
    ) -> None:
        self.num_workers = num_workers
        self.preparation = preparation
        self._max_in_flight = max_in_flight
        self._max_in_flight_bytes = max_in_flight_bytes
        self._closed = False
        self._children = [_Child(preparation) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in self._children:
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="decode")
        self._stop = weakref.finalize(self, _stop_all, self._children, self._threads)

    def map(self, requests: Iterable[Request]) -> Iterator[Prepared]:
        """Returns the prepared payloads in the order of `requests`, starting to work at once.

        `requests` may be lazy: it is read in the caller's thread, never further ahead than the limits of the pool.
        Dropping the iterator early leaves the pool usable.

        Raises:
            EnvironmentProblem: a decode process cannot be started, again and again.
        """
        assert not self._closed, "the pool is closed"
        if self.num_workers == 0:
            return (self.preparation.prepare(payload, wanted) for payload, wanted in requests)
        flow = _Flow(self, iter(_batches(requests, self._batch_payloads(requests))))
        flow.fill()
        return flow.results()

    def close(self) -> None:
        """Stops the processes at once; work under way is dropped."""
        self._closed = True
        self._stop()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _batch_payloads(self, requests: Iterable[Request]) -> int:
        """Returns how many payloads travel in one message: few enough that every worker gets some."""
        if not isinstance(requests, Sequence):
            return BATCH_PAYLOADS
        return max(1, min(BATCH_PAYLOADS, -(-len(requests) // (2 * self.num_workers))))

    def _submit(self, batch: list[Request]) -> "Future[list[Prepared]]":
        return self._threads.submit(self._prepare_batch, batch)

    def _prepare_batch(self, batch: list[Request]) -> list[Prepared]:
        child = self._idle.get()
        try:
            return _prepare_surviving(child, batch, self.preparation.limits.seconds)
        finally:
            self._idle.put(child)


class _Flow:
    """One `map` call: batches handed to the threads, at most so many ahead of the consumer."""

    def __init__(self, pool: DecodePool, batches: Iterator[list[Request]]) -> None:
        self._pool = pool
        self._batches = batches
        self._pending: deque[tuple[Future[list[Prepared]], int, int]] = deque()
        self._num_payloads = 0
        self._num_bytes = 0

    def fill(self) -> None:
        while not self._pending or (
            self._num_payloads < self._pool._max_in_flight and self._num_bytes < self._pool._max_in_flight_bytes
        ):
            batch = next(self._batches, None)
            if batch is None:
                return
            num_bytes = sum(len(payload) for payload, _ in batch)
            self._pending.append((self._pool._submit(batch), len(batch), num_bytes))
            self._num_payloads += len(batch)
            self._num_bytes += num_bytes

    def results(self) -> Iterator[Prepared]:
        try:
            while self._pending:
                future, num_payloads, num_bytes = self._pending.popleft()
                results = future.result()
                self._num_payloads -= num_payloads
                self._num_bytes -= num_bytes
                self.fill()
                yield from results
        finally:
            for future, _, _ in self._pending:
                future.cancel()


class _Child:
    """One decode process, its pipes and the memory shared with it; started when first used, again after it ended."""

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._begun_fd = -1
        self._slots: np.ndarray | None = None
        self.stopped = False

    def exchange(self, batch: list[Request], seconds: float) -> tuple[list[Prepared], int, int | None]:
        """Sends a batch and returns (results, payloads begun, exit code, or None if the child is well).

        The results are those that arrived before the child ended, if it did.
        """
        if self._process is None:
            self._start()
        assert self._connection is not None and self._slots is not None
        results: list[Prepared] = []
        try:
            self._connection.send(batch)
            while len(results) < len(batch):
                if not self._connection.poll(seconds + _DEADLINE_SLACK_SECONDS):
                    # The child's own alarm is due long before: it is stopped, or its clock is.
                    num_begun = self._num_begun()
                    self.end()
                    return results, num_begun, -signal.SIGALRM
                for prepared, filled in self._connection.recv():
                    results.append(_with_pixels(prepared, self._slots[len(results)][:filled]))
        except (EOFError, OSError):
            num_begun = self._num_begun()
            return results, num_begun, self.end()
        self._num_begun()
        return results, len(batch), None

    def end(self) -> int:
        """Stops the process and returns its exit code: its own one if it had already ended."""
        process, connection, fd = self._process, self._connection, self._begun_fd
        self._process, self._connection, self._begun_fd, self._slots = None, None, -1, None
        if connection is not None:
            connection.close()
        if fd >= 0:
            os.close(fd)
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A process that broke its pipe is on its way out; its own exit code tells a crash from an alarm.
            process.wait(timeout=0.5)
        process.kill()
        return process.wait()

    def kill(self) -> None:
        """Kills the process from another thread; the thread that waits for it then sees the end of its pipe."""
        self.stopped = True
        process = self._process
        if process is not None:
            process.kill()

    def _start(self) -> None:
        if self.stopped:
            raise EnvironmentProblem("the decode pool was closed while work was under way: nothing to do")
        ours, theirs = socket.socketpair()
        begun_read, begun_write = os.pipe()
        os.set_blocking(begun_read, False)
        with theirs, _nameless_file() as memory:
            os.ftruncate(memory.fileno(), shared_bytes(self._preparation))
            self._slots = shared_pixels(memory.fileno(), self._preparation)
            descriptors = (theirs.fileno(), begun_write, memory.fileno())
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _CHILD, *map(str, descriptors)],
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                    env=_child_environment(),
                )
            except OSError as error:
                ours.close()
                os.close(begun_read)
                raise EnvironmentProblem(
                    f"cannot start a decode process ({error.strerror}): free memory or process slots, "
                    "or use fewer decode workers"
                ) from error
            finally:
                os.close(begun_write)
        # A stopped child reads nothing; without this a message larger than the pipe would wait for it for ever.
        wait_seconds = int(self._preparation.limits.seconds + _DEADLINE_SLACK_SECONDS)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", wait_seconds, 0))
        self._connection = Connection(ours.detach())
        self._begun_fd = begun_read
        with contextlib.suppress(OSError):
            # A child that died at once is found, and counted, by the exchange that follows.
            self._connection.send(self._preparation)

    def _num_begun(self) -> int:
        """Returns how many payloads the child has begun since the last call."""
        try:
            return len(os.read(self._begun_fd, 65536))
        except BlockingIOError:
            return 0


def _nameless_file() -> IO[bytes]:
    """Returns a file that goes with its last user; in memory on Linux, whatever size the shared-memory mount has."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("decode"), "r+b")
    return tempfile.TemporaryFile()


def _with_pixels(prepared: Prepared, slot: np.ndarray) -> Prepared:
    if prepared.status != "ok":
        return prepared
    # A copy, because the next batch goes through the same slots.
    return replace(prepared, pixels=slot.copy())


def _prepare_surviving(child: _Child, batch: list[Request], seconds: float) -> list[Prepared]:
    """Returns one result per request, restarting the child as often as payloads kill it.

    A payload during which the child died is tried once more, alone: the machine may have killed it (memory).
    """
    results: list[Prepared] = []
    starts_without_work = 0
    suspect = -1
    while len(results) < len(batch):
        at = len(results)
        waiting = batch[at : at + 1] if suspect == at else batch[at:]
        arrived, num_begun, exit_code = child.exchange(waiting, seconds)
        results += arrived
        if exit_code is None:
            continue
        if child.stopped:
            raise EnvironmentProblem("the decode pool was closed while work was under way: nothing to do")
        if num_begun == 0:
            starts_without_work += 1
            if starts_without_work == _STARTS_WITHOUT_WORK:
                raise EnvironmentProblem(
                    f"decode processes end before their first picture (exit code {exit_code}): "
                    "see their message above, free memory, or decode inline with 0 workers"
                )
            continue
        starts_without_work = 0
        culprit = at + num_begun - 1
        # Results between the last that arrived and the culprit were lost with the child; their payloads are innocent.
        results += _prepare_surviving(child, batch[len(results) : culprit], seconds)
        if exit_code == -signal.SIGALRM:
            results.append(Prepared(None, "img-timeout", "decoding took too long"))
        elif suspect == culprit:
            results.append(Prepared(None, "img-decoder-died", "the decoder ended its process"))
        else:
            suspect = culprit
    return results


def _batches(requests: Iterable[Request], max_payloads: int) -> Iterator[list[Request]]:
    batch: list[Request] = []
    num_bytes = 0
    for request in requests:
        batch.append(request)
        num_bytes += len(request[0])
        if len(batch) == max_payloads or num_bytes >= _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch


def _child_environment() -> dict[str, str]:
    """Returns our environment with our module path, and one thread per numeric library: the processes are many."""
    path = [os.path.abspath(entry) for entry in sys.path]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path)}


def _stop_all(children: list[_Child], threads: ThreadPoolExecutor) -> None:
    for child in children:
        child.kill()
    threads.shutdown(wait=True, cancel_futures=True)
    for child in children:
        child.end()
